//! Decisions without processes or sockets: sessions, generations, outages, leaving. Those about the processes
//! themselves are in `process_tests`.

use super::*;
use crate::event::Exit;
use crate::outbox::BATCH_DELAY;
use mcl_proto::v1::{
    Broken, CheckpointCommitted, Committed, Configure, Exited, Prepare, Prepared, RankEvent, Ready, Refused,
    SessionResponse, Staged, Start, StepReport, Stop, Training, rank_event::Event as Said,
};
use session_response::Message;

pub(super) const SECOND: Duration = Duration::from_secs(1);
/// First number of this life's processes.
pub(super) const BASE: u64 = 1_000;

pub(super) fn token(term: u64, generation: u64) -> FencingToken {
    FencingToken { term: Term::new(term), generation: Generation::new(generation) }
}

fn identity() -> Identity {
    let devices = vec!["cpu".into(), "cpu:1".into()];
    let hello = Hello { worker: "w".into(), advertise: "10.1.2.3".into(), devices, ..Hello::default() };
    Identity { hello, connect_timeout: 30 * SECOND }
}

/// A worker that was just welcomed by `term`.
pub(super) fn welcomed(term: u64) -> State {
    let (mut state, effects) = State::new(identity(), token(0, 0), BASE);
    assert!(matches!(effects[..], [Effect::Connect { .. }]));
    hear(&mut state, welcome(term), Duration::ZERO);
    state
}

pub(super) fn welcome(term: u64) -> Message {
    Message::Welcome(Welcome { term, heartbeat_interval_ms: 60_000, lost_after_ms: 120_000 })
}

pub(super) fn order(job_toml: &str) -> Configure {
    Configure { run_id: "run".into(), job_toml: job_toml.into(), ..Configure::default() }
}

pub(super) fn prepare(configure: Configure) -> Message {
    Message::Prepare(Prepare { configure: Some(configure) })
}

pub(super) fn post(process: ProcessId, device: &str, rank: u32) -> Post {
    let join = Some(Join { rank, world_size: 2, committed: 7, ..Join::default() });
    Post { device: device.into(), process: process.0, join }
}

pub(super) fn assign(token: FencingToken, posts: &[Post]) -> Message {
    Message::Assign(Assign { token: Some(token.into()), posts: posts.to_vec() })
}

pub(super) fn relay(token: FencingToken, command: Command) -> Message {
    relay_to(token, None, command)
}

pub(super) fn relay_to(token: FencingToken, rank: Option<u32>, command: Command) -> Message {
    let command = Some(RankCommand { command: Some(command) });
    Message::Relay(Relay { token: Some(token.into()), rank, command })
}

fn dismiss(leave: bool) -> Message {
    Message::Dismiss(Dismiss { reason: "done".into(), leave })
}

pub(super) fn hear(state: &mut State, message: Message, now: Duration) -> Vec<Effect> {
    let message = SessionResponse { message: Some(message) };
    state.apply(Event::Said { attempt: state.attempt, message }, now)
}

pub(super) fn down(state: &mut State, now: Duration) -> Hello {
    let effects = state.apply(Event::Down { attempt: state.attempt, reason: "gone".into() }, now);
    let hello = effects.into_iter().find_map(|e| match e {
        Effect::Connect { hello, .. } => Some(hello),
        _ => None,
    });
    hello.expect("a new attempt")
}

/// A rank's words; of itself it says nothing true, so that what is true was put there by the worker.
pub(super) fn says(state: &mut State, id: ProcessId, said: Said, now: Duration) -> Vec<Effect> {
    says_as(state, id, None, said, now)
}

pub(super) fn says_as(
    state: &mut State,
    process: ProcessId,
    token: Option<FencingToken>,
    said: Said,
    now: Duration,
) -> Vec<Effect> {
    let token = token.map(Into::into);
    let event = RankEvent { token, rank: 9, event: Some(said), device: "cuda:5".into(), process: 3 };
    state.apply(Event::RankSaid { process, event }, now)
}

pub(super) fn prepared() -> Said {
    Said::Prepared(Prepared {})
}

fn step(step: u64) -> Said {
    Said::Step(StepReport { step, ..StepReport::default() })
}

