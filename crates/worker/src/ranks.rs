//! The part of the decisions that is about rank processes: their words, their silence, their ends.
//!
//! Invariants: what a process says is told as said in a generation that it was told to join, by whom it is:
//! device, process and rank are never taken from its words. A process that has spoken and then says nothing for
//! as long as its configuration allows is killed, and its end says what it was doing.

use crate::event::{Effect, Exit, ProcessId};
use crate::state::{GRACE, State};
use mcl_proto::v1::{
    Alive, Configure, Exited, Failed, FailureKind, Prepared, RankCommand, RankEvent, Spawned, Stop,
    rank_command::Command, rank_event::Event as Said,
};
use mcl_types::{FencingToken, Generation};
use std::time::Duration;

/// Memberships that a process is believed to still speak of. An event is late by one generation, or a few where
/// they follow each other fast.
const MEMBERSHIPS: usize = 16;
/// From its start to its first word: the libraries of a GPU may come from a slow disk.
pub(crate) const BIRTH: Duration = Duration::from_secs(60);
/// Lateness of the worker itself from which on it does not hold the time against its processes.
pub(crate) const HELD_UP: Duration = Duration::from_millis(200);

/// A rank of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Membership {
    pub token: FencingToken,
    pub rank: u32,
}

/// A rank process that is not known to be gone.
#[derive(Debug)]
pub(crate) struct Process {
    pub device: String,
    pub run_id: String,
    /// Number of the job whose it is, see [`crate::standing`].
    pub job: u64,
    /// When it was started.
    pub since: Duration,
    pub prepared: bool,
    /// It has trained since it was started.
    pub holds_state: bool,
    /// What it was told to join, oldest first.
    memberships: Vec<Membership>,
    /// Silence after which it is killed.
    patience: Option<Duration>,
    /// When it spoke last.
    heard: Option<Duration>,
    /// What it said last of what it does.
    doing: Option<Alive>,
    /// When patience with its leaving ends.
    pub kill_at: Option<Duration>,
    pub killed: bool,
    /// Why its worker killed it, where that says more than how it ended.
    cause: Option<String>,
}

impl Process {
    pub fn new(configure: &Configure, job: u64, now: Duration) -> Self {
        Self {
            device: configure.device.clone(),
            run_id: configure.run_id.clone(),
            job,
            since: now,
            prepared: false,
            holds_state: false,
            memberships: Vec::new(),
            patience: (configure.lost_after_ms > 0).then(|| Duration::from_millis(configure.lost_after_ms)),
            heard: None,
            doing: None,
            kill_at: None,
            killed: false,
            cause: None,
        }
    }

    /// What it was told to join last.
    pub fn membership(&self) -> Option<Membership> {
        self.memberships.last().copied()
    }

    pub fn is_member_of(&self, generation: Generation) -> bool {
        self.membership().is_some_and(|m| m.token.generation == generation)
    }

    /// Whether it was neither asked nor made to end.
    pub const fn stays(&self) -> bool {
        !self.killed && self.kill_at.is_none()
    }

    pub fn join(&mut self, membership: Membership) {
        if self.memberships.len() == MEMBERSHIPS {
            self.memberships.remove(0);
        }
        self.memberships.push(membership);
    }

    /// The membership that it speaks of: the one it names, as it may not have heard of the last one yet.
    fn speaks_as(&self, named: Option<FencingToken>) -> Option<Membership> {
        // A later term may have continued the generation that it joined.
        let meant =
            |m: &&Membership, t: FencingToken| m.token.generation == t.generation && m.token.term <= t.term;
        let named = named.and_then(|t| self.memberships.iter().rev().find(|m| meant(m, t)));
        named.copied().or_else(|| self.membership())
    }

    /// When its silence ends patience; that of one that was told to end is limited anyhow.
    fn silent_at(&self) -> Option<Duration> {
        let patience = self.patience?;
        let at = self.heard.map_or_else(|| self.since + patience.max(BIRTH), |heard| heard + patience);
        self.stays().then_some(at)
    }

    /// When it is to be killed, if nothing else happens.
    pub fn ends_at(&self) -> Option<Duration> {
        if self.killed { None } else { self.kill_at.or_else(|| self.silent_at()) }
    }

    fn silence(&self, now: Duration) -> String {
        let silent = now.saturating_sub(self.heard.unwrap_or(self.since)).as_secs_f64();
        let doing = match &self.doing {
            Some(Alive { step: Some(step), activity, seconds }) => {
                format!(" in step {step} ({activity} for {seconds:.1} s)")
            }
            Some(Alive { step: None, activity, seconds }) => format!(" ({activity} for {seconds:.1} s)"),
            None if self.heard.is_none() => " since its start".to_owned(),
            None => String::new(),
        };
        format!("silent for {silent:.1} s{doing}: killed")
    }
}

