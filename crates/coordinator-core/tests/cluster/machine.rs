//! A worker and its rank processes, as the contract has them: processes outlive generations; what a rank did is
//! kept until the coordinator says that it is durable, and told again on every new stream.

use super::{CHECKPOINT_EVERY, Cluster, report_of};
use mcl_coordinator_core::{
    Event, FailureKind, Hello, Holding, Origin, ProcessId, RankEvent, RankPost, RankProcess, RankSaid,
    SessionId, ToWorker,
};
use mcl_types::{FencingToken, Generation, LaneLayout, Rank, Term, Tier, WorkerName};
use std::collections::{BTreeMap, VecDeque};

/// How far a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    Preparing,
    /// Prepared, in no group.
    Idle,
    Joining,
    Ready,
    Training,
    Parked,
}

/// What a process holds: for each step that it applied the generation that applied it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub history: Vec<Generation>,
    pub trained_in: Generation,
    /// It can recount from here on.
    pub recorded_from: u64,
}

#[derive(Debug, Clone)]
pub struct Process {
    pub id: ProcessId,
    pub stage: Stage,
    pub joined: Generation,
    pub rank: u32,
    pub held: Option<Held>,
}

#[derive(Debug, Clone)]
pub struct Machine {
    pub name: WorkerName,
    pub devices: Vec<String>,
    pub session: Option<SessionId>,
    /// Persisted: survives the daemon.
    pub highest: FencingToken,
    pub processes: BTreeMap<String, Process>,
    /// It was told to keep processes ready.
    pub standing: bool,
    pub leaving: bool,
    /// The generation that it was assigned last.
    pub generation: Generation,
    /// Epochs below are granted to each rank.
    pub granted: BTreeMap<u32, u64>,
    /// Everything of the current generation that is not known to be durable.
    pub kept: Vec<RankEvent>,
    /// Said and not sent yet.
    pub fresh: Vec<RankEvent>,
    /// On the wire.
    pub up: VecDeque<Event>,
    pub dismissed: bool,
    /// Never used twice, also over lives of the daemon.
    pub next_process: u64,
}

impl Machine {
    pub fn new(name: WorkerName, devices: usize) -> Self {
        Self {
            name,
            devices: (0..devices).map(|d| format!("cuda:{d}")).collect(),
            session: None,
            highest: FencingToken::default(),
            processes: BTreeMap::new(),
            standing: false,
            leaving: false,
            generation: Generation::new(0),
            granted: BTreeMap::new(),
            kept: Vec::new(),
            fresh: Vec::new(),
            up: VecDeque::new(),
            dismissed: false,
            next_process: 1,
        }
    }

    /// Ranks of the generation that it was assigned last, with their stage.
    pub fn ranks(&self) -> BTreeMap<u32, Stage> {
        self.processes
            .values()
            .filter(|p| p.joined == self.generation && p.joined.get() > 0)
            .map(|p| (p.rank, p.stage.clone()))
            .collect()
    }

    fn say(&mut self, device: &str, process: &Process, said: RankSaid) {
        let event = RankEvent {
            generation: process.joined,
            rank: Rank::new(process.rank),
            device: device.to_owned(),
            process: process.id,
            said,
        };
        if event.generation.get() > 0 && event.generation == self.generation {
            self.kept.push(event.clone());
        }
        self.fresh.push(event);
    }

    /// A process on every device that has none.
    fn fill(&mut self) {
        for device in self.devices.clone() {
            if self.standing && !self.processes.contains_key(&device) {
                let process = Process {
                    id: ProcessId(self.next_process),
                    stage: Stage::Preparing,
                    joined: Generation::new(0),
                    rank: 0,
                    held: None,
                };
                self.next_process += 1;
                self.say(&device, &process, RankSaid::Spawned);
                self.processes.insert(device, process);
            }
        }
    }
}

