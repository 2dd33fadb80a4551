//! Memberships that nobody forces: a process is ready to be taken in, a worker wants to leave. Ranks pause at a
//! step boundary and go on in the next generation; no step is computed again.

use crate::effect::{Effect, Persisted, ToWorker};
use crate::generation::{DrainFor, Live, Member};
use crate::state::{Ended, Gathering, Stage, State, Turn};
use mcl_types::WorkerName;

impl Turn<'_> {
    /// Asks the live generation to pause where another membership would be better.
    pub(crate) fn consider_regroup(&mut self) {
        let (leaving, spare) = (self.state.leaving_members(), self.state.has_spare());
        let alone = leaving && self.state.nobody_would_stay();
        let (now, grow_after) = (self.now, self.state.settings.grow_after);
        let Some(job) = self.state.job.as_mut() else { return };
        let committed = job.committed;
        let Stage::Live(live) = &mut job.stage else { return };
        if !spare {
            live.spare_since = None;
        }
        let since = if spare { Some(*live.spare_since.get_or_insert(now)) } else { None };
        // Only a generation that has brought the run forward is interrupted to grow.
        let grow = since.zip(grow_after).is_some_and(|(since, after)| now.saturating_sub(since) >= after)
            && committed > live.first;
        let why = match (leaving, grow) {
            (true, _) if alone => DrainFor::Departure,
            (true, _) | (_, true) => DrainFor::Regroup,
            _ => return,
        };
        let steady =
            live.started && live.drain.is_none() && live.members.iter().all(|m| *m == Member::Training);
        if !steady {
            return;
        }
        live.drain = Some(why);
        let generation = live.generation;
        self.out.push(Effect::Persist(Persisted::Drain(why)));
        let message =
            if why.stages() { ToWorker::Drain { generation } } else { ToWorker::Pause { generation } };
        self.broadcast(&message);
    }

    /// Closes the live generation; its ranks stand still, or never began. The next one is formed of whoever is
    /// there.
    pub(crate) fn regroup(&mut self) {
        let now = self.now;
        let Some(generation) = self.close_generation() else { return };
        let Some(job) = self.state.job.as_mut() else { return };
        job.ended = Some(Ended { generation, cause: None });
        job.fruitless = 0;
        job.stage = Stage::Gathering(Gathering::new(now, now, false));
    }

    /// Workers that asked to leave go once no rank of the live generation is theirs.
    pub(crate) fn release_leaving(&mut self) {
        let needed =
            |state: &State, name: &WorkerName| state.live().is_some_and(|l| !l.ranks_of(name).is_empty());
        let free: Vec<WorkerName> = self
            .state
            .leavers
            .iter()
            .filter_map(|name| Some((name, self.state.workers.get(name)?)))
            .filter(|(name, w)| w.leaving && !w.released && w.session.is_some() && !needed(self.state, name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in free {
            if let Some(worker) = self.state.workers.get_mut(&name) {
                worker.released = true;
                worker.slots.iter_mut().for_each(|s| s.holds = false);
            }
            let reason = "it asked to leave, and no rank of it is needed any more".to_owned();
            self.send(&name, ToWorker::Dismiss { reason, leave: true });
        }
    }
}

impl State {
    fn leaving_members(&self) -> bool {
        let Some(live) = self.live() else { return false };
        self.leavers
            .iter()
            .any(|name| self.workers.get(name).is_some_and(|w| w.leaving) && !live.ranks_of(name).is_empty())
    }

    /// Whether every rank is on a worker that leaves: then the state would leave too.
    fn nobody_would_stay(&self) -> bool {
        let Some(live) = self.live() else { return false };
        live.workers().iter().all(|name| self.workers.get(*name).is_none_or(|w| !w.takes_part()))
    }

    /// Whether a process could be taken in that has no lane yet.
    fn has_spare(&self) -> bool {
        let Some(live) = self.live() else { return false };
        let room = live.layout.world() < live.layout.lanes();
        room && self.usable().any(|(name, slot)| !is_member(live, name, slot.process))
    }
}

fn is_member(live: &Live, worker: &WorkerName, process: Option<crate::event::ProcessId>) -> bool {
    process.is_some_and(|p| live.rank_of(worker, p).is_some())
}