/// Performs starts as the rim does; the processes by device.
pub(super) fn start(state: &mut State, effects: &[Effect], now: Duration) -> Vec<(ProcessId, Configure)> {
    let spawn = |e: &Effect| match e {
        Effect::Spawn { process, configure } => Some((*process, configure.as_ref().clone())),
        _ => None,
    };
    let spawned: Vec<_> = effects.iter().filter_map(spawn).collect();
    for (process, _) in &spawned {
        state.apply(Event::Started { process: *process }, now);
    }
    spawned
}

/// Both processes of a worker, prepared.
pub(super) fn ready_made(state: &mut State, configure: Configure, now: Duration) -> [ProcessId; 2] {
    let effects = hear(state, prepare(configure), now);
    let started = start(state, &effects, now);
    let [(a, _), (b, _)] = &started[..] else { panic!("{started:?}") };
    let ids = [*a, *b];
    for id in ids {
        says(state, id, prepared(), now);
    }
    ids
}

/// Generation `generation` of term 1 with both processes, training.
fn training(state: &mut State, generation: u64, now: Duration) -> [ProcessId; 2] {
    let [a, b] = ready_made(state, order("job"), now);
    let token = token(1, generation);
    hear(state, assign(token, &[post(a, "cpu", 4), post(b, "cpu:1", 5)]), now);
    for id in [a, b] {
        says(state, id, Said::Ready(Ready::default()), now);
    }
    hear(state, relay(token, Command::Start(Start::default())), now);
    for id in [a, b] {
        says(state, id, Said::Training(Training::default()), now);
    }
    [a, b]
}

pub(super) fn killed(effects: &[Effect]) -> Vec<ProcessId> {
    effects.iter().filter_map(|e| if let Effect::Kill(id) = e { Some(*id) } else { None }).collect()
}

pub(super) fn commands(effects: &[Effect]) -> Vec<(ProcessId, Command)> {
    let command = |e: &Effect| match e {
        Effect::Command { process, command } => Some((*process, command.command.clone()?)),
        _ => None,
    };
    effects.iter().filter_map(command).collect()
}

pub(super) fn beats(effects: &[Effect]) -> Vec<Heartbeat> {
    let beat = |e: &Effect| match e {
        Effect::Send(SessionRequest { message: Some(session_request::Message::Heartbeat(beat)) }) => {
            Some(beat.clone())
        }
        _ => None,
    };
    effects.iter().filter_map(beat).collect()
}

pub(super) fn told(effects: &[Effect]) -> Vec<RankEvent> {
    beats(effects).into_iter().flat_map(|b| b.events).collect()
}

fn steps(effects: &[Effect]) -> Vec<u64> {
    let step = |e: RankEvent| if let Some(Said::Step(r)) = e.event { Some(r.step) } else { None };
    told(effects).into_iter().filter_map(step).collect()
}

pub(super) fn gone(process: ProcessId) -> Event {
    let exit = Exit { status: "signal 9".into(), by_signal: true, last_words: "ouch".into() };
    Event::Gone { process, exit }
}

#[test]
fn a_generation_is_persisted_then_joined_by_living_processes_and_stops_none() {
    let mut state = welcomed(1);
    let [a, b] = ready_made(&mut state, order("job"), SECOND);
    let effects = hear(&mut state, assign(token(1, 1), &[post(a, "cpu", 0), post(b, "cpu:1", 1)]), SECOND);
    assert_eq!(effects[0], Effect::Persist(token(1, 1)));
    let joined = commands(&effects);
    let [(first, Command::Join(join)), (second, Command::Join(_))] = &joined[..] else {
        panic!("{joined:?}")
    };
    assert_eq!(([*first, *second], join.token, join.committed), ([a, b], Some(token(1, 1).into()), 7));
    assert_eq!(beats(&effects)[0].token, Some(token(1, 1).into()));

    let next = || assign(token(1, 2), &[post(b, "cpu:1", 0)]);
    let effects = hear(&mut state, next(), SECOND);
    assert_eq!((effects[0].clone(), killed(&effects)), (Effect::Persist(token(1, 2)), vec![]));
    assert_eq!(commands(&effects).iter().map(|c| c.0).collect::<Vec<_>>(), [b]);
    assert_eq!(hear(&mut state, next(), SECOND), [], "an assignment may come twice");
    assert_eq!(hear(&mut state, assign(token(1, 1), &[post(a, "cpu", 0)]), SECOND), [], "stale");

    let hello = down(&mut state, SECOND);
    let joined: Vec<u64> = hello.processes.iter().map(|p| p.generation).collect();
    assert_eq!(joined, [1, 2], "one without a post keeps what it joined");
}

