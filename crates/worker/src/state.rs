//! A worker's decisions, pure: one event in, what to do out.
//!
//! Invariants: ranks of one generation only; those of the next are started after the last of the one before
//! is gone (its device and ports are free then). A token below the highest is refused; a higher one is
//! persisted before anything is done under it. Whatever a rank said of the current generation reaches the
//! coordinator, see [`crate::outbox`]. Left out: clocks, processes, sockets, files; see [`crate::rim`].
//!
//! The coordinator's side of a generation may change hands: a later term continues it. So a command is
//! matched by generation, and its term must not be below the highest.

use crate::WorkerConfig;
use crate::event::{Attempt, Effect, Ending, Event, ProcessId};
use crate::outbox::Outbox;
use mcl_proto::v1::{
    Assign, Configure, Dismiss, Heartbeat, Hello, RankCommand, Relay, SessionRequest, Welcome,
    rank_command::Command, session_request, session_response,
};
use mcl_types::{FencingToken, Generation, Term};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a rank may take to leave by itself.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// First pause before the coordinator is tried again; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(3);
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
        };
        Self { hello, connect_timeout: config.connect_timeout }
    }
}

/// A rank process that is not known to be gone.
#[derive(Debug)]
pub(crate) struct Process {
    pub rank: u32,
    /// What it was started under; events are stamped with it.
    pub token: FencingToken,
    /// When patience with its leaving ends.
    pub kill_at: Option<Duration>,
    pub killed: bool,
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
    /// How the last attempt ended; nothing once there was a welcome.
    first_contact: Option<String>,
    /// The generation that this worker has ranks of, or had last.
    pub(crate) current: Option<FencingToken>,
    pub(crate) processes: BTreeMap<ProcessId, Process>,
    pub(crate) next_process: u64,
    /// Ranks to start once nothing older runs.
    pub(crate) waiting: Vec<Configure>,
    pub(crate) outbox: Outbox,
    ending: Option<Ending>,
    pub(crate) now: Duration,
    pub(crate) out: Vec<Effect>,
}

impl State {
    /// At time zero, with the highest token of an earlier life. The effects open the first stream.
    pub fn new(identity: Identity, highest: FencingToken) -> (Self, Vec<Effect>) {
        let mut state = Self {
            identity,
            highest,
            link: Link::Opening,
            attempt: Attempt::default(),
            pause: FIRST_PAUSE,
            first_contact: Some("no answer".to_owned()),
            current: None,
            processes: BTreeMap::new(),
            next_process: 0,
            waiting: Vec::new(),
            outbox: Outbox::default(),
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
            Event::NotStarted { process, reason } => self.not_started(process, reason),
            Event::Gone { process, exit } => self.gone(process, exit),
            Event::Shutdown => self.end(Ending::Shutdown, "the worker was asked to stop"),
        }
        self.end_of_patience();
        self.start_waiting();
        self.speak();
        self.leave_if_done();
        std::mem::take(&mut self.out)
    }

    /// Whether there is a coordinator to say something to.
    pub const fn is_connected(&self) -> bool {
        matches!(self.link, Link::Live { .. })
    }

    /// When to wake up, if nothing else happens.
    pub fn deadline(&self) -> Option<Duration> {
        let beat = match self.link {
            Link::Live { next_beat, .. } => Some(self.outbox.due().map_or(next_beat, |d| d.min(next_beat))),
            Link::Opening => self.first_contact.as_ref().map(|_| self.identity.connect_timeout),
        };
        let kills = self.processes.values().filter(|p| !p.killed).filter_map(|p| p.kill_at);
        beat.into_iter().chain(kills).min()
    }

