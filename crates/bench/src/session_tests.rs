use super::*;
use crate::tally::Window;

const INTERVAL: Duration = Duration::from_millis(200);

fn setup(phase: f64) -> Setup {
    let address = "127.0.0.1:1".parse().unwrap();
    Setup {
        shared: Shared::new(1, 1, 0.0).unwrap(),
        trunk: Arc::new(Trunk::new(address, "127.0.0.1:1".to_owned(), None)),
        workloads: Arc::default(),
        interval: None,
        phase,
        origin: Instant::now(),
        leaving: watch::channel(false).1,
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_speaks_at_its_place_in_the_common_rhythm() {
    let setup = setup(0.25);
    let mut agent = Agent::new("w".to_owned(), 1);
    let mut session = Session::new(&mut agent, &setup, false);
    assert!(session.noted(Note::Welcome { interval: INTERVAL }).is_continue());
    let at = |ms| setup.origin + Duration::from_millis(ms);
    assert_eq!(session.next_beat, at(50));
    assert_eq!(session.slot_after(at(50)), at(250), "its own place is over");
    assert_eq!(session.slot_after(at(1000)), at(1050), "what was missed is not made up for");
    let interval = Duration::from_secs(1);
    assert!(session.noted(Note::Tempo { interval }).is_continue());
    assert_eq!(session.next_beat, at(250));
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_was_asked_for_outranks_the_coordinators() {
    let setup = Setup { interval: Some(INTERVAL), ..setup(0.0) };
    let mut agent = Agent::new("w".to_owned(), 1);
    let mut session = Session::new(&mut agent, &setup, false);
    let interval = Duration::from_secs(1);
    assert!(session.noted(Note::Welcome { interval }).is_continue());
    assert_eq!(session.next_beat, setup.origin + INTERVAL);
    assert_eq!(setup.shared.with(|t| (t.connected, t.welcomed, t.interval)), (1, 1, Some(interval)));
}

#[tokio::test(start_paused = true)]
async fn only_the_heartbeat_that_was_answered_counts_as_answered() {
    let setup = setup(0.0);
    let mut agent = Agent::new("w".to_owned(), 1);
    let mut session = Session::new(&mut agent, &setup, false);
    let now = Instant::now();
    setup.shared.with(|t| t.measure(Window { from: now, until: now + Duration::from_secs(1) }));
    for sequence in 1..=4 {
        let counts = sequence > 1 && setup.shared.with(|t| t.send(now, None, false));
        session.in_flight.push_back(Flight { sequence, sent: now, counts });
    }
    tokio::time::advance(Duration::from_millis(7)).await;
    session.answered(1);
    session.answered(3);
    session.answered(3);
    assert_eq!(session.in_flight.len(), 1);
    setup.shared.with(|t| {
        assert_eq!((t.sent, t.answered), (3, 1), "2 was passed over, 4 is under way");
        assert!((t.latency().max_ms - 7.0).abs() < 0.1);
    });
}

#[tokio::test(start_paused = true)]
async fn a_refusal_and_a_dismissal_end_an_agent() {
    let setup = setup(0.0);
    let mut agent = Agent::new("w".to_owned(), 1);
    let mut session = Session::new(&mut agent, &setup, false);
    assert!(session.noted(Note::Refused("no".to_owned())).is_break());
    assert!(session.noted(Note::Dismissed { leave: true }).is_break());
    assert!(session.noted(Note::Dismissed { leave: false }).is_continue());
    let counted =
        setup.shared.with(|t| t.errors.iter().map(|(kind, n, _)| (kind.to_owned(), n)).collect::<Vec<_>>());
    assert_eq!(counted, [("dismissed".to_owned(), 2), ("refused".to_owned(), 1)]);
}