#[test]
fn a_post_that_nobody_can_fill_is_a_failure_of_its_rank() {
    let mut state = welcomed(1);
    let [a, b] = ready_made(&mut state, order("job"), SECOND);
    state.apply(gone(a), SECOND);
    let effects = state.apply(Event::Tick, 3 * SECOND);
    let [(new, _)] = start(&mut state, &effects, 3 * SECOND)[..] else { panic!("{effects:?}") };
    let posts = [post(a, "cpu", 0), post(b, "cpu", 1), post(new, "cpu", 2), post(b, "cpu:1", 3)];
    let effects = hear(&mut state, assign(token(1, 1), &posts), 3 * SECOND);
    let failures = told(&effects);
    let said = |e: &RankEvent| match &e.event {
        Some(Said::Failed(failed)) => (e.rank, e.process, failed.message.clone()),
        other => panic!("{other:?}"),
    };
    let absent = "process is not there any more".to_owned();
    let early = "process is not prepared yet".to_owned();
    assert_eq!(
        failures.iter().map(said).collect::<Vec<_>>(),
        [(0, a.0, absent.clone()), (1, b.0, absent), (2, new.0, early)]
    );
    assert_eq!(failures[0].token, Some(token(1, 1).into()));
    assert_eq!(commands(&effects).len(), 1, "the last post is filled");
}

#[test]
fn a_later_term_may_continue_a_generation_and_an_earlier_one_may_not_speak_again() {
    let mut state = welcomed(1);
    let [a, _] = training(&mut state, 5, SECOND);
    down(&mut state, SECOND);
    let effects = hear(&mut state, welcome(2), 2 * SECOND);
    assert_eq!(effects[0], Effect::Persist(token(2, 5)));
    assert_eq!(beats(&effects)[0].token, Some(token(2, 5).into()));
    assert!(killed(&effects).is_empty() && commands(&effects).is_empty());
    let committed = || Command::Committed(Committed { step: 3 });
    assert_eq!(commands(&hear(&mut state, relay(token(2, 5), committed()), 2 * SECOND)).len(), 2);
    assert_eq!(hear(&mut state, relay(token(1, 5), committed()), 2 * SECOND), []);
    assert_eq!(hear(&mut state, assign(token(1, 6), &[post(a, "cpu", 0)]), 2 * SECOND), []);
    let effects = hear(&mut state, welcome(1), 2 * SECOND);
    assert!(matches!(effects[..], [Effect::Connect { .. }]), "a stale coordinator is left");
    assert_eq!(hear(&mut state, prepare(order("another")), 2 * SECOND), [], "and not listened to");
}

#[test]
fn a_later_term_counts_as_it_likes_where_no_rank_runs() {
    let mut state = welcomed(1);
    let [a, _] = ready_made(&mut state, order("job"), SECOND);
    hear(&mut state, assign(token(1, 5), &[]), SECOND);
    down(&mut state, SECOND);
    let effects = hear(&mut state, welcome(2), 2 * SECOND);
    assert_eq!(effects[0], Effect::Persist(token(2, 0)));
    let effects = hear(&mut state, assign(token(2, 5), &[post(a, "cpu", 0)]), 2 * SECOND);
    assert_eq!(commands(&effects).len(), 1, "the same number is another generation");
}

#[test]
fn commands_reach_those_who_joined_the_generation_last_and_only_those() {
    let mut state = welcomed(1);
    let [a, b] = training(&mut state, 1, SECOND);
    hear(&mut state, assign(token(1, 2), &[post(b, "cpu:1", 0)]), SECOND);
    let pause = || Command::Pause(mcl_proto::v1::Pause::default());
    let heard = |effects: Vec<Effect>| commands(&effects).into_iter().map(|c| c.0).collect::<Vec<_>>();
    assert_eq!(heard(hear(&mut state, relay(token(1, 2), pause()), SECOND)), [b]);
    assert_eq!(heard(hear(&mut state, relay(token(1, 1), pause()), SECOND)), []);
    hear(&mut state, assign(token(1, 3), &[post(a, "cpu", 0), post(b, "cpu:1", 1)]), SECOND);
    assert_eq!(heard(hear(&mut state, relay_to(token(1, 3), Some(0), pause()), SECOND)), [a]);
    let join = Command::Join(Join { rank: 5, ..Join::default() });
    assert_eq!(heard(hear(&mut state, relay(token(1, 3), join), SECOND)), [], "posts are assigned");
}