impl Cluster {
    pub fn connect(&mut self, name: &WorkerName) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let run_id = Some(self.spec.run_id.clone());
        let machine = self.machines.get_mut(name).unwrap();
        if let Some(old) = machine.session.take() {
            self.down.remove(&old);
        }
        machine.session = Some(session);
        machine.up.clear();
        machine.fresh = machine.kept.clone();
        let processes = machine.processes.iter().map(|(device, p)| RankProcess {
            device: device.clone(),
            process: p.id,
            run_id: run_id.clone(),
            prepared: p.stage != Stage::Preparing,
            generation: p.joined,
            holds_state: p.held.is_some(),
        });
        let hello = Hello {
            worker: name.clone(),
            build: "0.1.0".to_owned(),
            libtorch: "2.11.0".to_owned(),
            devices: machine.devices.clone(),
            advertise: format!("host-{name}"),
            highest: machine.highest,
            processes: processes.collect(),
            leaving: machine.leaving,
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

    /// A heartbeat with everything new.
    pub fn beat(&mut self, name: &WorkerName) {
        let machine = self.machines.get_mut(name).unwrap();
        if let Some(session) = machine.session {
            let events = std::mem::take(&mut machine.fresh);
            machine.up.push_back(Event::Heartbeat { session, leaving: machine.leaving, events });
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
        if let Some(Event::Heartbeat { session, leaving, events }) = machine.up.front().cloned() {
            let events = events.iter().cloned().chain(events.iter().rev().cloned()).collect();
            machine.up.push_front(Event::Heartbeat { session, leaving, events });
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
            ToWorker::Prepare => {
                machine.standing = !machine.leaving;
                machine.dismissed = false;
                machine.fill();
            }
            ToWorker::Assign { generation, committed, ranks, .. } => {
                self.assigned(name, generation, committed, ranks);
            }
            ToWorker::Start { generation, first, origin, .. } if generation == machine.generation => {
                self.started(name, generation, first, origin);
            }
            ToWorker::Committed { generation, step } if generation == machine.generation => {
                machine.kept.retain(|e| !matches!(&e.said, RankSaid::Step(r) if r.step <= step));
                for process in machine.processes.values_mut().filter(|p| p.joined == generation) {
                    if let Some(held) = &mut process.held {
                        held.recorded_from =
                            held.recorded_from.max((step + 1).min(held.history.len() as u64));
                    }
                }
            }
            ToWorker::Grant { generation, rank, epoch, .. } if generation == machine.generation => {
                let granted = machine.granted.entry(rank.get()).or_default();
                *granted = (*granted).max(epoch + 1);
            }
            ToWorker::Drain { generation } | ToWorker::Pause { generation }
                if generation == machine.generation =>
            {
                let stage = matches!(message, ToWorker::Drain { .. });
                let fabric = self.fabrics.get_mut(&generation).unwrap();
                let most = fabric.applied.values().copied().max().unwrap();
                // A rank within a step goes on to its end.
                fabric.stop_at.get_or_insert((most, stage));
            }
            ToWorker::Break { generation, .. } if generation == machine.generation => {
                self.break_ranks(name, generation);
            }
            ToWorker::Recount { generation, rank, steps } if generation == machine.generation => {
                self.recount(name, rank.get(), steps);
            }
            ToWorker::Stop { generation, rank, .. } if generation == machine.generation => {
                let device =
                    machine.processes.iter().find(|(_, p)| p.joined == generation && p.rank == rank.get());
                if let Some(device) = device.map(|(d, _)| d.clone()) {
                    self.end_process(name, &device, "exit status 0");
                }
            }
            ToWorker::Dismiss { leave, .. } => {
                self.stop(name);
                let machine = self.machines.get_mut(name).unwrap();
                machine.dismissed = true;
                if leave {
                    // It comes back as a new one.
                    self.kill_machine(name, true, true);
                }
            }
            ToWorker::Refused { reason } => panic!("{name} was refused: {reason}"),
            _ => {}
        }
    }

    fn assigned(&mut self, name: &WorkerName, generation: Generation, committed: u64, posts: Vec<RankPost>) {
        let term = Term::new(self.journal.term);
        let machine = self.machines.get_mut(name).unwrap();
        if generation <= machine.generation {
            return;
        }
        let mut left = Vec::new();
        machine.highest = FencingToken { term, generation };
        machine.generation = generation;
        machine.granted.clear();
        let unsent: Vec<RankEvent> = machine.fresh.clone();
        machine.kept.clear();
        machine.fresh = unsent
            .into_iter()
            .filter(|e| !matches!(e.said, RankSaid::Step(_) | RankSaid::Staged { .. }))
            .collect();
        for post in posts {
            match machine.processes.get_mut(&post.device).filter(|p| p.id == post.process) {
                Some(process) => {
                    assert_ne!(process.stage, Stage::Preparing, "only prepared processes are assigned");
                    left.push(process.joined);
                    process.joined = generation;
                    process.rank = post.rank.get();
                    process.stage = Stage::Joining;
                    if let Some(held) = &mut process.held {
                        held.recorded_from = held.recorded_from.max(committed.min(held.history.len() as u64));
                    }
                }
                None => {
                    let gone = Process {
                        id: post.process,
                        stage: Stage::Idle,
                        joined: generation,
                        rank: post.rank.get(),
                        held: None,
                    };
                    let message = "the process is not there any more".to_owned();
                    let said = RankSaid::Failed { kind: FailureKind::Other, message, step: None };
                    machine.say(&post.device, &gone, said);
                }
            }
        }
        for old in left {
            if let Some(fabric) = self.fabrics.get_mut(&old) {
                fabric.lose();
            }
        }
    }

    fn started(&mut self, name: &WorkerName, generation: Generation, first: u64, origin: Origin) {
        let ledger = self.ledger.clone();
        let machine = self.machines.get_mut(name).unwrap();
        let fabric = self.fabrics.get_mut(&generation).unwrap();
        for process in machine.processes.values_mut().filter(|p| p.joined == generation) {
            if process.stage != Stage::Ready {
                continue;
            }
            process.stage = Stage::Training;
            fabric.started.insert(process.rank);
            if origin == Origin::Rank(Rank::new(process.rank)) {
                let history = process.held.as_ref().map(|h| h.history.clone()).unwrap();
                fabric.state = Some(history);
            }
        }
        match origin {
            Origin::Checkpoint(step) => fabric.state = Some(self.contents[&step].clone()),
            Origin::Seed => fabric.state = Some(Vec::new()),
            Origin::Rank(_) => {}
        }
        fabric.first = first;
        for rank in 0..fabric.world {
            fabric.applied.entry(rank).or_insert(first);
        }
        // What leads to the weights is what the ledger says, to the step and generation. A start that arrives after
        // the coordinator has gone on without this generation leads nowhere.
        let lives =
            self.journal.live && self.journal.formed.as_ref().is_some_and(|f| f.generation == generation);
        if let Some(state) = fabric.state.as_ref().filter(|_| lives) {
            assert_eq!(state.len() as u64, first, "the state is not that of the first step");
            let told: Vec<Generation> =
                ledger.iter().take(state.len()).map(|g| Generation::new(*g)).collect();
            assert_eq!(*state, told, "the state came about otherwise than the ledger says");
        }
    }

    /// Training ranks lose their group and wait.
    fn break_ranks(&mut self, name: &WorkerName, generation: Generation) {
        let machine = self.machines.get_mut(name).unwrap();
        let mut any = false;
        for device in machine.devices.clone() {
            let Some(mut process) = machine.processes.get(&device).cloned() else { continue };
            let busy = matches!(process.stage, Stage::Joining | Stage::Ready | Stage::Training);
            if process.joined == generation && busy {
                any = true;
                process.stage = Stage::Idle;
                let said = RankSaid::Broken {
                    message: "told to leave".to_owned(),
                    step: None,
                    activity: "backward".to_owned(),
                };
                machine.say(&device, &process, said);
                machine.processes.insert(device, process);
            }
        }
        if any {
            self.fabrics.get_mut(&generation).unwrap().lose();
        }
    }

    fn recount(&mut self, name: &WorkerName, rank: u32, steps: std::ops::Range<u64>) {
        let spec = self.spec.clone();
        let machine = self.machines.get_mut(name).unwrap();
        let generation = machine.generation;
        let found = machine.processes.iter().find(|(_, p)| p.joined == generation && p.rank == rank);
        let Some((device, process)) = found.map(|(d, p)| (d.clone(), p.clone())) else { return };
        let held = process.held.as_ref().unwrap();
        assert!(
            held.recorded_from <= steps.start && steps.end <= held.history.len() as u64,
            "{held:?} {steps:?}"
        );
        let told = steps
            .map(|step| {
                let generation = held.history[usize::try_from(step).unwrap()];
                (generation, report_of(&spec, 0..spec.lanes, step))
            })
            .collect();
        machine.say(&device, &process, RankSaid::Recounted(told));
    }

    fn stop(&mut self, name: &WorkerName) {
        let machine = self.machines.get_mut(name).unwrap();
        machine.standing = false;
        let gone: Vec<Generation> = machine.processes.values().map(|p| p.joined).collect();
        machine.processes.clear();
        machine.granted.clear();
        machine.kept.clear();
        machine.fresh.clear();
        for generation in gone {
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
        machine.leaving = false;
        if !disk {
            machine.highest = FencingToken::default();
        }
    }

    fn end_process(&mut self, name: &WorkerName, device: &str, status: &str) {
        let machine = self.machines.get_mut(name).unwrap();
        let Some(process) = machine.processes.remove(device) else { return };
        let said = RankSaid::Exited { status: status.to_owned(), last_words: String::new() };
        machine.say(device, &process, said);
        machine.fill();
        if let Some(fabric) = self.fabrics.get_mut(&process.joined) {
            fabric.lose();
        }
    }

    /// One rank process dies; its worker sees it and starts another one.
    pub fn kill_rank(&mut self, name: &WorkerName, which: usize) {
        let device = self.machines[name].processes.keys().nth(which).cloned();
        if let Some(device) = device {
            self.end_process(name, &device, "signal 9");
        }
    }

    /// A rank says that it cannot go on, and ends.
    pub fn fail(&mut self, name: &WorkerName, kind: FailureKind, message: &str) {
        let machine = self.machines.get_mut(name).unwrap();
        let Some((device, process)) = machine.processes.iter().next().map(|(d, p)| (d.clone(), p.clone()))
        else {
            return;
        };
        machine.say(&device, &process, RankSaid::Failed { kind, message: message.to_owned(), step: Some(3) });
        self.end_process(name, &device, "exit status 1");
    }

    /// Every process of the machine does the next thing it can.
    pub fn act(&mut self, name: &WorkerName) {
        for device in self.machines[name].processes.keys().cloned().collect::<Vec<_>>() {
            self.act_process(name, &device);
        }
    }

    fn act_process(&mut self, name: &WorkerName, device: &str) {
        let machine = self.machines.get_mut(name).unwrap();
        let mut process = machine.processes[device].clone();
        match process.stage {
            Stage::Preparing => {
                process.stage = Stage::Idle;
                machine.say(device, &process, RankSaid::Prepared);
            }
            Stage::Joining => {
                process.stage = Stage::Ready;
                let store_address = if process.rank == 0 { "host:4711".to_owned() } else { String::new() };
                let holding = process.held.as_ref().map_or_else(Holding::default, |h| Holding {
                    applied: Some(h.history.len() as u64),
                    trained_in: h.trained_in,
                    recorded_from: h.recorded_from,
                });
                machine.say(device, &process, RankSaid::Ready { store_address, holding });
            }
            Stage::Idle | Stage::Ready | Stage::Parked => return,
            Stage::Training => return self.train(name, device, process),
        }
        self.machines.get_mut(name).unwrap().processes.insert(device.to_owned(), process);
    }

    fn train(&mut self, name: &WorkerName, device: &str, mut process: Process) {
        let (total, generation, rank) = (self.spec.total_steps(), process.joined, process.rank);
        let spec = self.spec.clone();
        let machine = self.machines.get_mut(name).unwrap();
        let fabric = self.fabrics.get_mut(&generation).unwrap();
        if fabric.broken {
            process.stage = Stage::Idle;
            let message = "connection closed by peer".to_owned();
            machine.say(device, &process, RankSaid::Broken { message, step: None, activity: String::new() });
        } else if fabric.started.len() < fabric.world as usize {
            return;
        } else if !fabric.levelled.contains(&rank) {
            fabric.levelled.insert(rank);
            let state = fabric.state.clone().unwrap();
            let keeps = process.held.as_ref().is_some_and(|h| h.history == state);
            if !keeps {
                let recorded_from = state.len() as u64;
                process.held = Some(Held { history: state, trained_in: generation, recorded_from });
            }
            let next_step = fabric.first;
            machine.say(device, &process, RankSaid::Training { next_step });
        } else {
            let applied = fabric.applied[&rank];
            let (stop, stages) = fabric.stop_at.unwrap_or((total, true));
            if applied == stop.min(total) {
                process.stage = Stage::Parked;
                machine.processes.insert(device.to_owned(), process.clone());
                let said = match () {
                    () if applied == total => RankSaid::Finished,
                    () if stages => RankSaid::Drained { step: applied },
                    () => RankSaid::Paused { step: applied },
                };
                if stages || applied == total {
                    self.stage(name, device, applied, Tier::Durable);
                }
                self.machines.get_mut(name).unwrap().say(device, &process, said);
                return;
            }
            let slowest = fabric.applied.values().copied().min().unwrap();
            let granted = machine.granted.get(&rank).copied().unwrap_or(0);
            let all_level = fabric.levelled.len() == fabric.world as usize;
            if applied > slowest || !all_level || spec.position(applied).epoch.get() >= granted {
                return;
            }
            fabric.applied.insert(rank, applied + 1);
            let held = process.held.as_mut().unwrap();
            held.history.push(generation);
            held.trained_in = generation;
            let layout = LaneLayout::new(spec.lanes, fabric.world).unwrap();
            machine.say(
                device,
                &process,
                RankSaid::Step(report_of(&spec, layout.lanes_of(Rank::new(rank)), applied)),
            );
            machine.processes.insert(device.to_owned(), process);
            let memory_every = self.memory_every;
            if (applied + 1).is_multiple_of(CHECKPOINT_EVERY) {
                self.stage(name, device, applied + 1, Tier::Durable);
            } else if memory_every > 0 && (applied + 1).is_multiple_of(memory_every) {
                self.stage(name, device, applied + 1, Tier::Memory);
            }
            return;
        }
        self.machines.get_mut(name).unwrap().processes.insert(device.to_owned(), process);
    }

    fn stage(&mut self, name: &WorkerName, device: &str, step: u64, tier: Tier) {
        let machine = self.machines.get_mut(name).unwrap();
        let process = machine.processes[device].clone();
        let slices = self.fabrics[&process.joined].world;
        let stored = self.stored.entry((step, process.joined)).or_default();
        stored.insert(process.rank);
        self.staged_contents.insert((step, process.joined), process.held.as_ref().unwrap().history.clone());
        machine.say(device, &process, RankSaid::Staged { step, slices, tier });
    }
}
