//! A worker's decisions, pure: one event in, what to do out.
//!
//! Invariants: a token below the highest is refused; a higher one is persisted before anything is done under
//! it. An assignment stops no process: those without a post keep their state and wait. Whatever a rank said of the
//! current generation reaches the coordinator, see [`crate::outbox`]. The processes themselves are in
//! [`crate::ranks`] and [`crate::standing`]. Left out: clocks, processes, sockets, files; see [`crate::rim`].
//!
//! The coordinator's side of a generation may change hands: a later term continues it. So a command is
//! matched by generation, and its term must not be below the highest.

use crate::event::{Attempt, Effect, Ending, Event, ProcessId};
use crate::outbox::Outbox;
use crate::ranks::{Membership, Process, failed};
use crate::standing::Standing;
use crate::{Farewell, WorkerConfig};
use mcl_proto::v1::{
    Assign, Dismiss, Heartbeat, Hello, Join, Post, RankCommand, RankProcess, Relay, SessionRequest, Tempo,
    Welcome, rank_command::Command, session_request, session_response,
};
use mcl_types::{FencingToken, Generation, Term};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a rank may take to leave by itself.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// How long a worker that is leaving waits to be dismissed: some steps, a checkpoint, a coordinator's restart.
pub(crate) const LEAVE_LIMIT: Duration = Duration::from_secs(60);
/// First pause before the coordinator is tried again; it doubles up to [`MAX_PAUSE`], or to a part of the silence that
/// would make this worker lost.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(3);
/// A coordinator that is started again hears of every worker well before it could take it for lost.
const TRIES_BEFORE_LOST: u32 = 4;
/// What ranks are told where the worker itself is to go.
const ASKED: &str = "the worker was asked to stop";
/// Shortest heartbeat interval that is obeyed.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Who this worker is, as far as decisions depend on it.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub hello: Hello,
    pub connect_timeout: Duration,
}

impl Identity {
    pub fn new(config: &WorkerConfig) -> Self {
        let hello = Hello {
            worker: config.name.clone(),
            protocol: mcl_proto::PROTOCOL,
            build: config.build.clone(),
            libtorch: config.libtorch.clone(),
            devices: config.devices.clone(),
            advertise: config.advertise.clone(),
            highest: None,
            processes: Vec::new(),
            leaving: false,
        };
        Self { hello, connect_timeout: config.connect_timeout }
    }
}

/// The stream.
#[derive(Debug)]
enum Link {
    /// Not welcome yet, or waiting for the next attempt.
    Opening,
    Live {
        interval: Duration,
        next_beat: Duration,
    },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) identity: Identity,
    highest: FencingToken,
    link: Link,
    attempt: Attempt,
    pause: Duration,
    longest_pause: Duration,
    /// How the last attempt ended; nothing once there was a welcome.
    first_contact: Option<String>,
    /// The generation that was assigned last.
    current: Option<FencingToken>,
    pub(crate) standing: Standing,
    pub(crate) processes: BTreeMap<ProcessId, Process>,
    pub(crate) next_process: u64,
    pub(crate) outbox: Outbox,
    /// It was asked to leave and waits to be dismissed, until then at the latest.
    leaving: Option<Duration>,
    ending: Option<Ending>,
    pub(crate) now: Duration,
    pub(crate) out: Vec<Effect>,
}

impl State {
    /// At time zero, with the highest token of an earlier life and a number above those of its processes. The
    /// effects open the first stream.
    pub fn new(identity: Identity, highest: FencingToken, first_process: u64) -> (Self, Vec<Effect>) {
        let standing = Standing::new(&identity.hello.devices);
        let mut state = Self {
            identity,
            highest,
            link: Link::Opening,
            attempt: Attempt::default(),
            pause: FIRST_PAUSE,
            longest_pause: MAX_PAUSE,
            first_contact: Some("no answer".to_owned()),
            current: None,
            standing,
            processes: BTreeMap::new(),
            next_process: first_process,
            outbox: Outbox::default(),
            leaving: None,
            ending: None,
            now: Duration::ZERO,
            out: Vec::new(),
        };
        state.connect(Duration::ZERO);
        let effects = std::mem::take(&mut state.out);
        (state, effects)
    }