    fn said(&mut self, message: Option<session_response::Message>) {
        use session_response::Message;
        match message {
            Some(Message::Welcome(welcome)) => self.welcome(&welcome),
            Some(Message::Refused(refused)) => {
                let reason = "the coordinator refused this worker";
                self.end(Ending::Refused(refused.reason), reason);
            }
            _ if self.ending.is_some() => {}
            Some(Message::Assign(assign)) => self.assign(assign),
            Some(Message::Relay(relay)) => self.relay(relay),
            Some(Message::Dismiss(Dismiss { reason, leave })) => self.dismiss(reason, leave),
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
            // Where nothing runs, the new term may count its generations as it likes.
            let running = !(self.processes.is_empty() && self.waiting.is_empty());
            let generation = self.current.filter(|_| running).map_or(Generation::new(0), |c| c.generation);
            self.raise(FencingToken { term, generation });
        }
        let interval = Duration::from_millis(welcome.heartbeat_interval_ms).max(MIN_INTERVAL);
        tracing::info!(term = welcome.term, ?interval, "welcome");
        self.link = Link::Live { interval, next_beat: self.now };
        self.pause = FIRST_PAUSE;
        self.first_contact = None;
        self.outbox.rewind();
    }

    fn down(&mut self, reason: String) {
        tracing::warn!(%reason, pause = ?self.pause, "no coordinator: ranks go on, trying again");
        if let Some(last) = self.first_contact.as_mut() {
            *last = reason;
        }
        self.reconnect();
    }

    fn reconnect(&mut self) {
        self.link = Link::Opening;
        if self.ending.is_none() {
            let pause = self.pause;
            self.pause = (pause * 2).min(MAX_PAUSE);
            self.connect(pause);
        }
    }

    fn connect(&mut self, after: Duration) {
        self.attempt = Attempt(self.attempt.0 + 1);
        let hello = Hello { highest: Some(self.highest.into()), ..self.identity.hello.clone() };
        self.out.push(Effect::Connect { attempt: self.attempt, hello, after });
    }

    fn raise(&mut self, token: FencingToken) {
        if token > self.highest {
            self.highest = token;
            self.out.push(Effect::Persist(token));
        }
    }

    /// A new generation: older ranks go, these come.
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
        tracing::info!(%token, ranks = assign.ranks.len(), "assigned");
        self.raise(token);
        self.current = Some(token);
        self.outbox.next_generation();
        self.kill_all();
        self.waiting = assign.ranks;
        for configure in &mut self.waiting {
            configure.token = Some(token.into());
            if configure.advertise.is_empty() {
                configure.advertise.clone_from(&self.identity.hello.advertise);
            }
        }
        self.beat_now();
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
        let Some(command) = relay.command else {
            return tracing::warn!("an empty command, from a newer coordinator perhaps: ignored");
        };
        match &command.command {
            Some(Command::Committed(c)) => self.outbox.committed(c.step),
            Some(Command::CheckpointCommitted(c)) => self.outbox.checkpointed(c.step),
            Some(Command::Start(_)) => self.outbox.started(),
            Some(Command::Stop(stop)) => return self.stop(relay.rank, &stop.reason),
            _ => {}
        }
        self.command(relay.rank, &command);
    }

    fn dismiss(&mut self, reason: String, leave: bool) {
        tracing::info!(%reason, leave, "dismissed");
        if leave {
            self.end(Ending::Dismissed(reason.clone()), &reason);
        } else {
            self.stop(None, &reason);
        }
    }

    /// Begins to end: no more work, ranks are to leave.
    fn end(&mut self, ending: Ending, reason: &str) {
        if self.ending.is_none() {
            self.ending = Some(ending);
            self.stop(None, reason);
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
        let token = self.current.map_or(FencingToken::default(), |c| FencingToken {
            term: self.highest.term,
            generation: c.generation,
        });
        for events in portions {
            let beat = Heartbeat { token: Some(token.into()), events };
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

    /// Hands a command to one rank of the current generation, or to all.
    fn command(&mut self, rank: Option<u32>, command: &RankCommand) {
        let ids = self.current_ranks(rank);
        if ids.is_empty() {
            tracing::warn!(?rank, "a command for a rank that does not run here: dropped");
        }
        for process in ids {
            self.out.push(Effect::Command { process, command: command.clone() });
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
