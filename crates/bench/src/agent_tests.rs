use super::*;
use crate::workload::sample;
use mcl_proto::v1::{
    Acknowledged, Break, Committed, Dismiss, Drain, EpochGrant, Join, Pause, Post as WirePost, RankCommand,
    Refused, Stop, Tempo, Welcome,
};

const STEPS_PER_EPOCH: u64 = 10;

fn agent(ranks: u32) -> Agent {
    Agent::new("w1".to_owned(), ranks)
}

fn workload() -> Arc<Workload> {
    Arc::new(sample(4, STEPS_PER_EPOCH))
}

fn welcome() -> Message {
    Message::Welcome(Welcome { term: 3, heartbeat_interval_ms: 200, lost_after_ms: 10_000 })
}

fn token(generation: u64) -> Option<mcl_proto::v1::FencingToken> {
    Some(mcl_proto::v1::FencingToken { term: 3, generation })
}

fn assign(generation: u64, posts: &[(u32, u64)]) -> Message {
    let world_size = 4;
    let post = |(rank, process): &(u32, u64)| WirePost {
        device: format!("cuda:{}", (process - 1) % 2),
        process: *process,
        join: Some(Join { token: token(generation), rank: *rank, world_size, committed: 0 }),
    };
    Message::Assign(Assign { token: token(generation), posts: posts.iter().map(post).collect() })
}

fn relay(generation: u64, rank: Option<u32>, command: Command) -> Message {
    let command = Some(RankCommand { command: Some(command) });
    Message::Relay(Relay { token: token(generation), rank, command })
}

fn start(generation: u64, first_step: u64, origin: Origin) -> Message {
    let start = Start {
        token: token(generation),
        store_address: "127.0.0.1:1".to_owned(),
        first_step,
        origin: Some(origin),
    };
    relay(generation, None, Command::Start(start))
}

fn grant(generation: u64, rank: u32, epoch: u64) -> Message {
    let grant = EpochGrant { token: token(generation), epoch, steps: STEPS_PER_EPOCH, lanes: Vec::new() };
    relay(generation, Some(rank), Command::EpochGrant(grant))
}

/// Welcome, with a job, two ranks in generation 1.
fn trained() -> Agent {
    let mut agent = agent(2);
    agent.hear(welcome());
    agent.prepare(workload());
    agent.beat(0);
    agent.hear(assign(1, &[(0, 1), (1, 2)]));
    agent.beat(0);
    agent.hear(start(1, 0, Origin::FromSeed(true)));
    agent.beat(0);
    for rank in 0..2 {
        agent.hear(grant(1, rank, 0));
    }
    agent
}

/// What a heartbeat says, as (rank, process, what).
fn said(beat: &Heartbeat) -> Vec<(u32, u64, String)> {
    let what = |event: &Option<Said>| match event {
        Some(Said::Step(r)) => format!("step {}", r.step),
        Some(Said::Ready(r)) => format!("ready {:?} {}", r.applied, r.store_address),
        Some(Said::Training(t)) => format!("training {}", t.next_step),
        Some(Said::Paused(p)) => format!("paused {}", p.step),
        Some(Said::Drained(d)) => format!("drained {}", d.step),
        Some(Said::Recounted(r)) => format!("recounted {}", r.steps.len()),
        Some(Said::Spawned(_)) => "spawned".to_owned(),
        Some(Said::Prepared(_)) => "prepared".to_owned(),
        Some(Said::Broken(_)) => "broken".to_owned(),
        Some(Said::Exited(_)) => "exited".to_owned(),
        other => format!("{other:?}"),
    };
    let mut all: Vec<_> = beat.events.iter().map(|e| (e.rank, e.process, what(&e.event))).collect();
    all.sort_by_key(|(_, process, _)| *process);
    all
}

fn lines(found: &[(u32, u64, String)]) -> Vec<&str> {
    found.iter().map(|(_, _, what)| what.as_str()).collect()
}

#[test]
fn from_hello_to_the_first_steps() {
    let mut agent = agent(2);
    let hello = agent.hello();
    assert_eq!((hello.devices, hello.processes.len()), (vec!["cuda:0".to_owned(), "cuda:1".to_owned()], 0));
    let interval = Duration::from_millis(200);
    assert_eq!(agent.hear(welcome()), Some(Note::Welcome { interval }));
    assert!(!agent.is_urgent());

    agent.prepare(workload());
    agent.prepare(workload());
    assert!(agent.is_urgent());
    let beat = agent.beat(0);
    assert_eq!(lines(&said(&beat)), ["spawned", "prepared", "spawned", "prepared"]);
    assert_eq!(beat.events[0].token, token(0), "before the first join");

    assert_eq!(agent.hear(assign(1, &[(2, 1), (0, 2)])), None);
    let beat = agent.beat(0);
    assert_eq!(lines(&said(&beat)), ["ready None ", "ready None 127.0.0.1:1"]);
    assert_eq!((beat.token, beat.events[0].token), (token(1), token(1)));

    let note = agent.hear(start(1, 0, Origin::FromSeed(true)));
    assert_eq!(note, Some(Note::Started { generation: 1, world: 4, ranks: 2, first_step: 0 }));
    agent.hear(grant(1, 2, 0));
    agent.hear(grant(1, 0, 0));
    let beat = agent.beat(2);
    assert_eq!(lines(&said(&beat)), ["training 0", "step 0", "step 1", "training 0", "step 0", "step 1"]);
    assert_eq!(beat.sequence, 3);
}