    /// Applies one event at `now`, since the start; it must not go back.
    pub fn apply(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        self.excuse_silence(now);
        self.now = now;
        match event {
            Event::Said { attempt, message } if attempt == self.attempt => self.said(message.message),
            Event::Down { attempt, reason } if attempt == self.attempt => self.down(reason),
            Event::Said { .. } | Event::Down { .. } | Event::Tick => {}
            Event::RankSaid { process, event } => self.rank_said(process, event),
            Event::RankGarbled { process, what } => {
                self.condemn(process, format!("its stdout is unreadable: {what}"));
            }
            Event::RankDeaf { process, waiting } => self.condemn(
                process,
                format!("it does not read its commands: {waiting} wait; its control thread is stuck"),
            ),
            Event::Started { process } => self.started(process),
            Event::NotStarted { process, reason } => self.not_started(process, reason),
            Event::Gone { process, exit } => self.gone(process, exit),
            Event::Farewell(farewell) => self.farewell(farewell),
        }
        self.kill_overdue();
        self.end_of_leaving();
        self.start_missing();
        self.speak();
        self.leave_if_done();
        std::mem::take(&mut self.out)
    }

    /// Whether there is a coordinator to say something to.
    pub const fn is_connected(&self) -> bool {
        matches!(self.link, Link::Live { .. })
    }

    pub(crate) const fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    pub(crate) const fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// When to wake up, if nothing else happens.
    pub fn deadline(&self) -> Option<Duration> {
        let beat = match self.link {
            Link::Live { next_beat, .. } => Some(self.outbox.due().map_or(next_beat, |d| d.min(next_beat))),
            Link::Opening => self.first_contact.as_ref().map(|_| self.identity.connect_timeout),
        };
        let ends = self.processes.values().filter_map(Process::ends_at);
        beat.into_iter().chain(ends).chain(self.leaving).chain(self.next_start()).min()
    }

    fn said(&mut self, message: Option<session_response::Message>) {
        use session_response::Message;
        match message {
            Some(Message::Welcome(welcome)) => self.welcome(&welcome),
            Some(Message::Refused(refused)) => {
                let reason = "the coordinator refused this worker";
                self.end(Ending::Refused(refused.reason), reason);
            }
            _ if self.is_ending() => {}
            _ if !self.is_connected() => {
                tracing::warn!("the coordinator gives orders before its term: ignored");
            }
            Some(Message::Prepare(prepare)) => self.prepare(prepare),
            Some(Message::Assign(assign)) => self.assign(assign),
            Some(Message::Relay(relay)) => self.relay(relay),
            Some(Message::Dismiss(Dismiss { reason, leave })) => self.dismiss(reason, leave),
            Some(Message::Tempo(tempo)) => self.set_tempo(&tempo),
            // For those who measure; this worker numbers no heartbeat.
            Some(Message::Acknowledged(_)) => {}
            None => {
                tracing::warn!("the coordinator sent an empty message, a newer one perhaps: ignored");
            }
        }
    }

    /// Everything that is not acknowledged goes out again.
    fn welcome(&mut self, welcome: &Welcome) {
        let term = Term::new(welcome.term);
        if term < self.highest.term {
            tracing::warn!(found = %term, highest = %self.highest, "a replaced coordinator answered: left");
            return self.reconnect();
        }
        if term > self.highest.term {
            // Where no rank of a generation runs, the new term may count its generations as it likes.
            self.current = self.current.filter(|c| !self.members(c.generation, None).is_empty());
            self.raise(FencingToken { term, generation: self.generation() });
        }
        let interval = Duration::from_millis(welcome.heartbeat_interval_ms).max(MIN_INTERVAL);
        tracing::info!(term = welcome.term, ?interval, "welcome");
        self.link = Link::Live { interval, next_beat: self.now };
        self.pause = FIRST_PAUSE;
        let lost_after = Duration::from_millis(welcome.lost_after_ms);
        self.longest_pause = (lost_after / TRIES_BEFORE_LOST).clamp(FIRST_PAUSE, MAX_PAUSE);
        self.first_contact = None;
        self.outbox.rewind();
    }

