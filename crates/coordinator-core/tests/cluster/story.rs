//! Words that stories are told with.

use super::{Cluster, spec};
use mcl_coordinator_core::{Event, JobSpec, Outcome, Phase, ProcessId, RankEvent, RankSaid, Settings};
use mcl_types::{Generation, Rank, WorkerName};
use std::time::Duration;

pub const SECOND: Duration = Duration::from_secs(1);

pub fn name(text: &str) -> WorkerName {
    WorkerName::new(text)
}

pub fn two_workers(lanes: u32, steps: u64) -> Cluster {
    let settings = Settings { expected_workers: Some(2), ..Settings::default() };
    let mut cluster = Cluster::new(settings, spec(lanes, steps, 8));
    cluster.add("w1", 1);
    cluster.add("w2", 1);
    cluster.submit();
    cluster
}

pub fn with(spec: JobSpec, settings: Settings, machines: &[usize]) -> Cluster {
    let mut cluster = Cluster::new(settings, spec);
    for (i, devices) in machines.iter().enumerate() {
        cluster.add(&format!("w{}", i + 1), *devices);
    }
    cluster.submit();
    cluster
}

pub fn reason(cluster: &Cluster) -> String {
    cluster.state.phase(cluster.now).1.to_string()
}

pub fn phase(cluster: &Cluster) -> Phase {
    cluster.state.phase(cluster.now).0
}

/// The worker is heard by the coordinator without its processes doing anything.
pub fn join(cluster: &mut Cluster, worker: &str) {
    cluster.connect(&name(worker));
    cluster.deliver_up(&name(worker), usize::MAX);
}

/// The worker hears everything, its processes do the next thing, the coordinator hears of it.
pub fn turn(cluster: &mut Cluster, worker: &str) {
    cluster.deliver_down(&name(worker), usize::MAX);
    cluster.act(&name(worker));
    cluster.beat(&name(worker));
    cluster.deliver_up(&name(worker), usize::MAX);
}

/// The worker joins and its processes are prepared.
pub fn come(cluster: &mut Cluster, worker: &str) {
    join(cluster, worker);
    turn(cluster, worker);
}

pub fn failed(cluster: &Cluster) -> String {
    match &cluster.over {
        Some(Outcome::Failed(failure)) => failure.to_string(),
        other => panic!("expected a failure, found {other:?}"),
    }
}

/// As the process that is this rank would say it.
pub fn rank_event(cluster: &Cluster, generation: u64, rank: u32, said: RankSaid) -> RankEvent {
    let all = cluster.machines.values().flat_map(|m| &m.processes);
    let found = all.clone().find(|(_, p)| p.joined.get() == generation && p.rank == rank);
    let found = found.or_else(|| all.clone().find(|(_, p)| p.rank == rank));
    let (device, process) = found.map_or((String::new(), ProcessId(0)), |(d, p)| (d.clone(), p.id));
    RankEvent { generation: Generation::new(generation), rank: Rank::new(rank), device, process, said }
}

pub fn tell(cluster: &mut Cluster, worker: &str, event: RankEvent) {
    let session = cluster.machines[&name(worker)].session.unwrap();
    cluster.apply(Event::Heartbeat { session, leaving: false, events: vec![event] });
}
