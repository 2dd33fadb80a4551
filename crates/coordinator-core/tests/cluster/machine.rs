//! A worker and its ranks, as the contract has them: what a rank did is kept until the coordinator says
//! that it is durable, and told again on every new stream.

use super::{CHECKPOINT_EVERY, Cluster};
use mcl_coordinator_core::{
    Event, FailureKind, Hello, LaneReport, RankEvent, RankSaid, SessionId, StepReport, ToWorker,
};
use mcl_plan::ledger::{LaneRecord, SampleHash, SampleRecord};
use mcl_types::{FencingToken, Generation, Lane, LaneLayout, Rank, SampleIndex, Term, WorkerName};
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RankState {
    Preparing,
    Ready,
    Training,
    Parked,
}

#[derive(Debug, Clone)]
pub struct Machine {
    pub name: WorkerName,
    pub devices: Vec<String>,
    pub session: Option<SessionId>,
    /// Persisted: survives the daemon.
    pub highest: FencingToken,
    /// The generation whose ranks it runs.
    pub generation: Generation,
    pub ranks: BTreeMap<u32, RankState>,
    /// Epochs below are granted to each rank.
    pub granted: BTreeMap<u32, u64>,
    /// Everything the current ranks said that is not known to be durable.
    pub kept: Vec<RankEvent>,
    /// Said and not sent yet.
    pub fresh: Vec<RankEvent>,
    /// On the wire.
    pub up: VecDeque<Event>,
    pub dismissed: bool,
}

impl Machine {
    pub fn new(name: WorkerName, devices: usize) -> Self {
        Self {
            name,
            devices: (0..devices).map(|d| format!("cuda:{d}")).collect(),
            session: None,
            highest: FencingToken::default(),
            generation: Generation::new(0),
            ranks: BTreeMap::new(),
            granted: BTreeMap::new(),
            kept: Vec::new(),
            fresh: Vec::new(),
            up: VecDeque::new(),
            dismissed: false,
        }
    }

    fn say(&mut self, rank: u32, said: RankSaid) {
        let event = RankEvent { generation: self.generation, rank: Rank::new(rank), said };
        self.kept.push(event.clone());
        self.fresh.push(event);
    }

    fn drop_ranks(&mut self) {
        self.granted.clear();
        self.ranks.clear();
        self.kept.clear();
        self.fresh.clear();
    }
}

