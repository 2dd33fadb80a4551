//! A worker daemon with its rank processes, as far as a coordinator can tell: pure, one message in, what to say
//! out.
//!
//! Invariants: events are stamped with the generation that the process joined last, and are of the process that
//! the device has now; no step is reported that was not granted, or twice on one stream. After an outage
//! everything that was not committed is said again. Left out: sockets, time, measurements (`session.rs`).

use crate::workload::Workload;
use mcl_proto::v1::rank_command::Command;
use mcl_proto::v1::rank_event::Event as Said;
use mcl_proto::v1::session_response::Message;
use mcl_proto::v1::{
    Assign, Broken, Drained, Exited, Heartbeat, Hello, Paused, Prepared, RankEvent, RankProcess, Ready,
    Recount, Recounted, RecountedStep, Relay, Spawned, Start, Training, start::Origin,
};
use mcl_types::{FencingToken, Generation, Term};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Steps that a rank which is behind reports in one heartbeat at most.
const CATCH_UP: u64 = 4;
/// Shortest heartbeat interval that is obeyed, as real workers have it.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// What of it is of interest outside.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Note {
    /// It may take part.
    Welcome { interval: Duration },
    /// To speak more or less often from now on.
    Tempo { interval: Duration },
    /// So many of its ranks were started.
    Started { generation: u64, world: u32, ranks: u32, first_step: u64 },
    /// It may not take part.
    Refused(String),
    /// The job is over; the daemon is to leave too.
    Dismissed { leave: bool },
    /// Something that a real worker would log.
    Odd(&'static str),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Agent {
    name: String,
    devices: Vec<String>,
    highest: FencingToken,
    /// Generation of the last assignment.
    current: Generation,
    workload: Option<Arc<Workload>>,
    /// One a device, once there is a job.
    processes: Vec<Process>,
    next_process: u64,
    /// Steps that stand.
    committed: u64,
    outbox: Vec<RankEvent>,
    sequence: u64,
}

#[derive(Debug)]
struct Process {
    device: String,
    number: u64,
    post: Option<Post>,
    held: Option<Held>,
}

/// A place in a generation.
#[derive(Debug, Clone)]
struct Post {
    token: FencingToken,
    rank: u32,
    world: u32,
    lanes: Range<u32>,
    stage: Stage,
    /// Beyond the last step that was granted.
    granted: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Ready,
    /// Since this step.
    Training {
        first: u64,
    },
    /// It has stopped and waits for the next generation.
    Parked,
}

/// A state, which is a number here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    applied: u64,
    trained_in: u64,
    recorded_from: u64,
}

impl Agent {
    pub(crate) fn new(name: String, ranks: u32) -> Self {
        Self {
            name,
            devices: (0..ranks).map(|d| format!("cuda:{d}")).collect(),
            highest: FencingToken::default(),
            current: Generation::new(0),
            workload: None,
            processes: Vec::new(),
            next_process: 1,
            committed: 0,
            outbox: Vec::new(),
            sequence: 0,
        }
    }

    /// The first message of a stream.
    pub(crate) fn hello(&self) -> Hello {
        let run_id = self.workload.as_ref().map(|w| w.run_id().to_owned()).unwrap_or_default();
        let process = |p: &Process| RankProcess {
            device: p.device.clone(),
            process: p.number,
            run_id: run_id.clone(),
            prepared: true,
            generation: p.post.as_ref().map_or(0, |post| post.token.generation.get()),
            holds_state: p.held.is_some(),
        };
        Hello {
            worker: self.name.clone(),
            protocol: mcl_proto::PROTOCOL,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            // Unknown: it fits whatever real workers there are.
            libtorch: String::new(),
            devices: self.devices.clone(),
            advertise: "127.0.0.1".to_owned(),
            highest: Some(self.highest.into()),
            processes: self.processes.iter().map(process).collect(),
            leaving: false,
        }
    }

