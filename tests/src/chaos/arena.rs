//! The cluster under fire, and the hands that reach into it.
//!
//! Invariant: who is down on purpose is known here, so that an end that nobody ordered is found.

use super::disk::Disk;
use super::family::{Family, WORKERS};
use super::relay::Relay;
use super::schedule::Service;
use crate::Sandbox;
use crate::cluster::{Cluster, Daemon, names, tail};
use crate::network::Network;
use crate::processes::{self, ProcessId};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitStatus;
use std::time::Duration;

/// Size of the coordinator's and of the checkpoint service's disk. Only what is used costs memory.
const DISK_BYTES: u64 = 256 << 20;

/// What a rank says that it does in a step that is not applied yet.
const IN_A_STEP: [&str; 3] = ["activity=forward", "activity=backward", "activity=update"];

/// The generation that a line of a worker's log puts it into.
fn assigned_generation(line: &str) -> Option<u64> {
    let digits = line.split_once(": assigned ")?.1.split_once("generation ")?.1;
    digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// One daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    /// A worker, counted from 0.
    Worker(usize),
    /// The coordinator.
    Coordinator,
    /// The checkpoint service.
    Checkpoint,
}

impl From<Service> for Who {
    fn from(service: Service) -> Self {
        match service {
            Service::Coordinator => Self::Coordinator,
            Service::Checkpoint => Self::Checkpoint,
        }
    }
}

/// The cluster and what surrounds it. Fields are dropped in this order: processes before what they stand on.
#[derive(Debug)]
pub(super) struct Arena {
    /// The daemons.
    pub(super) cluster: Cluster,
    /// Names of the workers.
    pub(super) names: Vec<String>,
    relays: Vec<Relay>,
    network: Option<Network>,
    disks: Option<(Disk, Disk)>,
    /// Who may end now.
    pub(super) may_end: BTreeSet<Who>,
}