impl State {
    pub(crate) fn rank_said(&mut self, id: ProcessId, event: RankEvent) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.heard = Some(self.now);
        match event.event {
            None | Some(Said::Exited(_) | Said::Spawned(_)) => {
                let what = "expected an event, found an empty one or one that only a worker may send";
                self.condemn(id, format!("its stdout is unreadable: {what}"));
            }
            Some(Said::Alive(alive)) => process.doing = Some(alive),
            Some(said) => {
                process.holds_state |= matches!(said, Said::Training(_) | Said::Step(_));
                if matches!(said, Said::Failed(_)) {
                    // Its last word. The coordinator counts on it no longer, so its device must not stay taken.
                    process.kill_at.get_or_insert(self.now + GRACE);
                }
                if said == Said::Prepared(Prepared {}) {
                    process.prepared = true;
                    self.standing.prepared(process);
                }
                self.report(id, event.token.map(Into::into), said);
            }
        }
    }

    /// Passes on what a process said, or is said of it, in the generation `named` or else its last one.
    fn report(&mut self, id: ProcessId, named: Option<FencingToken>, said: Said) {
        let Some(process) = self.processes.get(&id) else { return };
        let none = Membership { token: self.outside(), rank: 0 };
        let membership = process.speaks_as(named).unwrap_or(none);
        let device = process.device.clone();
        self.tell(membership, device, id, said);
    }

    pub(crate) fn tell(&mut self, membership: Membership, device: String, process: ProcessId, said: Said) {
        let Membership { token, rank } = membership;
        let token = Some(token.into());
        self.outbox.push(RankEvent { token, rank, event: Some(said), device, process: process.0 }, self.now);
    }

    fn report_failed(&mut self, id: ProcessId, message: String) {
        self.report(id, None, failed(message));
    }

    /// A rank that cannot be worked with: its failure is reported, and it is killed.
    pub(crate) fn condemn(&mut self, id: ProcessId, why: String) {
        let Some(process) = self.processes.get(&id).filter(|p| !p.killed) else { return };
        tracing::error!(device = process.device, process = id.0, %why, "rank killed");
        self.report_failed(id, format!("killed by its worker: {why}"));
        self.kill(id);
    }

    pub(crate) fn started(&mut self, id: ProcessId) {
        self.report(id, None, Said::Spawned(Spawned {}));
    }

    pub(crate) fn not_started(&mut self, id: ProcessId, reason: String) {
        self.report_failed(id, format!("the rank could not be started: {reason}"));
        let Some(process) = self.processes.remove(&id) else { return };
        tracing::error!(device = process.device, process = id.0, %reason, "rank not started");
        self.standing.ended(&process, self.now);
    }

    pub(crate) fn gone(&mut self, id: ProcessId, exit: Exit) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Exit { status, by_signal, last_words } = exit;
        let status = process.cause.take().unwrap_or(status);
        tracing::info!(device = process.device, process = id.0, %status, "rank gone");
        self.report(id, None, Said::Exited(Exited { status, by_signal, last_words }));
        if let Some(process) = self.processes.remove(&id) {
            self.standing.ended(&process, self.now);
        }
    }

    /// The processes that joined this generation last, or the one that is `rank` of it.
    pub(crate) fn members(&self, generation: Generation, rank: Option<u32>) -> Vec<ProcessId> {
        let wanted = |m: Membership| m.token.generation == generation && rank.is_none_or(|r| r == m.rank);
        self.processes.iter().filter(|(_, p)| p.membership().is_some_and(wanted)).map(|(id, _)| *id).collect()
    }

    /// Asks processes to leave, with a limit to patience.
    pub(crate) fn stop(&mut self, ids: Vec<ProcessId>, reason: &str) {
        for process in ids {
            if let Some(p) = self.processes.get_mut(&process).filter(|p| !p.killed) {
                p.kill_at.get_or_insert(self.now + GRACE);
                let stop = Command::Stop(Stop { reason: reason.to_owned() });
                self.out.push(Effect::Command { process, command: RankCommand { command: Some(stop) } });
            }
        }
    }

    pub(crate) fn stop_all(&mut self, reason: &str) {
        let ids = self.processes.keys().copied().collect();
        self.stop(ids, reason);
    }

    pub(crate) fn kill_all(&mut self) {
        let ids: Vec<ProcessId> = self.processes.keys().copied().collect();
        ids.into_iter().for_each(|id| self.kill(id));
    }

    fn kill(&mut self, id: ProcessId) {
        if let Some(process) = self.processes.get_mut(&id).filter(|p| !p.killed) {
            process.killed = true;
            self.out.push(Effect::Kill(id));
        }
    }

    /// Who was asked to leave and did not is killed, and who is silent for too long.
    pub(crate) fn kill_overdue(&mut self) {
        let now = self.now;
        let late = |p: &Process| p.ends_at().is_some_and(|at| at <= now);
        let ids: Vec<ProcessId> = self.processes.iter().filter(|(_, p)| late(p)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(process) = self.processes.get_mut(&id).filter(|p| p.kill_at.is_none()) {
                let cause = process.silence(now);
                tracing::error!(device = process.device, process = id.0, %cause, "rank lost");
                process.cause = Some(cause);
            }
            self.kill(id);
        }
    }

    /// A worker that was itself held up (stopped, starved, waiting for its disk) has not listened: the time since
    /// its last event is nobody's silence.
    pub(crate) fn excuse_silence(&mut self, now: Duration) {
        let due = self.deadline().unwrap_or(now).max(self.now);
        if now.saturating_sub(due) < HELD_UP {
            return;
        }
        let deaf = now.saturating_sub(self.now);
        tracing::warn!(?deaf, "this worker was held up");
        for process in self.processes.values_mut() {
            *process.heard.as_mut().unwrap_or(&mut process.since) += deaf;
        }
    }
}

/// A failure after which starting again may help.
pub(crate) fn failed(message: String) -> Said {
    Said::Failed(Failed { kind: FailureKind::Other.into(), message, step: None })
}
