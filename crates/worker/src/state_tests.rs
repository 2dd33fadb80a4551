//! Decisions without processes or sockets.

use super::*;
use crate::event::Exit;
use mcl_proto::v1::{
    Committed, RankEvent, Ready, Refused, SessionResponse, StepReport, rank_event::Event as Said,
};

const SECOND: Duration = Duration::from_secs(1);

fn token(term: u64, generation: u64) -> FencingToken {
    FencingToken { term: Term::new(term), generation: Generation::new(generation) }
}

fn identity() -> Identity {
    let hello = Hello { worker: "w".into(), devices: vec!["cpu".into()], ..Hello::default() };
    Identity { hello, connect_timeout: 30 * SECOND }
}

/// A worker that was just welcomed by `term`.
fn welcomed(term: u64) -> State {
    let (mut state, effects) = State::new(identity(), token(0, 0));
    assert!(matches!(effects[..], [Effect::Connect { .. }]));
    hear(&mut state, welcome(term), Duration::ZERO);
    state
}

fn welcome(term: u64) -> session_response::Message {
    session_response::Message::Welcome(Welcome { term, heartbeat_interval_ms: 1000, lost_after_ms: 10_000 })
}

fn assign(token: FencingToken, ranks: &[u32]) -> session_response::Message {
    let configure = |rank: &u32| Configure { rank: *rank, device: "cpu".into(), ..Configure::default() };
    let ranks = ranks.iter().map(configure).collect();
    session_response::Message::Assign(Assign { token: Some(token.into()), ranks })
}

fn relay(token: FencingToken, command: Command) -> session_response::Message {
    let command = Some(RankCommand { command: Some(command) });
    session_response::Message::Relay(Relay { token: Some(token.into()), rank: None, command })
}

fn hear(state: &mut State, message: session_response::Message, now: Duration) -> Vec<Effect> {
    let message = SessionResponse { message: Some(message) };
    state.apply(Event::Said { attempt: state.attempt, message }, now)
}

fn spawned(effects: &[Effect]) -> Vec<(ProcessId, u32)> {
    let spawn = |e: &Effect| match e {
        Effect::Spawn { process, configure } => Some((*process, configure.rank)),
        _ => None,
    };
    effects.iter().filter_map(spawn).collect()
}

fn killed(effects: &[Effect]) -> Vec<ProcessId> {
    effects.iter().filter_map(|e| if let Effect::Kill(id) = e { Some(*id) } else { None }).collect()
}

fn beats(effects: &[Effect]) -> Vec<Heartbeat> {
    let beat = |e: &Effect| match e {
        Effect::Send(SessionRequest { message: Some(session_request::Message::Heartbeat(beat)) }) => {
            Some(beat.clone())
        }
        _ => None,
    };
    effects.iter().filter_map(beat).collect()
}

fn steps(effects: &[Effect]) -> Vec<u64> {
    let step = |e: RankEvent| if let Some(Said::Step(r)) = e.event { Some(r.step) } else { None };
    beats(effects).into_iter().flat_map(|b| b.events).filter_map(step).collect()
}

fn gone(process: ProcessId) -> Event {
    let exit = Exit { status: "signal 9".into(), by_signal: true, last_words: String::new() };
    Event::Gone { process, exit }
}

fn step(process: ProcessId, step: u64) -> Event {
    let event = Some(Said::Step(StepReport { step, ..StepReport::default() }));
    Event::RankSaid { process, event: RankEvent { token: None, rank: 9, event } }
}

#[test]
fn the_next_generation_is_persisted_and_starts_when_the_last_rank_of_the_one_before_is_gone() {
    let mut state = welcomed(1);
    let effects = hear(&mut state, assign(token(1, 1), &[0, 1]), SECOND);
    assert_eq!(effects[0], Effect::Persist(token(1, 1)));
    let old = spawned(&effects);
    assert_eq!(old.len(), 2);
    let effects = hear(&mut state, assign(token(1, 2), &[3]), SECOND);
    assert_eq!(effects[0], Effect::Persist(token(1, 2)));
    assert_eq!((killed(&effects).len(), spawned(&effects)), (2, vec![]));
    let effects = state.apply(gone(old[0].0), SECOND);
    assert_eq!((spawned(&effects), beats(&effects)), (vec![], vec![]), "ends that we made are no news");
    let effects = state.apply(gone(old[1].0), SECOND);
    assert_eq!(spawned(&effects).iter().map(|s| s.1).collect::<Vec<_>>(), [3]);
    let again = hear(&mut state, assign(token(1, 2), &[3]), SECOND);
    assert_eq!(again, [], "an assignment may come twice");
    assert_eq!(hear(&mut state, assign(token(1, 1), &[0]), SECOND), [], "stale");
}

