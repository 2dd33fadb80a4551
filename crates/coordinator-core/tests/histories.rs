//! Random histories: whatever happens, the invariants hold after each event; when the faults stop, the job
//! ends.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod cluster;

use cluster::{Cluster, patient, spec};
use mcl_coordinator_core::{Event, Outcome};
use mcl_types::WorkerName;
use proptest::prelude::*;
use std::time::Duration;

/// One thing that happens to worker `w` (modulo their number) or to the cluster.
#[derive(Debug, Clone)]
enum Op {
    Connect(usize),
    Cut(usize, bool),
    KillMachine(usize, bool, bool),
    KillRank(usize, usize),
    Act(usize),
    Beat(usize),
    Up(usize, usize),
    Down(usize, usize),
    Repeat(usize),
    Reorder(usize),
    Mend,
    Pass(u64),
    Service(bool, bool),
    Damage,
    Round,
    Rounds(usize),
    RestartCoordinator(bool),
    RestartService,
    RoundTrip,
    Drain,
    Resubmit,
    Leave(usize),
    Hold,
    Resume,
}

fn op() -> impl Strategy<Value = Op> {
    let w = 0..4_usize;
    prop_oneof![
        4 => w.clone().prop_map(Op::Connect),
        1 => (w.clone(), any::<bool>()).prop_map(|(w, n)| Op::Cut(w, n)),
        1 => (w.clone(), any::<bool>(), any::<bool>()).prop_map(|(w, n, d)| Op::KillMachine(w, n, d)),
        1 => (w.clone(), 0..2_usize).prop_map(|(w, r)| Op::KillRank(w, r)),
        12 => w.clone().prop_map(Op::Act),
        8 => w.clone().prop_map(Op::Beat),
        12 => (w.clone(), 1..4_usize).prop_map(|(w, n)| Op::Up(w, n)),
        12 => (w.clone(), 1..4_usize).prop_map(|(w, n)| Op::Down(w, n)),
        2 => w.clone().prop_map(Op::Repeat),
        2 => w.clone().prop_map(Op::Reorder),
        1 => w.prop_map(Op::Leave),
        1 => Just(Op::Hold),
        2 => Just(Op::Resume),
        3 => (50..4000_u64).prop_map(Op::Pass),
        4 => (prop::bool::weighted(0.1), any::<bool>()).prop_map(|(r, n)| Op::Service(r, n)),
        1 => Just(Op::Damage),
        1 => Just(Op::Mend),
        8 => Just(Op::Round),
        2 => (5..15_usize).prop_map(Op::Rounds),
        1 => any::<bool>().prop_map(Op::RestartCoordinator),
        1 => Just(Op::RestartService),
        1 => Just(Op::RoundTrip),
    ]
}

fn rare(drains: bool) -> BoxedStrategy<Op> {
    if drains {
        prop_oneof![40 => op(), 1 => Just(Op::Drain), 1 => Just(Op::Resubmit)].boxed()
    } else {
        op().boxed()
    }
}

fn perform(cluster: &mut Cluster, op: &Op) {
    let names: Vec<WorkerName> = cluster.machines.keys().cloned().collect();
    let name = |w: &usize| names[w % names.len()].clone();
    match op {
        Op::Connect(w) => cluster.connect(&name(w)),
        Op::Cut(w, noticed) => cluster.cut(&name(w), *noticed),
        Op::KillMachine(w, noticed, disk) => cluster.kill_machine(&name(w), *noticed, *disk),
        Op::KillRank(w, r) => cluster.kill_rank(&name(w), *r),
        Op::Act(w) => cluster.act(&name(w)),
        Op::Beat(w) => cluster.beat(&name(w)),
        Op::Up(w, n) => cluster.deliver_up(&name(w), *n),
        Op::Down(w, n) => cluster.deliver_down(&name(w), *n),
        Op::Repeat(w) => cluster.repeat_up(&name(w)),
        Op::Pass(ms) => cluster.advance(Duration::from_millis(*ms)),
        Op::Reorder(w) => cluster.reorder_up(&name(w)),
        Op::Service(refuse, newest) => cluster.answer(*refuse, *newest),
        Op::Damage => cluster.damage(),
        Op::Mend => cluster.mend(),
        Op::Round => cluster.round(),
        Op::Rounds(n) => (0..*n).for_each(|_| cluster.round()),
        Op::RestartCoordinator(done) => cluster.restart_coordinator(*done),
        Op::RestartService => cluster.restart_service(),
        Op::RoundTrip => cluster.round_trip(),
        Op::Leave(w) => cluster.machines.get_mut(&name(w)).unwrap().leaving = true,
        Op::Hold => cluster.apply(Event::Hold),
        Op::Resume => cluster.apply(Event::Resume),
        Op::Drain => cluster.apply(Event::Drain),
        Op::Resubmit => cluster.submit(),
    }
}

fn cluster(machines: &[usize], lanes: u32, steps: u64, max: Option<u32>) -> Cluster {
    let mut spec = spec(lanes, steps, 7);
    let devices: usize = machines.iter().sum();
    // A limit that all devices together can keep.
    spec.max_lanes_per_rank = max.filter(|m| lanes.div_ceil(*m) as usize <= devices);
    let mut cluster = Cluster::new(patient(), spec);
    for (i, devices) in machines.iter().enumerate() {
        cluster.add(&format!("w{i}"), *devices);
    }
    cluster
}

fn machines() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..3_usize, 1..4)
}

/// Random histories a property.
const CASES: u32 = 6_000;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    #[test]
    fn invariants_hold_and_a_healed_cluster_finishes(
        machines in machines(),
        lanes in 1..6_u32,
        steps in 1..40_u64,
        max in prop::option::of(1..4_u32),
        memory_every in 0..4_u64,
        ops in prop::collection::vec(rare(false), 1..200),
    ) {
        let mut cluster = cluster(&machines, lanes, steps, max);
        cluster.memory_every = memory_every;
        cluster.submit();
        for op in &ops {
            perform(&mut cluster, op);
        }
        cluster.apply(Event::Resume);
        let outcome = cluster.run(2_000);
        prop_assert_eq!(outcome, Some(Outcome::Done { steps }), "{:?}", cluster.state.phase(cluster.now));
        prop_assert_eq!(cluster.ledger.len() as u64, steps);
        prop_assert!(cluster.visible.contains(&steps));
        prop_assert_eq!(cluster.commits, cluster.ledger.len() + cluster.rolled_back);
    }

    #[test]
    fn drains_and_continuations_hold_too(
        machines in machines(),
        lanes in 1..6_u32,
        steps in 1..40_u64,
        memory_every in 0..4_u64,
        ops in prop::collection::vec(rare(true), 1..200),
    ) {
        let mut cluster = cluster(&machines, lanes, steps, None);
        cluster.memory_every = memory_every;
        cluster.submit();
        for op in &ops {
            perform(&mut cluster, op);
        }
        // Whatever was drained is continued until it is done.
        for _ in 0..3 {
            cluster.apply(Event::Resume);
            let outcome = cluster.run(2_000);
            prop_assert!(outcome.is_some(), "{:?}", cluster.state.phase(cluster.now));
            if outcome == Some(Outcome::Done { steps }) {
                break;
            }
            cluster.submit();
        }
        prop_assert_eq!(&cluster.over, &Some(Outcome::Done { steps }));
        prop_assert_eq!(cluster.ledger.len() as u64, steps);
    }
}