    fn set_tempo(&mut self, tempo: &Tempo) {
        if let Link::Live { interval, next_beat } = &mut self.link {
            *interval = Duration::from_millis(tempo.heartbeat_interval_ms).max(MIN_INTERVAL);
            *next_beat = (self.now + *interval).min(*next_beat);
        }
    }

    fn down(&mut self, reason: String) {
        if self.ending.is_some() {
            tracing::debug!(%reason, "the coordinator is gone, and so are we soon");
        } else {
            tracing::warn!(%reason, pause = ?self.pause, "no coordinator: ranks go on, trying again");
        }
        if let Some(last) = self.first_contact.as_mut() {
            *last = reason;
        }
        self.reconnect();
    }

    fn reconnect(&mut self) {
        self.link = Link::Opening;
        if self.ending.is_none() {
            let pause = self.pause;
            self.pause = (pause * 2).min(self.longest_pause);
            self.connect(pause);
        }
    }

    fn connect(&mut self, after: Duration) {
        self.attempt = Attempt(self.attempt.0 + 1);
        let hello = Hello {
            highest: Some(self.highest.into()),
            processes: self.inventory(),
            leaving: self.is_leaving(),
            ..self.identity.hello.clone()
        };
        self.outbox.greeted();
        self.out.push(Effect::Connect { attempt: self.attempt, hello, after });
    }

    /// The processes that can be counted on.
    fn inventory(&self) -> Vec<RankProcess> {
        let describe = |(id, p): (&ProcessId, &Process)| RankProcess {
            device: p.device.clone(),
            process: id.0,
            run_id: p.run_id.clone(),
            prepared: p.prepared,
            generation: p.membership().map_or(0, |m| m.token.generation.get()),
            holds_state: p.holds_state,
        };
        self.processes.iter().filter(|(_, p)| p.stays()).map(describe).collect()
    }

    /// The current one, or 0.
    fn generation(&self) -> Generation {
        self.current.map_or(Generation::new(0), |c| c.generation)
    }

    /// What is said under the present term and of no generation.
    pub(crate) fn outside(&self) -> FencingToken {
        FencingToken { term: self.highest.term, generation: Generation::new(0) }
    }

    fn raise(&mut self, token: FencingToken) {
        if token > self.highest {
            self.highest = token;
            self.out.push(Effect::Persist(token));
        }
    }

    /// A new generation: some of the processes become its ranks.
    fn assign(&mut self, assign: Assign) {
        let token = match mcl_proto::token(assign.token) {
            Ok(token) => token,
            Err(error) => return tracing::error!(%error, "assignment ignored"),
        };
        if token < self.highest {
            return tracing::warn!(found = %token, highest = %self.highest, "stale assignment refused");
        }
        if self.current.is_some_and(|c| c.generation == token.generation) {
            return tracing::debug!(%token, "assignment known already");
        }
        tracing::info!(%token, posts = assign.posts.len(), "assigned");
        self.raise(token);
        self.current = Some(token);
        self.outbox.next_generation(token.generation);
        assign.posts.into_iter().for_each(|post| self.fill(token, post));
        self.beat_now();
    }

    /// Has a process join, or says that there is none.
    fn fill(&mut self, token: FencingToken, post: Post) {
        let Post { device, process, join } = post;
        let Some(join) = join else {
            return tracing::error!(device, process, "a post without a rank ignored");
        };
        let (id, membership) = (ProcessId(process), Membership { token, rank: join.rank });
        let Some(found) = self.processes.get_mut(&id).filter(|p| p.device == device && p.stays()) else {
            return self.tell(membership, device, id, failed("process is not there any more".to_owned()));
        };
        if !found.prepared {
            return self.tell(membership, device, id, failed("process is not prepared yet".to_owned()));
        }
        found.join(membership);
        let join = Join { token: Some(token.into()), ..join };
        let command = RankCommand { command: Some(Command::Join(join)) };
        self.out.push(Effect::Command { process: id, command });
    }