#[test]
fn a_later_term_may_continue_a_generation_and_an_earlier_one_may_not_speak_again() {
    let mut state = welcomed(1);
    hear(&mut state, assign(token(1, 5), &[0]), SECOND);
    state.apply(Event::Down { attempt: state.attempt, reason: "gone".into() }, SECOND);
    let effects = hear(&mut state, welcome(2), 2 * SECOND);
    assert_eq!(effects[0], Effect::Persist(token(2, 5)));
    assert_eq!(beats(&effects)[0].token, Some(token(2, 5).into()));
    let committed = || Command::Committed(Committed { step: 3 });
    assert!(matches!(
        hear(&mut state, relay(token(2, 5), committed()), 2 * SECOND)[..],
        [Effect::Command { .. }]
    ));
    assert_eq!(hear(&mut state, relay(token(1, 5), committed()), 2 * SECOND), []);
    assert_eq!(hear(&mut state, assign(token(1, 6), &[0]), 2 * SECOND), []);
    let effects = hear(&mut state, welcome(1), 2 * SECOND);
    assert!(matches!(effects[..], [Effect::Connect { .. }]), "a stale coordinator is left");
}

#[test]
fn a_worker_that_lost_its_ranks_with_its_last_life_says_so() {
    let (mut state, effects) = State::new(identity(), token(1, 5));
    let [Effect::Connect { hello, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(hello.highest, Some(token(1, 5).into()));
    let effects = hear(&mut state, welcome(1), SECOND);
    assert_eq!(beats(&effects)[0].token, Some(token(0, 0).into()));
}

#[test]
fn reports_survive_an_outage_until_they_are_covered() {
    let mut state = welcomed(1);
    let rank = spawned(&hear(&mut state, assign(token(1, 1), &[4]), SECOND))[0].0;
    state.apply(step(rank, 0), SECOND);
    assert_eq!(state.deadline(), Some(SECOND + crate::outbox::BATCH_DELAY));
    state.apply(step(rank, 1), SECOND);
    let effects = state.apply(Event::Tick, SECOND + crate::outbox::BATCH_DELAY);
    assert_eq!(steps(&effects), [0, 1]);
    let first = &beats(&effects)[0].events[0];
    assert_eq!((first.rank, first.token), (4, Some(token(1, 1).into())), "stamped by the worker");
    hear(&mut state, relay(token(1, 1), Command::Committed(Committed { step: 0 })), 2 * SECOND);
    state.apply(Event::Down { attempt: state.attempt, reason: "gone".into() }, 2 * SECOND);
    assert_eq!(state.apply(step(rank, 2), 3 * SECOND), []);
    assert_eq!(steps(&hear(&mut state, welcome(1), 4 * SECOND)), [1, 2]);
}

#[test]
fn patience_with_leaving_ends_and_the_worker_leaves_after_its_last_rank() {
    let mut state = welcomed(1);
    let rank = spawned(&hear(&mut state, assign(token(1, 1), &[0]), SECOND))[0].0;
    let effects = state.apply(Event::Shutdown, SECOND);
    assert!(matches!(effects[..], [Effect::Command { .. }]));
    assert_eq!(hear(&mut state, assign(token(1, 2), &[0]), SECOND), [], "no more work");
    assert_eq!(killed(&state.apply(Event::Tick, SECOND + GRACE)), [rank]);
    let effects = state.apply(gone(rank), 4 * SECOND);
    assert!(matches!(effects[..], [Effect::Send(_), Effect::Leave(Ending::Shutdown)]), "{effects:?}");
}

#[test]
fn only_the_first_contact_has_a_limit() {
    let (mut state, _) = State::new(identity(), token(0, 0));
    let down = |state: &State| Event::Down { attempt: state.attempt, reason: "refused".into() };
    let event = down(&state);
    assert!(matches!(state.apply(event, SECOND)[..], [Effect::Connect { .. }]));
    assert_eq!(state.deadline(), Some(30 * SECOND));
    let effects = state.apply(Event::Tick, 30 * SECOND);
    let last = "refused".to_owned();
    assert_eq!(effects, [Effect::Leave(Ending::Unreachable { waited: 30 * SECOND, last })]);

    let mut state = welcomed(1);
    let mut pauses = Vec::new();
    for minute in 1..10 {
        let event = down(&state);
        let effects = state.apply(event, 60 * minute * SECOND);
        let [Effect::Connect { after, .. }] = &effects[..] else { panic!("{effects:?}") };
        pauses.push(*after);
    }
    assert_eq!((pauses[0], pauses[1], pauses[8]), (FIRST_PAUSE, 2 * FIRST_PAUSE, MAX_PAUSE));
}

#[test]
fn a_rank_that_cannot_be_worked_with_is_reported_once_and_killed() {
    let mut state = welcomed(1);
    let rank = spawned(&hear(&mut state, assign(token(1, 1), &[0]), SECOND))[0].0;
    let effects = state.apply(Event::RankDeaf { process: rank, waiting: 256 }, SECOND);
    assert_eq!(killed(&effects), [rank]);
    assert!(matches!(beats(&effects)[0].events[0].event, Some(Said::Failed(_))));
    assert_eq!(state.apply(Event::RankDeaf { process: rank, waiting: 256 }, SECOND), []);
    let empty = RankEvent { token: None, rank: 0, event: None };
    assert_eq!(state.apply(Event::RankSaid { process: rank, event: empty }, SECOND), []);
}

#[test]
fn what_cannot_be_run_here_is_said() {
    let mut state = welcomed(1);
    let configure = Configure { rank: 0, device: "cuda:7".into(), ..Configure::default() };
    let assign = Assign { token: Some(token(1, 1).into()), ranks: vec![configure] };
    let effects = hear(&mut state, session_response::Message::Assign(assign), SECOND);
    let Some(Said::Failed(failed)) = &beats(&effects)[0].events[0].event else { panic!("{effects:?}") };
    assert!(failed.message.contains("`cuda:7`") && failed.message.contains("offers cpu"), "{failed:?}");
    assert!(spawned(&effects).is_empty() && state.processes.is_empty());
}

#[test]
fn ranks_not_yet_started_never_are_when_the_generation_ends_first() {
    let mut state = welcomed(1);
    let old = spawned(&hear(&mut state, assign(token(1, 1), &[0]), SECOND))[0].0;
    hear(&mut state, assign(token(1, 2), &[0]), SECOND);
    let stop = mcl_proto::v1::Stop { reason: "over".into() };
    hear(&mut state, relay(token(1, 2), Command::Stop(stop)), SECOND);
    assert!(spawned(&state.apply(gone(old), SECOND)).is_empty());
}

#[test]
fn readiness_is_repeated_until_the_start_and_a_refusal_ends_everything() {
    let mut state = welcomed(1);
    let rank = spawned(&hear(&mut state, assign(token(1, 1), &[0]), SECOND))[0].0;
    let ready = RankEvent { token: None, rank: 0, event: Some(Said::Ready(Ready::default())) };
    let effects = state.apply(Event::RankSaid { process: rank, event: ready }, SECOND);
    assert_eq!(beats(&effects)[0].events.len(), 1);
    state.apply(Event::Down { attempt: state.attempt, reason: "gone".into() }, SECOND);
    assert_eq!(beats(&hear(&mut state, welcome(1), SECOND))[0].events.len(), 1);
    let start = mcl_proto::v1::Start { token: None, store_address: String::new() };
    hear(&mut state, relay(token(1, 1), Command::Start(start)), SECOND);
    state.apply(Event::Down { attempt: state.attempt, reason: "gone".into() }, SECOND);
    assert_eq!(beats(&hear(&mut state, welcome(1), SECOND))[0].events.len(), 0);
    let refused = session_response::Message::Refused(Refused { reason: "no".into() });
    assert!(matches!(hear(&mut state, refused, SECOND)[..], [Effect::Command { .. }]));
    let effects = state.apply(gone(rank), SECOND);
    assert_eq!(effects.last(), Some(&Effect::Leave(Ending::Refused("no".into()))));
}