impl Arena {
    /// An empty one in `name` of the sandbox; with networks and disks of its own where that is allowed and asked for.
    pub(super) fn new(sandbox: &Sandbox, name: &str, isolate: bool) -> Self {
        let network = if isolate { Network::make(WORKERS) } else { None };
        let at = network.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), Network::services);
        let mut cluster = Cluster::at(sandbox, name, at);
        let mount = |what: &str| Disk::mount(sandbox.path(&format!("{name}/{what}")), DISK_BYTES);
        let disks = if isolate { mount("disk-run").zip(mount("disk-store")) } else { None };
        if let Some((run, store)) = &disks {
            cluster.run_dir = run.folder().join("run");
            cluster.store = store.folder().join("store");
        }
        let relays: Vec<Relay> =
            (0..WORKERS).map(|_| Relay::start(at, cluster.coordinator_address)).collect();
        let names = names(WORKERS);
        for (index, name) in names.iter().enumerate() {
            let seat = cluster.seat(name);
            seat.coordinator = Some(relays[index].url());
            if let Some(network) = &network {
                seat.advertise = Some(network.address(index).to_string());
                seat.launcher = network.launcher(index);
            }
        }
        Self { cluster, names, relays, network, disks, may_end: BTreeSet::new() }
    }

    /// Services and all workers, then the job.
    pub(super) fn start(&mut self, sandbox: &Sandbox, family: Family, steps: u64) {
        self.cluster.start_services();
        for worker in 0..WORKERS {
            self.start_one(Who::Worker(worker));
        }
        let job = family.job(steps);
        self.cluster.submit(sandbox, &job.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Whether machines have networks of their own.
    pub(super) const fn has_network(&self) -> bool {
        self.network.is_some()
    }

    /// Whether disks can be filled.
    pub(super) const fn has_disks(&self) -> bool {
        self.disks.is_some()
    }

    /// Process of a daemon that is up.
    pub(super) fn pid(&self, who: Who) -> Option<ProcessId> {
        self.daemon(who).map(Daemon::pid)
    }

    fn daemon(&self, who: Who) -> Option<&Daemon> {
        match who {
            Who::Worker(w) => self.cluster.workers.get(&self.names[w]),
            Who::Coordinator => self.cluster.coordinator.as_ref(),
            Who::Checkpoint => self.cluster.checkpoint.as_ref(),
        }
    }

    /// The generation that a worker was put into last, as it says itself.
    pub(super) fn generation_of(&self, worker: usize) -> Option<u64> {
        let said = self.cluster.said(&self.name(Who::Worker(worker)));
        said.lines().rev().find_map(assigned_generation)
    }

    /// Generations in which a rank that lived on broke a step off: each costs the computation of that step.
    pub(super) fn generations_broken_off(&self) -> usize {
        let mut broken = BTreeSet::new();
        for worker in 0..WORKERS {
            let mut current = 0;
            for line in self.cluster.said(&self.name(Who::Worker(worker))).lines() {
                let over = line.contains("generation over");
                if let Some(assigned) = assigned_generation(line) {
                    current = assigned;
                } else if over && IN_A_STEP.iter().any(|doing| line.contains(doing)) {
                    broken.insert(current);
                }
            }
        }
        broken.len()
    }

    /// Takes back whatever is done to links, disks and daemons that are up.
    pub(super) fn heal(&self) {
        for worker in 0..WORKERS {
            self.cut(worker, false);
            self.stall(worker, false);
            self.late(worker, Duration::ZERO);
        }
        for service in [Service::Coordinator, Service::Checkpoint] {
            self.fill(service, false);
        }
        for who in (0..WORKERS).map(Who::Worker).chain([Who::Coordinator, Who::Checkpoint]) {
            self.signal(who, Signal::SIGCONT);
        }
    }

    /// How people call it; also its log's name.
    pub(super) fn name(&self, who: Who) -> String {
        match who {
            Who::Worker(w) => format!("worker-{}", self.names[w]),
            Who::Coordinator => "coordinator".to_owned(),
            Who::Checkpoint => "checkpoint".to_owned(),
        }
    }

    /// Rank process of a worker.
    pub(super) fn rank(&self, worker: usize) -> Option<ProcessId> {
        self.cluster.rank(&self.names[worker])
    }

    /// Starts a daemon, unless it is up.
    pub(super) fn start_one(&mut self, who: Who) {
        self.may_end.remove(&who);
        if self.pid(who).is_some() {
            return;
        }
        match who {
            Who::Worker(w) => self.cluster.start_worker(&self.names[w].clone()),
            Who::Coordinator => self.cluster.launch_coordinator(),
            Who::Checkpoint => self.cluster.launch_checkpoint(),
        }
    }

    /// Starts a worker whose ranks have a failpoint.
    pub(super) fn start_with_failpoint(&mut self, worker: usize, failpoint: &str) {
        let name = self.names[worker].clone();
        let variable = ("MCL_FAILPOINT".to_owned(), failpoint.to_owned());
        self.cluster.seat(&name).environment = vec![variable];
        self.start_one(Who::Worker(worker));
        self.cluster.seat(&name).environment.clear();
    }

    /// SIGKILL for a daemon alone.
    pub(super) fn kill(&mut self, who: Who) {
        match who {
            Who::Worker(w) => self.cluster.kill_worker(&self.names[w].clone()),
            Who::Coordinator => drop(self.cluster.coordinator.take().map(Daemon::kill)),
            Who::Checkpoint => drop(self.cluster.checkpoint.take().map(Daemon::kill)),
        }
    }

    /// SIGKILL for all workers and ranks.
    pub(super) fn kill_everybody(&mut self) {
        self.cluster.kill_all_workers();
    }

    /// Sends a daemon a signal.
    pub(super) fn signal(&self, who: Who, signal: Signal) {
        if let Some(pid) = self.pid(who) {
            processes::signal(pid, signal);
        }
    }

    /// Takes a machine off the network, or brings it back.
    pub(super) fn cut(&self, worker: usize, yes: bool) {
        match &self.network {
            Some(network) => network.cut(worker, yes),
            None => self.relays[worker].cut(yes),
        }
    }

    /// Nothing passes between a worker and the coordinator, or it does again.
    pub(super) fn stall(&self, worker: usize, yes: bool) {
        self.relays[worker].stall(yes);
    }

    /// What passes between a worker and the coordinator is late.
    pub(super) fn late(&self, worker: usize, time: Duration) {
        self.relays[worker].late(time);
    }

    /// Fills a service's disk, or gives the space back.
    pub(super) fn fill(&self, service: Service, full: bool) {
        let Some((run, store)) = &self.disks else { return };
        let disk = if service == Service::Coordinator { run } else { store };
        if full { disk.fill() } else { disk.free() }
    }

    /// Daemons that ended since the last call, with how and their last words; they are not up any more.
    pub(super) fn ended(&mut self) -> Vec<(Who, ExitStatus, String)> {
        let mut ends = Vec::new();
        for who in (0..WORKERS).map(Who::Worker).chain([Who::Coordinator, Who::Checkpoint]) {
            let daemon = match who {
                Who::Worker(w) => self.cluster.workers.get_mut(&self.names[w]),
                Who::Coordinator => self.cluster.coordinator.as_mut(),
                Who::Checkpoint => self.cluster.checkpoint.as_mut(),
            };
            let Some(status) = daemon.and_then(Daemon::ended) else { continue };
            // It has ended: this only forgets it.
            self.kill(who);
            ends.push((who, status, tail(&self.cluster.log(&self.name(who)))));
        }
        ends
    }

    /// Copies what lies on disks of its own to a folder that stays.
    pub(super) fn save_disks(&self, folder: &std::path::Path) {
        let Some((run, store)) = &self.disks else { return };
        for (disk, name) in [(run, "run"), (store, "store")] {
            disk.free();
            let from = disk.folder().join(name);
            let _ = std::process::Command::new("cp").arg("-a").arg(from).arg(folder.join(name)).status();
        }
    }
}