    fn relay(&mut self, relay: Relay) {
        let token = match mcl_proto::token(relay.token) {
            Ok(token) => token,
            Err(error) => return tracing::error!(%error, "command ignored"),
        };
        let ours = self.current.is_some_and(|c| c.generation == token.generation);
        if !ours || token.term < self.highest.term {
            return tracing::debug!(found = %token, highest = %self.highest, "stale command dropped");
        }
        self.raise(token);
        let command = relay.command.unwrap_or_default();
        match &command.command {
            Some(Command::Committed(c)) => self.outbox.committed(c.step),
            Some(Command::CheckpointCommitted(c)) => self.outbox.checkpointed(c.step),
            Some(Command::Start(_)) => self.outbox.started(),
            Some(Command::Stop(stop)) => {
                return self.stop(self.members(token.generation, relay.rank), &stop.reason);
            }
            Some(Command::Configure(_) | Command::Join(_)) | None => {
                return tracing::error!(
                    "a command that cannot be relayed, from a newer coordinator perhaps: ignored"
                );
            }
            _ => {}
        }
        let members = self.members(token.generation, relay.rank);
        if members.is_empty() {
            tracing::warn!(rank = relay.rank, "a command for a rank that does not run here: dropped");
        }
        for process in members {
            self.out.push(Effect::Command { process, command: command.clone() });
        }
    }

    fn dismiss(&mut self, reason: String, leave: bool) {
        tracing::info!(%reason, leave, "dismissed");
        if leave {
            self.end(Ending::Dismissed(reason.clone()), &reason);
        } else if self.is_leaving() {
            self.end(Ending::Shutdown, &reason);
        } else {
            self.standing.forget();
            self.stop_all(&reason);
        }
    }

    /// Asked to leave: where ranks train, the coordinator is to let them stop at a step boundary first.
    fn farewell(&mut self, farewell: Farewell) {
        let trains = self.current.is_some_and(|current| {
            self.processes.values().any(|p| p.holds_state && p.stays() && p.is_member_of(current.generation))
        });
        match farewell {
            Farewell::Drain if self.is_leaving() => {}
            Farewell::Drain if trains && self.is_connected() && !self.is_ending() => {
                tracing::info!(limit = ?LEAVE_LIMIT, "leaving: waiting to be dismissed");
                self.leaving = Some(self.now + LEAVE_LIMIT);
                self.beat_now();
            }
            Farewell::Drain | Farewell::Now => self.end(Ending::Shutdown, ASKED),
        }
    }

    /// Nothing is left to wait for, or it took too long.
    fn end_of_leaving(&mut self) {
        let Some(limit) = self.leaving else { return };
        if self.processes.is_empty() || limit <= self.now {
            self.end(Ending::Shutdown, ASKED);
        }
    }

    /// Begins to end: no more work, ranks are to leave.
    fn end(&mut self, ending: Ending, reason: &str) {
        self.leaving = None;
        if self.ending.is_none() {
            self.ending = Some(ending);
            self.standing.forget();
            self.stop_all(reason);
        }
    }

    /// Sends what is due, where there is a stream.
    fn speak(&mut self) {
        let Link::Live { interval, next_beat } = self.link else { return };
        let due = self.outbox.due().is_some_and(|due| due <= self.now);
        if !due && next_beat > self.now {
            return;
        }
        let mut portions = self.outbox.take();
        if portions.is_empty() {
            portions.push(Vec::new());
        }
        // Generation 0 is none: a worker that lost its ranks with its last life says so by it.
        let token = FencingToken { generation: self.generation(), ..self.outside() };
        for events in portions {
            let leaving = self.is_leaving();
            let beat = Heartbeat { token: Some(token.into()), events, leaving, sequence: 0 };
            let message = Some(session_request::Message::Heartbeat(beat));
            self.out.push(Effect::Send(SessionRequest { message }));
        }
        self.link = Link::Live { interval, next_beat: self.now + interval };
    }

    fn beat_now(&mut self) {
        if let Link::Live { next_beat, .. } = &mut self.link {
            *next_beat = self.now;
        }
    }

    fn leave_if_done(&mut self) {
        let late = self.now >= self.identity.connect_timeout;
        if let Some(last) = &self.first_contact
            && late
            && self.ending.is_none()
        {
            self.ending = Some(Ending::Unreachable { waited: self.now, last: last.clone() });
        }
        if self.processes.is_empty()
            && let Some(ending) = self.ending.clone()
        {
            self.out.push(Effect::Leave(ending));
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