impl Cluster {
    pub fn connect(&mut self, name: &WorkerName) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let machine = self.machines.get_mut(name).unwrap();
        if let Some(old) = machine.session.take() {
            self.down.remove(&old);
        }
        machine.session = Some(session);
        machine.up.clear();
        machine.fresh = machine.kept.clone();
        let hello = Hello {
            worker: name.clone(),
            build: "0.1.0".to_owned(),
            libtorch: "2.11.0".to_owned(),
            devices: machine.devices.clone(),
            advertise: format!("host-{name}"),
            highest: machine.highest,
        };
        self.down.insert(session, VecDeque::new());
        machine.up.push_back(Event::Connected { session, hello });
    }

    /// The stream breaks; the coordinator hears of it at once, or only by silence.
    pub fn cut(&mut self, name: &WorkerName, noticed: bool) {
        if let Some(session) = self.machines[name].session {
            self.break_session(session);
            if noticed {
                self.apply(Event::Disconnected { session });
            }
        }
    }

    /// A heartbeat with everything new; `twice` repeats it.
    pub fn beat(&mut self, name: &WorkerName) {
        let machine = self.machines.get_mut(name).unwrap();
        if let Some(session) = machine.session {
            let token = FencingToken { term: machine.highest.term, generation: machine.generation };
            let events = std::mem::take(&mut machine.fresh);
            machine.up.push_back(Event::Heartbeat { session, token: Some(token), events });
        }
    }

    pub fn deliver_up(&mut self, name: &WorkerName, most: usize) {
        for _ in 0..most {
            let Some(event) = self.machines.get_mut(name).unwrap().up.pop_front() else { return };
            self.apply(event);
        }
    }

    /// The network (or a buggy worker) repeats itself.
    pub fn repeat_up(&mut self, name: &WorkerName) {
        let machine = self.machines.get_mut(name).unwrap();
        if let Some(Event::Heartbeat { session, token, events }) = machine.up.front().cloned() {
            let events = events.iter().cloned().chain(events.iter().rev().cloned()).collect();
            machine.up.push_front(Event::Heartbeat { session, token, events });
        }
    }

    /// A worker tells its news in another order.
    pub fn reorder_up(&mut self, name: &WorkerName) {
        if let Some(Event::Heartbeat { events, .. }) = self.machines.get_mut(name).unwrap().up.front_mut() {
            events.reverse();
        }
    }

    pub fn deliver_down(&mut self, name: &WorkerName, most: usize) {
        for _ in 0..most {
            let Some(session) = self.machines[name].session else { return };
            let Some(message) = self.down.get_mut(&session).and_then(VecDeque::pop_front) else { return };
            self.hear(name, message);
        }
    }

    fn hear(&mut self, name: &WorkerName, message: ToWorker) {
        let term = Term::new(self.journal.term);
        let machine = self.machines.get_mut(name).unwrap();
        match message {
            ToWorker::Welcome => machine.highest.term = machine.highest.term.max(term),
            ToWorker::Assign { generation, ranks, .. } => {
                if generation <= machine.generation {
                    return;
                }
                let old: Vec<u32> = machine.ranks.keys().copied().collect();
                let was = machine.generation;
                machine.drop_ranks();
                machine.highest = FencingToken { term, generation };
                machine.generation = generation;
                machine.ranks = ranks.iter().map(|p| (p.rank.get(), RankState::Preparing)).collect();
                if !old.is_empty()
                    && let Some(fabric) = self.fabrics.get_mut(&was)
                {
                    fabric.lose();
                }
            }
            ToWorker::Start { generation, .. } if generation == machine.generation => {
                let fabric = self.fabrics.get_mut(&generation).unwrap();
                for (rank, state) in &mut machine.ranks {
                    if *state == RankState::Ready {
                        *state = RankState::Training;
                        fabric.started.insert(*rank);
                    }
                }
            }
            ToWorker::Committed { generation, step } if generation == machine.generation => {
                machine.kept.retain(|e| !matches!(&e.said, RankSaid::Step(r) if r.step <= step));
            }
            ToWorker::Grant { generation, rank, epoch, .. } if generation == machine.generation => {
                let granted = machine.granted.entry(rank.get()).or_default();
                *granted = (*granted).max(epoch + 1);
            }
            ToWorker::Drain { generation } if generation == machine.generation => {
                let fabric = self.fabrics.get_mut(&generation).unwrap();
                let most = fabric.applied.values().copied().max().unwrap();
                fabric.drain_at.get_or_insert(most);
            }
            ToWorker::Stop { generation, .. } if generation == machine.generation => self.stop(name),
            ToWorker::Dismiss { .. } => {
                machine.dismissed = true;
                self.stop(name);
            }
            ToWorker::Refused { reason } => panic!("{name} was refused: {reason}"),
            _ => {}
        }
    }

    fn stop(&mut self, name: &WorkerName) {
        let machine = self.machines.get_mut(name).unwrap();
        let generation = machine.generation;
        if !machine.ranks.is_empty() {
            machine.drop_ranks();
            if let Some(fabric) = self.fabrics.get_mut(&generation) {
                fabric.lose();
            }
        }
    }

    /// The daemon and its ranks die; a new one knows at most the token on its disk.
    pub fn kill_machine(&mut self, name: &WorkerName, noticed: bool, disk: bool) {
        self.cut(name, noticed);
        self.stop(name);
        let machine = self.machines.get_mut(name).unwrap();
        machine.generation = Generation::new(0);
        if !disk {
            machine.highest = FencingToken::default();
        }
    }

    /// One rank process dies; its worker sees it.
    pub fn kill_rank(&mut self, name: &WorkerName, which: usize) {
        let machine = self.machines.get_mut(name).unwrap();
        let Some(rank) = machine.ranks.keys().copied().nth(which) else { return };
        machine.ranks.remove(&rank);
        machine.say(rank, RankSaid::Exited { status: "signal 9".to_owned(), last_words: String::new() });
        if let Some(fabric) = self.fabrics.get_mut(&machine.generation) {
            fabric.lose();
        }
    }

    pub fn fail(&mut self, name: &WorkerName, kind: FailureKind, message: &str) {
        let machine = self.machines.get_mut(name).unwrap();
        let Some(rank) = machine.ranks.keys().copied().next() else { return };
        machine.ranks.remove(&rank);
        machine.say(rank, RankSaid::Failed { kind, message: message.to_owned(), step: Some(3) });
        if let Some(fabric) = self.fabrics.get_mut(&machine.generation) {
            fabric.lose();
        }
    }

    /// Every rank of the machine does the next thing it can.
    pub fn act(&mut self, name: &WorkerName) {
        for rank in self.machines[name].ranks.keys().copied().collect::<Vec<_>>() {
            self.act_rank(name, rank);
        }
    }

    fn act_rank(&mut self, name: &WorkerName, rank: u32) {
        let total = self.spec.total_steps();
        let machine = self.machines.get_mut(name).unwrap();
        let generation = machine.generation;
        let fabric = self.fabrics.get_mut(&generation).unwrap();
        match machine.ranks[&rank] {
            RankState::Preparing => {
                machine.ranks.insert(rank, RankState::Ready);
                let store_address = if rank == 0 { "host:4711".to_owned() } else { String::new() };
                machine.say(rank, RankSaid::Ready { store_address });
            }
            RankState::Ready | RankState::Parked => {}
            RankState::Training if fabric.broken => {
                machine.ranks.remove(&rank);
                let message = "connection closed by peer".to_owned();
                machine.say(rank, RankSaid::Failed { kind: FailureKind::Collective, message, step: None });
            }
            RankState::Training if fabric.started.len() < fabric.world as usize => {}
            RankState::Training => {
                let applied = fabric.applied[&rank];
                let stop = fabric.drain_at.unwrap_or(total).min(total);
                if applied == stop {
                    machine.ranks.insert(rank, RankState::Parked);
                    let said =
                        if stop == total { RankSaid::Finished } else { RankSaid::Drained { step: stop } };
                    self.stage(name, rank, stop);
                    self.machines.get_mut(name).unwrap().say(rank, said);
                    return;
                }
                let slowest = fabric.applied.values().copied().min().unwrap();
                let granted = machine.granted.get(&rank).copied().unwrap_or(0);
                if applied > slowest || self.spec.position(applied).epoch.get() >= granted {
                    return;
                }
                fabric.applied.insert(rank, applied + 1);
                let layout = LaneLayout::new(self.spec.lanes, fabric.world).unwrap();
                let report = report(&self.spec, layout, Rank::new(rank), applied);
                machine.say(rank, RankSaid::Step(report));
                if (applied + 1).is_multiple_of(CHECKPOINT_EVERY) {
                    self.stage(name, rank, applied + 1);
                }
            }
        }
    }

    fn stage(&mut self, name: &WorkerName, rank: u32, step: u64) {
        let machine = self.machines.get_mut(name).unwrap();
        let slices = self.fabrics[&machine.generation].world;
        self.stored.entry((step, machine.generation)).or_default().insert(rank);
        machine.say(rank, RankSaid::Staged { step, slices });
    }
}

pub fn report(spec: &mcl_coordinator_core::JobSpec, layout: LaneLayout, rank: Rank, step: u64) -> StepReport {
    let sample = |slot: u32| SampleRecord {
        index: SampleIndex::new(step * 100 + u64::from(slot)),
        id: String::new(),
        hash: SampleHash::from_bytes([0; 16]),
        replaces: None,
        reason: None,
    };
    let lane = |lane: u32| LaneReport {
        fed: LaneRecord { lane: Lane::new(lane), samples: (0..spec.images_per_lane).map(sample).collect() },
        losses: vec![f64::from(lane), 1.0],
    };
    StepReport {
        step,
        epoch: spec.position(step).epoch.get(),
        lanes: layout.lanes_of(rank).map(lane).collect(),
        learning_rate: 0.1,
        momentum: 0.99,
        grad_norm: 1.0,
        skipped: false,
        step_seconds: 0.5,
        data_wait_seconds: 0.1,
    }
}