#[test]
fn a_worker_that_lost_its_ranks_with_its_last_life_says_so() {
    let (mut state, effects) = State::new(identity(), token(1, 5), BASE);
    let [Effect::Connect { hello, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((hello.highest, hello.processes.len()), (Some(token(1, 5).into()), 0));
    let effects = hear(&mut state, welcome(1), SECOND);
    assert_eq!(beats(&effects)[0].token, Some(token(1, 0).into()));
}

#[test]
fn a_greeting_names_the_processes_and_takes_the_place_of_what_was_said_of_them() {
    let mut state = welcomed(1);
    let effects = hear(&mut state, prepare(order("job")), SECOND);
    let [(a, _), (b, _)] = start(&mut state, &effects, SECOND)[..] else { panic!("{effects:?}") };
    says(&mut state, a, prepared(), SECOND);
    hear(&mut state, assign(token(1, 1), &[post(a, "cpu", 0)]), SECOND);
    says(&mut state, a, Said::Training(Training::default()), SECOND);
    down(&mut state, SECOND);
    says(&mut state, b, prepared(), 2 * SECOND);
    let hello = down(&mut state, 2 * SECOND);
    let process = |device: &str, id: ProcessId, generation, holds_state| RankProcess {
        device: device.into(),
        process: id.0,
        run_id: "run".into(),
        prepared: true,
        generation,
        holds_state,
    };
    assert_eq!(hello.processes, [process("cpu", a, 1, true), process("cpu:1", b, 0, false)]);
    // After the greeting was written, so it is told.
    let effects = state.apply(gone(b), 3 * SECOND);
    let [(c, _)] = start(&mut state, &effects, 3 * SECOND)[..] else { panic!("{effects:?}") };
    let events = told(&hear(&mut state, welcome(1), 3 * SECOND));
    let said: Vec<_> = events.iter().map(|e| (e.process, e.event.clone().unwrap())).collect();
    assert!(
        matches!(&said[..], [(x, Said::Training(_)), (y, Said::Exited(_)), (z, Said::Spawned(_))]
            if [*x, *y, *z] == [a.0, b.0, c.0]),
        "{said:?}"
    );
}

#[test]
fn reports_survive_an_outage_until_they_are_covered() {
    let mut state = welcomed(1);
    let [a, _] = training(&mut state, 1, SECOND);
    says(&mut state, a, step(0), SECOND);
    assert_eq!(state.deadline(), Some(SECOND + BATCH_DELAY));
    says(&mut state, a, step(1), SECOND);
    let effects = state.apply(Event::Tick, SECOND + BATCH_DELAY);
    assert_eq!(steps(&effects), [0, 1]);
    let first = &told(&effects)[0];
    assert_eq!((first.rank, first.token), (4, Some(token(1, 1).into())), "stamped by the worker");
    hear(&mut state, relay(token(1, 1), Command::Committed(Committed { step: 0 })), 2 * SECOND);
    down(&mut state, 2 * SECOND);
    assert_eq!(says(&mut state, a, step(2), 3 * SECOND), []);
    assert_eq!(steps(&hear(&mut state, welcome(1), 4 * SECOND)), [1, 2]);
}

#[test]
fn what_is_said_in_a_generation_is_repeated_until_its_cover_comes() {
    let mut state = welcomed(1);
    let [a, b] = ready_made(&mut state, order("job"), SECOND);
    hear(&mut state, assign(token(1, 1), &[post(a, "cpu", 0), post(b, "cpu:1", 1)]), SECOND);
    let again = |state: &mut State| {
        down(state, SECOND);
        told(&hear(state, welcome(1), SECOND)).into_iter().filter_map(|e| e.event).collect::<Vec<_>>()
    };
    says(&mut state, a, Said::Ready(Ready::default()), SECOND);
    assert!(matches!(again(&mut state)[..], [Said::Ready(_)]));
    hear(&mut state, relay(token(1, 1), Command::Start(Start::default())), SECOND);
    assert_eq!(again(&mut state), []);
    says(&mut state, a, Said::Staged(Staged { step: 2, ..Staged::default() }), SECOND);
    assert!(matches!(again(&mut state)[..], [Said::Staged(_)]));
    let visible = CheckpointCommitted { step: 2, ..CheckpointCommitted::default() };
    hear(&mut state, relay(token(1, 1), Command::CheckpointCommitted(visible)), SECOND);
    says(&mut state, a, Said::Broken(Broken::default()), SECOND);
    state.apply(gone(b), SECOND);
    let lasting = |said: Vec<Said>| matches!(said[..], [Said::Broken(_), Said::Exited(_)]);
    assert!(lasting(again(&mut state)) && lasting(again(&mut state)));
    hear(&mut state, assign(token(1, 2), &[post(a, "cpu", 0)]), SECOND);
    assert_eq!(again(&mut state), []);
}

#[test]
fn a_word_of_the_generation_before_keeps_its_token_and_an_unknown_one_is_not_believed() {
    let mut state = welcomed(1);
    let [a, b] = training(&mut state, 1, SECOND);
    hear(&mut state, assign(token(1, 2), &[post(b, "cpu:1", 0), post(a, "cpu", 1)]), SECOND);
    let broken = || Said::Broken(Broken::default());
    let stamp = |effects: Vec<Effect>| {
        let event = told(&effects).remove(0);
        (event.token.unwrap().generation, event.rank, event.device, event.process)
    };
    let effects = says_as(&mut state, a, Some(token(1, 1)), broken(), SECOND);
    assert_eq!(stamp(effects), (1, 4, "cpu".into(), a.0));
    let effects = says_as(&mut state, a, Some(token(2, 1)), broken(), SECOND);
    assert_eq!(stamp(effects), (1, 4, "cpu".into(), a.0), "a later term continued it");
    let effects = says_as(&mut state, a, Some(token(1, 7)), broken(), SECOND);
    assert_eq!(stamp(effects), (2, 1, "cpu".into(), a.0));
    assert_eq!(stamp(says(&mut state, b, broken(), SECOND)), (2, 0, "cpu:1".into(), b.0));
}

#[test]
fn dismissal_stops_everything_and_nothing_starts_again_before_the_next_order() {
    let mut state = welcomed(1);
    let [a, b] = training(&mut state, 1, SECOND);
    let effects = hear(&mut state, dismiss(false), 2 * SECOND);
    assert!(matches!(commands(&effects)[..], [(_, Command::Stop(_)), (_, Command::Stop(_))]), "{effects:?}");
    assert_eq!(killed(&state.apply(Event::Tick, 2 * SECOND + GRACE)), [a, b]);
    for id in [a, b] {
        let effects = state.apply(gone(id), 5 * SECOND);
        let Some(Said::Exited(Exited { last_words, .. })) = &told(&effects)[0].event else { panic!() };
        assert_eq!((last_words.as_str(), effects.len()), ("ouch", 1));
    }
    assert_eq!((state.next_start(), state.processes.len()), (None, 0));
    ready_made(&mut state, order("job"), 9 * SECOND);
    let effects = hear(&mut state, dismiss(true), 9 * SECOND);
    assert_eq!(commands(&effects).len(), 2);
    let ids: Vec<ProcessId> = state.processes.keys().copied().collect();
    state.apply(gone(ids[0]), 9 * SECOND);
    let effects = state.apply(gone(ids[1]), 9 * SECOND);
    assert_eq!(effects.last(), Some(&Effect::Leave(Ending::Dismissed("done".into()))));
}

#[test]
fn patience_with_leaving_ends_and_the_worker_leaves_after_its_last_rank() {
    let mut state = welcomed(1);
    let [a, b] = training(&mut state, 1, SECOND);
    let effects = state.apply(Event::Farewell(Farewell::Now), SECOND);
    assert_eq!(commands(&effects).len(), 2);
    assert_eq!(hear(&mut state, prepare(order("more")), SECOND), [], "no more work");
    assert_eq!(killed(&state.apply(Event::Tick, SECOND + GRACE)), [a, b]);
    state.apply(gone(a), 4 * SECOND);
    let effects = state.apply(gone(b), 4 * SECOND);
    assert!(matches!(effects[..], [Effect::Send(_), Effect::Leave(Ending::Shutdown)]), "{effects:?}");
}

#[test]
fn a_worker_whose_ranks_train_says_that_it_leaves_and_waits_to_be_dismissed() {
    let mut state = welcomed(1);
    let [a, b] = training(&mut state, 1, SECOND);
    let effects = state.apply(Event::Farewell(Farewell::Drain), 2 * SECOND);
    let [Effect::Send(_)] = &effects[..] else { panic!("{effects:?}") };
    assert!(beats(&effects)[0].leaving);
    assert_eq!(state.apply(Event::Farewell(Farewell::Drain), 2 * SECOND), [], "it is leaving already");
    assert!(down(&mut state, 3 * SECOND).leaving);
    assert!(beats(&hear(&mut state, welcome(2), 4 * SECOND))[0].leaving);
    assert_eq!(hear(&mut state, prepare(order("more")), 4 * SECOND), [], "no more work");
    let effects = state.apply(gone(a), 5 * SECOND);
    assert!(start(&mut state, &effects, 5 * SECOND).is_empty());
    let effects = hear(&mut state, dismiss(false), 6 * SECOND);
    assert!(matches!(commands(&effects)[..], [(_, Command::Stop(_))]));
    assert_eq!(state.apply(gone(b), 6 * SECOND).last(), Some(&Effect::Leave(Ending::Shutdown)));
}

#[test]
fn a_worker_that_leaves_does_not_wait_for_ever_nor_without_its_ranks() {
    let mut state = welcomed(1);
    training(&mut state, 1, SECOND);
    state.apply(Event::Farewell(Farewell::Drain), 2 * SECOND);
    down(&mut state, 3 * SECOND);
    assert_eq!(state.deadline(), Some(2 * SECOND + LEAVE_LIMIT));
    assert_eq!(commands(&state.apply(Event::Tick, 2 * SECOND + LEAVE_LIMIT)).len(), 2);

    let mut state = welcomed(1);
    let ids = training(&mut state, 1, SECOND);
    state.apply(Event::Farewell(Farewell::Drain), 2 * SECOND);
    state.apply(gone(ids[0]), 2 * SECOND);
    let effects = state.apply(gone(ids[1]), 2 * SECOND);
    assert_eq!((told(&effects).len(), effects.last()), (1, Some(&Effect::Leave(Ending::Shutdown))));

    let mut state = welcomed(1);
    training(&mut state, 1, SECOND);
    state.apply(Event::Farewell(Farewell::Drain), 2 * SECOND);
    assert_eq!(commands(&state.apply(Event::Farewell(Farewell::Now), 2 * SECOND)).len(), 2);
}

#[test]
fn there_is_nothing_to_wait_for_without_training_or_without_a_coordinator() {
    let mut state = welcomed(1);
    ready_made(&mut state, order("job"), SECOND);
    assert_eq!(commands(&state.apply(Event::Farewell(Farewell::Drain), SECOND)).len(), 2);
    let mut state = welcomed(1);
    training(&mut state, 1, SECOND);
    down(&mut state, SECOND);
    assert_eq!(commands(&state.apply(Event::Farewell(Farewell::Drain), SECOND)).len(), 2);
}

#[test]
fn heartbeats_follow_the_tempo_that_is_set_while_the_stream_lives() {
    let mut state = welcomed(1);
    let tempo = |ms| Message::Tempo(Tempo { heartbeat_interval_ms: ms });
    assert_eq!(state.deadline(), Some(60 * SECOND));
    assert_eq!(hear(&mut state, tempo(2000), SECOND), []);
    assert_eq!(state.deadline(), Some(3 * SECOND));
    assert_eq!(beats(&state.apply(Event::Tick, 3 * SECOND)).len(), 1);
    hear(&mut state, tempo(5000), 3 * SECOND);
    assert_eq!(state.deadline(), Some(5 * SECOND), "a slower one begins after the next");
}

#[test]
fn only_the_first_contact_has_a_limit() {
    let (mut state, _) = State::new(identity(), token(0, 0), BASE);
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
fn a_refusal_ends_everything() {
    let mut state = welcomed(1);
    let ids = ready_made(&mut state, order("job"), SECOND);
    let effects = hear(&mut state, Message::Refused(Refused { reason: "no".into() }), SECOND);
    let stop = Command::Stop(Stop { reason: "the coordinator refused this worker".into() });
    assert_eq!(commands(&effects), ids.map(|id| (id, stop.clone())));
    state.apply(gone(ids[0]), SECOND);
    let effects = state.apply(gone(ids[1]), SECOND);
    assert_eq!(effects.last(), Some(&Effect::Leave(Ending::Refused("no".into()))));
}

#[path = "process_tests.rs"]
mod processes;