#[test]
fn no_step_without_a_grant_and_few_at_once() {
    let mut agent = trained();
    assert_eq!(agent.beat(100).events.len(), 8, "behind by far: {CATCH_UP} steps of two ranks");
    agent.beat(100);
    let last = agent.beat(100);
    assert_eq!(lines(&said(&last)), ["step 8", "step 9", "step 8", "step 9"]);
    assert_eq!((agent.beat(100).events.len(), agent.ungranted(100)), (0, 90));
    agent.hear(grant(1, 1, 1));
    assert_eq!(said(&agent.beat(11)), [(1, 2, "step 10".to_owned())]);
    assert_eq!(agent.ungranted(11), 1);
}

#[test]
fn what_was_not_committed_is_said_again_on_a_new_stream() {
    let mut agent = trained();
    agent.beat(3);
    agent.hear(relay(1, None, Command::Committed(Committed { step: 1 })));
    let processes = agent.hello().processes;
    assert!(processes.iter().all(|p| p.prepared && p.holds_state && p.generation == 1));
    agent.hear(welcome());
    assert!(agent.is_urgent());
    assert_eq!(lines(&said(&agent.beat(3))), ["training 0", "step 2", "training 0", "step 2"]);
    assert!(agent.beat(3).events.is_empty());
}

#[test]
fn a_pause_and_the_next_generation_keep_the_state() {
    let mut agent = trained();
    agent.beat(3);
    agent.hear(relay(1, None, Command::Pause(Pause { token: token(1) })));
    assert_eq!(lines(&said(&agent.beat(9))), ["paused 3", "paused 3"], "and no step after it");
    agent.hear(assign(2, &[(1, 1), (0, 2)]));
    assert_eq!(lines(&said(&agent.beat(9))), ["ready Some(3) ", "ready Some(3) 127.0.0.1:1"]);
    agent.hear(start(2, 3, Origin::SourceRank(0)));
    let held = agent.processes[0].held.unwrap();
    assert_eq!((held.applied, held.trained_in, held.recorded_from), (3, 1, 0));
    agent.hear(start(1, 0, Origin::FromSeed(true)));
    assert_eq!(agent.processes[0].held, Some(held), "of an older generation");
}

#[test]
fn a_roll_back_takes_the_state_away() {
    let mut agent = trained();
    agent.beat(3);
    agent.hear(relay(1, None, Command::Break(Break { token: token(1), reason: String::new() })));
    assert_eq!(lines(&said(&agent.beat(9))), ["broken", "broken"]);
    agent.hear(assign(2, &[(0, 1), (1, 2)]));
    agent.hear(start(2, 0, Origin::CheckpointStep(0)));
    let held = agent.processes[1].held.unwrap();
    assert_eq!((held.applied, held.trained_in, held.recorded_from), (0, 2, 0));
}

#[test]
fn a_recount_has_all_lanes_of_what_is_held() {
    let mut agent = trained();
    agent.beat(3);
    let recount = Recount { token: token(1), first_step: 1, end_step: 9 };
    agent.hear(relay(1, Some(1), Command::Recount(recount)));
    let beat = agent.beat(3);
    assert_eq!(said(&beat), [(1, 2, "recounted 2".to_owned())]);
    let Some(Said::Recounted(recounted)) = &beat.events[0].event else { panic!("{beat:?}") };
    assert_eq!(recounted.steps[0].report.as_ref().unwrap().lanes.len(), 4);
}

#[test]
fn a_stopped_process_is_replaced_and_a_dismissed_one_is_not() {
    let mut agent = trained();
    agent.hear(relay(1, Some(0), Command::Stop(Stop { reason: String::new() })));
    let beat = agent.beat(0);
    let expected = [(0, 1, "exited"), (0, 3, "spawned"), (0, 3, "prepared")];
    assert_eq!(said(&beat), expected.map(|(r, p, w)| (r, p, w.to_owned())));
    let note = agent.hear(Message::Dismiss(Dismiss { reason: String::new(), leave: true }));
    assert_eq!(note, Some(Note::Dismissed { leave: true }));
    assert_eq!(lines(&said(&agent.beat(9))), ["exited", "exited"]);
    assert!(agent.hello().processes.is_empty());
}

#[test]
fn a_drain_stops_at_the_boundary() {
    let mut agent = trained();
    agent.beat(2);
    agent.hear(relay(1, None, Command::Drain(Drain { token: token(1) })));
    assert_eq!(lines(&said(&agent.beat(9))), ["drained 2", "drained 2"]);
}

#[test]
fn what_is_stale_or_odd_changes_nothing() {
    let mut agent = trained();
    agent.hear(assign(5, &[]));
    assert_eq!(agent.hear(assign(4, &[(0, 1)])), Some(Note::Odd("stale assignment")));
    let missing = agent.hear(assign(5, &[(0, 9)]));
    assert_eq!(missing, Some(Note::Odd("a post for a process that is not here")));
    assert_eq!(agent.hear(Message::Acknowledged(Acknowledged { sequence: 1 })), None);
    let tempo = agent.hear(Message::Tempo(Tempo { heartbeat_interval_ms: 0 }));
    assert_eq!(tempo, Some(Note::Tempo { interval: MIN_INTERVAL }));
    let refused = agent.hear(Message::Refused(Refused { reason: "no".to_owned() }));
    assert_eq!(refused, Some(Note::Refused("no".to_owned())));
    assert!(agent.beat(0).events.is_empty());
}