    /// Whether something is to be said at once.
    pub(crate) const fn is_urgent(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The standing order, with what the job means.
    pub(crate) fn prepare(&mut self, workload: Arc<Workload>) {
        if self.workload.as_ref().is_some_and(|w| w.run_id() == workload.run_id()) {
            return;
        }
        for process in std::mem::take(&mut self.processes) {
            self.exit(&process);
        }
        self.workload = Some(workload);
        self.committed = 0;
        for device in self.devices.clone() {
            let process = self.spawn(device);
            self.processes.push(process);
        }
    }

    /// Any other message.
    pub(crate) fn hear(&mut self, message: Message) -> Option<Note> {
        match message {
            Message::Welcome(welcome) => {
                self.raise(FencingToken { term: Term::new(welcome.term), generation: self.current });
                self.say_again();
                Some(Note::Welcome { interval: interval(welcome.heartbeat_interval_ms) })
            }
            Message::Tempo(tempo) => Some(Note::Tempo { interval: interval(tempo.heartbeat_interval_ms) }),
            Message::Assign(assign) => self.assign(assign),
            Message::Relay(relay) => self.relay(relay),
            Message::Refused(refused) => Some(Note::Refused(refused.reason)),
            Message::Dismiss(dismiss) => {
                for process in std::mem::take(&mut self.processes) {
                    self.exit(&process);
                }
                self.workload = None;
                Some(Note::Dismissed { leave: dismiss.leave })
            }
            Message::Prepare(_) | Message::Acknowledged(_) => None,
        }
    }

    /// What is due, `steps` of the run being over by the clock.
    pub(crate) fn beat(&mut self, steps: u64) -> Heartbeat {
        if let Some(workload) = self.workload.clone() {
            let mut processes = std::mem::take(&mut self.processes);
            for process in &mut processes {
                self.advance(&workload, process, steps);
            }
            self.processes = processes;
        }
        self.sequence += 1;
        let token = FencingToken { term: self.highest.term, generation: self.current };
        Heartbeat {
            token: Some(token.into()),
            events: std::mem::take(&mut self.outbox),
            leaving: false,
            sequence: self.sequence,
        }
    }

    /// Steps that some rank could have taken by the clock and may not yet: it waits for a grant.
    pub(crate) fn ungranted(&self, steps: u64) -> u64 {
        let waits = |p: &Process| {
            let post = p.post.as_ref().filter(|post| matches!(post.stage, Stage::Training { .. }))?;
            let applied = p.held?.applied;
            (applied == post.granted).then(|| steps.saturating_sub(applied))
        };
        self.processes.iter().filter_map(waits).max().unwrap_or(0)
    }

    fn advance(&mut self, workload: &Workload, process: &mut Process, steps: u64) {
        let (Some(post), Some(held)) = (&process.post, &mut process.held) else { return };
        if !matches!(post.stage, Stage::Training { .. }) {
            return;
        }
        let end = steps.min(post.granted).min(held.applied + CATCH_UP);
        let (token, rank, lanes) = (post.token, post.rank, post.lanes.clone());
        let (device, number) = (process.device.clone(), process.number);
        while held.applied < end {
            let report = workload.report(held.applied, lanes.clone());
            self.outbox.push(event(token, rank, &device, number, Said::Step(report)));
            held.applied += 1;
            held.trained_in = token.generation.get();
        }
    }

    fn spawn(&mut self, device: String) -> Process {
        let process = Process { device, number: self.next_process, post: None, held: None };
        self.next_process += 1;
        self.say(&process, Said::Spawned(Spawned {}));
        self.say(&process, Said::Prepared(Prepared {}));
        process
    }

    fn exit(&mut self, process: &Process) {
        let status = "exit status 0".to_owned();
        self.say(process, Said::Exited(Exited { status, ..Exited::default() }));
    }

    fn say(&mut self, process: &Process, said: Said) {
        let nobody = FencingToken { term: self.highest.term, generation: Generation::new(0) };
        let (token, rank) = process.post.as_ref().map_or((nobody, 0), |p| (p.token, p.rank));
        self.outbox.push(event(token, rank, &process.device, process.number, said));
    }

    /// On a new stream: whatever the coordinator may not have heard.
    fn say_again(&mut self) {
        self.outbox.retain(|e| !matches!(e.event, Some(Said::Ready(_) | Said::Training(_) | Said::Step(_))));
        let Some(workload) = self.workload.clone() else { return };
        for process in std::mem::take(&mut self.processes) {
            if let Some(post) = process.post.clone() {
                match post.stage {
                    Stage::Ready => self.say(&process, ready(&process)),
                    Stage::Training { first } => {
                        self.say(&process, Said::Training(Training { next_step: first }));
                        let applied = process.held.map_or(first, |h| h.applied);
                        for step in self.committed.max(first)..applied {
                            self.say(&process, Said::Step(workload.report(step, post.lanes.clone())));
                        }
                    }
                    Stage::Parked => {}
                }
            }
            self.processes.push(process);
        }
    }

    fn raise(&mut self, token: FencingToken) {
        self.highest = self.highest.max(token);
    }

    fn assign(&mut self, assign: Assign) -> Option<Note> {
        let Ok(token) = mcl_proto::token(assign.token) else {
            return Some(Note::Odd("assign without token"));
        };
        if token < self.highest {
            return Some(Note::Odd("stale assignment"));
        }
        self.raise(token);
        self.current = token.generation;
        let Some(workload) = self.workload.clone() else { return Some(Note::Odd("assignment before a job")) };
        let mut odd = None;
        for post in assign.posts {
            let Some(join) = post.join else {
                odd = Some(Note::Odd("a post without a join"));
                continue;
            };
            let here = |p: &Process| p.device == post.device && p.number == post.process;
            let Some(at) = self.processes.iter().position(here) else {
                odd = Some(Note::Odd("a post for a process that is not here"));
                continue;
            };
            self.committed = self.committed.max(join.committed);
            let mut process = self.processes.swap_remove(at);
            if process.post.as_ref().is_some_and(|p| p.token.generation == token.generation) {
                // Known already; what became of it was said on the welcome.
                self.processes.push(process);
                continue;
            }
            process.post = Some(Post {
                token,
                rank: join.rank,
                world: join.world_size,
                lanes: workload.lanes(join.rank, join.world_size),
                stage: Stage::Ready,
                granted: 0,
            });
            self.say(&process, ready(&process));
            self.processes.push(process);
        }
        odd
    }

    fn relay(&mut self, relay: Relay) -> Option<Note> {
        let Ok(token) = mcl_proto::token(relay.token) else { return Some(Note::Odd("relay without token")) };
        if token.term < self.highest.term {
            return Some(Note::Odd("stale command"));
        }
        let Some(command) = relay.command.and_then(|c| c.command) else {
            return Some(Note::Odd("an empty command"));
        };
        if let Command::Committed(c) = &command {
            self.committed = self.committed.max(c.step + 1);
            return None;
        }
        let mut note: Option<Note> = None;
        for mut process in std::mem::take(&mut self.processes) {
            let meant = process.post.as_ref().is_some_and(|p| {
                p.token.generation == token.generation && relay.rank.is_none_or(|rank| rank == p.rank)
            });
            if meant {
                note = joined(note, self.command(&mut process, &command));
            }
            self.processes.push(process);
        }
        note
    }

    fn command(&mut self, process: &mut Process, command: &Command) -> Option<Note> {
        match command {
            Command::Start(start) => return self.start(process, start),
            Command::EpochGrant(grant) => {
                let end = self.workload.as_ref().map_or(0, |w| w.end_of(grant.epoch, grant.steps));
                if let Some(post) = &mut process.post {
                    post.granted = post.granted.max(end);
                }
            }
            Command::Drain(_) => {
                let step = park(process);
                self.say(process, Said::Drained(Drained { step }));
            }
            Command::Pause(_) => {
                let step = park(process);
                self.say(process, Said::Paused(Paused { step }));
            }
            Command::Break(_) => {
                park(process);
                let message = "told to leave".to_owned();
                self.say(process, Said::Broken(Broken { message, step: None, activity: "idle".to_owned() }));
            }
            Command::Stop(_) => {
                self.exit(process);
                let device = process.device.clone();
                *process = self.spawn(device);
            }
            Command::Recount(recount) => self.recount(process, recount),
            Command::Configure(_)
            | Command::Committed(_)
            | Command::CheckpointCommitted(_)
            | Command::Join(_) => {}
        }
        None
    }

    fn start(&mut self, process: &mut Process, start: &Start) -> Option<Note> {
        let post = process.post.as_mut()?;
        if post.stage != Stage::Ready {
            // Said again after an outage.
            return None;
        }
        let first = start.first_step;
        post.stage = Stage::Training { first };
        let generation = post.token.generation.get();
        let note = Note::Started { generation, world: post.world, ranks: 1, first_step: first };
        let kept = process
            .held
            .filter(|h| h.applied == first && matches!(start.origin, Some(Origin::SourceRank(_))));
        process.held = kept.or(Some(Held { applied: first, trained_in: generation, recorded_from: first }));
        self.say(process, Said::Training(Training { next_step: first }));
        Some(note)
    }

    fn recount(&mut self, process: &Process, recount: &Recount) {
        let (Some(workload), Some(held)) = (self.workload.clone(), process.held) else { return };
        let first = recount.first_step.max(held.recorded_from);
        let step = |step| RecountedStep {
            generation: held.trained_in,
            report: Some(workload.report(step, workload.all_lanes())),
        };
        let steps = (first..recount.end_step.min(held.applied)).map(step).collect();
        self.say(process, Said::Recounted(Recounted { steps }));
    }
}

fn interval(ms: u64) -> Duration {
    Duration::from_millis(ms).max(MIN_INTERVAL)
}

fn event(token: FencingToken, rank: u32, device: &str, process: u64, said: Said) -> RankEvent {
    RankEvent { token: Some(token.into()), rank, event: Some(said), device: device.to_owned(), process }
}

fn ready(process: &Process) -> Said {
    let hosts = process.post.as_ref().is_some_and(|p| p.rank == 0);
    // Nobody ever connects to it.
    let store_address = if hosts { "127.0.0.1:1".to_owned() } else { String::new() };
    Said::Ready(Ready {
        store_address,
        applied: process.held.map(|h| h.applied),
        trained_in: process.held.map_or(0, |h| h.trained_in),
        recorded_from: process.held.map_or(0, |h| h.recorded_from),
    })
}

/// Stops at the step boundary where it stands.
fn park(process: &mut Process) -> u64 {
    if let Some(post) = &mut process.post {
        post.stage = Stage::Parked;
    }
    process.held.map_or(0, |h| h.applied)
}

/// Ranks that one message started are counted together.
fn joined(note: Option<Note>, more: Option<Note>) -> Option<Note> {
    match (note, more) {
        (
            Some(Note::Started { generation, world, ranks, first_step }),
            Some(Note::Started { ranks: others, .. }),
        ) => Some(Note::Started { generation, world, ranks: ranks + others, first_step }),
        (note, more) => more.or(note),
    }
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
