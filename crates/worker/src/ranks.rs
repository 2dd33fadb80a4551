//! The part of the decisions that is about rank processes: their words, their ends.

use crate::event::{Effect, Exit, ProcessId};
use crate::state::{GRACE, Process, State};
use mcl_proto::v1::{
    Configure, Exited, Failed, FailureKind, RankCommand, RankEvent, Stop, rank_command::Command,
    rank_event::Event as Said,
};

impl State {
    /// A rank of the current generation is believed; of an older one only that it failed is of interest.
    pub(crate) fn rank_said(&mut self, id: ProcessId, event: RankEvent) {
        let Some(process) = self.processes.get(&id) else { return };
        let current = self.current == Some(process.token);
        match event.event {
            None | Some(Said::Exited(_)) => {
                let what = "expected an event, found an empty one or one that only a worker may send";
                self.condemn(id, format!("its stdout is unreadable: {what}"));
            }
            Some(said) if current || matches!(said, Said::Failed(_)) => self.report(id, said),
            Some(_) => {}
        }
    }

    /// Stamps an event with what the process was started as, whatever it says of itself.
    fn report(&mut self, id: ProcessId, said: Said) {
        let Some(process) = self.processes.get(&id) else { return };
        let (token, rank) = (Some(process.token.into()), process.rank);
        self.outbox.push(RankEvent { token, rank, event: Some(said) }, self.now);
    }

    fn report_failed(&mut self, id: ProcessId, message: String) {
        let failed = Failed { kind: FailureKind::Other.into(), message, step: None };
        self.report(id, Said::Failed(failed));
    }

    /// A rank that cannot be worked with: its failure is reported, and it is killed.
    pub(crate) fn condemn(&mut self, id: ProcessId, why: String) {
        let Some(process) = self.processes.get(&id).filter(|p| !p.killed) else { return };
        tracing::error!(rank = process.rank, %why, "rank killed");
        self.report_failed(id, format!("killed by its worker: {why}"));
        self.kill(id);
    }

    pub(crate) fn not_started(&mut self, id: ProcessId, reason: String) {
        let Some(process) = self.processes.get(&id) else { return };
        tracing::error!(rank = process.rank, %reason, "rank not started");
        self.report_failed(id, format!("the rank could not be started: {reason}"));
        self.processes.remove(&id);
    }

    pub(crate) fn gone(&mut self, id: ProcessId, exit: Exit) {
        let Some(process) = self.processes.get(&id) else { return };
        tracing::info!(rank = process.rank, token = %process.token, status = %exit.status, "rank gone");
        if self.current == Some(process.token) {
            let Exit { status, by_signal, last_words } = exit;
            self.report(id, Said::Exited(Exited { status, by_signal, last_words }));
        }
        self.processes.remove(&id);
    }

    /// The running ranks of the current generation, or the one named.
    pub(crate) fn current_ranks(&self, rank: Option<u32>) -> Vec<ProcessId> {
        self.processes
            .iter()
            .filter(|(_, p)| self.current == Some(p.token) && rank.is_none_or(|r| r == p.rank))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Asks ranks to leave, with a limit to patience; those not started yet never are.
    pub(crate) fn stop(&mut self, rank: Option<u32>, reason: &str) {
        self.waiting.retain(|c| rank.is_some_and(|r| r != c.rank));
        let stop = Command::Stop(Stop { reason: reason.to_owned() });
        for process in self.current_ranks(rank) {
            let command = RankCommand { command: Some(stop.clone()) };
            self.out.push(Effect::Command { process, command });
            if let Some(p) = self.processes.get_mut(&process) {
                p.kill_at.get_or_insert(self.now + GRACE);
            }
        }
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

    /// Who was asked to leave and did not is killed.
    pub(crate) fn end_of_patience(&mut self) {
        let late = |p: &&Process| p.kill_at.is_some_and(|at| at <= self.now);
        let ids: Vec<ProcessId> = self.processes.iter().filter(|(_, p)| late(p)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.kill(id));
    }

    /// Starts the ranks of the current generation once every older one is gone.
    pub(crate) fn start_waiting(&mut self) {
        let Some(token) = self.current else { return };
        if self.processes.values().any(|p| p.token != token) {
            return;
        }
        for configure in std::mem::take(&mut self.waiting) {
            let id = ProcessId(self.next_process);
            self.next_process += 1;
            let rank = configure.rank;
            self.processes.insert(id, Process { rank, token, kill_at: None, killed: false });
            match self.objection(&configure) {
                Some(reason) => self.not_started(id, reason),
                None => self.out.push(Effect::Spawn { process: id, configure: Box::new(configure) }),
            }
        }
    }

    fn objection(&self, configure: &Configure) -> Option<String> {
        let (device, ours) = (&configure.device, &self.identity.hello.devices);
        (!ours.contains(device))
            .then(|| format!("it was assigned device `{device}`, this worker offers {}", ours.join(", ")))
    }
}
