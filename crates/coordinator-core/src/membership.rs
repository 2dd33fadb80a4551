//! Workers come, speak, fall silent and go.

use crate::effect::{Effect, ToWorker, Warning};
use crate::event::{Hello, RankEvent, SessionId};
use crate::reason::EndCause;
use crate::slots::Slot;
use crate::state::{Stage, Turn, Worker};
use mcl_types::{FencingToken, Rank, Tier, WorkerName};

impl Turn<'_> {
    pub(crate) fn connected(&mut self, session: SessionId, hello: Hello) {
        if let Some(reason) = self.refusal(&hello) {
            // The worker may be from another run altogether; the run's own store knows.
            if hello.highest.term > self.state.term {
                self.out.push(Effect::CheckReign);
            }
            let worker = hello.worker;
            self.out.push(Effect::Warn(Warning::WorkerRefused { worker, reason: reason.clone() }));
            self.out.push(Effect::Send { session, message: ToWorker::Refused { reason } });
            self.out.push(Effect::Close { session });
            return;
        }
        let before = self.state.workers.remove(&hello.worker);
        let known = before.as_ref().map_or(&[][..], |w| &w.slots);
        let run = self.state.job.as_ref().map(|j| j.spec.run_id.clone());
        let slots = Worker::slots_of(&hello, known, run.as_ref().map(mcl_types::RunId::as_str), self.now);
        if let Some(old) = before.and_then(|w| w.session) {
            self.state.sessions.remove(&old);
            self.out.push(Effect::Close { session: old });
        }
        let name = hello.worker.clone();
        let worker = Worker {
            session: Some(session),
            last_heard: self.now,
            advertise: hello.advertise.clone(),
            libtorch: hello.libtorch.clone(),
            slots,
            leaving: hello.leaving,
            released: false,
        };
        self.state.workers.insert(name.clone(), worker);
        self.state.sessions.insert(session, name.clone());
        if hello.leaving {
            self.state.leavers.insert(name.clone());
        } else {
            self.state.leavers.remove(&name);
        }
        self.out.push(Effect::Send { session, message: ToWorker::Welcome });
        self.greet(session, &hello);
        self.reattach(&name, &hello);
    }

    /// What a worker is to do that has just been welcomed.
    fn greet(&mut self, session: SessionId, hello: &Hello) {
        let Some(job) = self.state.job.as_ref() else { return };
        match &job.stage {
            Stage::Over(_) if job.dormant && hello.processes.is_empty() => {}
            // The coordinator that ended it did not live to tell: its ranks stop, the worker stays.
            Stage::Over(outcome) if job.dormant => {
                let reason = outcome.to_string();
                self.out.push(Effect::Send { session, message: ToWorker::Dismiss { reason, leave: false } });
                let slots = self.state.workers.get_mut(&hello.worker).map(|w| &mut w.slots);
                slots.into_iter().flatten().for_each(Slot::dismissed);
            }
            Stage::Over(outcome) => {
                let (reason, leave) = (outcome.to_string(), self.state.settings.leave_when_done);
                self.out.push(Effect::Send { session, message: ToWorker::Dismiss { reason, leave } });
            }
            _ => self.out.push(Effect::Send { session, message: ToWorker::Prepare }),
        }
    }

    /// Why this worker may not take part, if so.
    fn refusal(&self, hello: &Hello) -> Option<String> {
        let ours = FencingToken { term: self.state.term, generation: self.state.last_generation };
        if hello.highest > ours {
            return Some(format!(
                "worker {} has served a coordinator with token {}, this one is at {ours}: it was replaced, or its run directory is another one; start it on the newest run directory, or clear the worker's stored token",
                hello.worker, hello.highest
            ));
        }
        let build = &self.state.settings.build;
        if !build.is_empty() && !hello.build.is_empty() && hello.build != *build {
            return Some(format!(
                "worker {} is mcl {}, this coordinator is mcl {build}: install the same version on both",
                hello.worker, hello.build
            ));
        }
        if hello.devices.is_empty() {
            return Some(format!("worker {} offers no device: expected at least one", hello.worker));
        }
        let twice =
            hello.devices.iter().enumerate().find(|(i, d)| hello.devices.iter().take(*i).any(|o| o == *d));
        if let Some((_, device)) = twice {
            return Some(format!(
                "worker {} offers device {device} twice: expected names that differ",
                hello.worker
            ));
        }
        if let Some(known) = self.state.workers.get(&hello.worker)
            && known.session.is_some()
            && known.advertise != hello.advertise
            && self.now.saturating_sub(known.last_heard) < self.state.lost_after()
        {
            return Some(format!(
                "the name {} is taken by the worker at {}: give this one another name",
                hello.worker, known.advertise
            ));
        }
        let other = self.state.workers.iter().find(|(name, w)| {
            **name != hello.worker
                && w.session.is_some()
                && !w.libtorch.is_empty()
                && !hello.libtorch.is_empty()
                && w.libtorch != hello.libtorch
        });
        other.map(|(name, w)| {
            format!(
                "worker {} has libtorch {}, {name} has {}: all workers of a run need the same one",
                hello.worker, hello.libtorch, w.libtorch
            )
        })
    }

    /// A member of the live generation is back: tell it what it may have missed, all of which it may hear
    /// twice.
    fn reattach(&mut self, name: &WorkerName, hello: &Hello) {
        let Some(job) = self.state.job.as_ref() else { return };
        let Stage::Live(live) = &job.stage else { return };
        let ranks = live.ranks_of(name);
        if ranks.is_empty() {
            return;
        }
        let generation = live.generation;
        let joined = |rank: &Rank| {
            let place = live.place(*rank)?;
            let found =
                hello.processes.iter().find(|p| p.process == place.process && p.device == place.device)?;
            Some(found.generation)
        };
        let joined: Vec<_> = ranks.iter().map(joined).collect();
        let gone: Vec<Rank> =
            ranks.iter().zip(&joined).filter(|(_, j)| j.is_none()).map(|(r, _)| *r).collect();
        let unaware = joined.iter().flatten().any(|g| *g < generation);
        if !gone.is_empty() {
            self.rank_or_worker_gone(&gone, EndCause::RanksGone { worker: name.clone() });
        } else if unaware && live.started {
            self.rank_or_worker_gone(&ranks, EndCause::RanksGone { worker: name.clone() });
        } else if unaware {
            self.assign(Some(name));
        } else if live.started {
            self.remind(name);
        } else {
            self.send_recount();
        }
    }

    /// Everything that a member of a training generation may have missed.
    fn remind(&mut self, name: &WorkerName) {
        let Some(job) = self.state.job.as_ref() else { return };
        let Stage::Live(live) = &job.stage else { return };
        let generation = live.generation;
        let start = live.store_address.clone().zip(live.origin).map(|(store_address, origin)| {
            ToWorker::Start { generation, store_address, first: live.first, origin }
        });
        let drain = live.drain.map(|why| {
            if why.stages() { ToWorker::Drain { generation } } else { ToWorker::Pause { generation } }
        });
        let committed = job.committed.checked_sub(1);
        let granted = job.spec.position(job.committed).epoch.get()..live.granted;
        if let Some(start) = start {
            self.send(name, start);
        }
        self.send_grants(granted, Some(name));
        if let (Some(step), Some(session)) = (committed, self.session(name)) {
            let message = ToWorker::Committed { generation, step };
            self.out.push(Effect::SendOnceDurable { session, message });
        }
        if let Some(drain) = drain {
            self.send(name, drain);
        }
        self.grant_ahead();
    }

    fn session(&self, name: &WorkerName) -> Option<SessionId> {
        self.state.workers.get(name)?.session
    }

    pub(crate) fn heartbeat(&mut self, session: SessionId, leaving: bool, events: Vec<RankEvent>) {
        let Some(name) = self.state.worker_of(session).cloned() else { return };
        if let Some(worker) = self.state.workers.get_mut(&name) {
            worker.last_heard = self.now;
            worker.leaving |= leaving;
        }
        if leaving {
            self.state.leavers.insert(name.clone());
        }
        for event in events {
            self.rank_event(&name, event);
        }
    }

    pub(crate) fn disconnected(&mut self, session: SessionId) {
        let Some(name) = self.state.worker_of(session).cloned() else { return };
        self.state.sessions.remove(&session);
        let Some(worker) = self.state.workers.get_mut(&name) else { return };
        worker.session = None;
        // It was let go: it is not missed.
        if worker.released {
            self.state.workers.remove(&name);
            self.state.leavers.remove(&name);
        }
    }

    /// Nobody could be heard for so long.
    pub(crate) fn held_up(&mut self, by: std::time::Duration) {
        for worker in self.state.workers.values_mut() {
            // Who was given time to come back keeps it.
            worker.last_heard = (worker.last_heard + by).min(self.now.max(worker.last_heard));
        }
    }

    /// Time passed: who is silent for too long is lost, who does not become ready in time is given up.
    pub(crate) fn tick(&mut self) {
        let patience = self.state.lost_after();
        let lost: Vec<(WorkerName, std::time::Duration)> = self
            .state
            .workers
            .iter()
            .map(|(name, w)| (name, self.now.saturating_sub(w.last_heard)))
            .filter(|(_, silent)| *silent >= patience)
            .map(|(name, silent)| (name.clone(), silent))
            .collect();
        for (name, silent) in lost {
            self.state.leavers.remove(&name);
            if let Some(session) = self.state.workers.remove(&name).and_then(|w| w.session) {
                self.state.sessions.remove(&session);
                self.out.push(Effect::Close { session });
            }
            let ranks = self.state.live().map(|l| l.ranks_of(&name)).unwrap_or_default();
            if !ranks.is_empty() {
                self.rank_or_worker_gone(&ranks, EndCause::WorkerLost { worker: name, silent });
            }
        }
        let after = self.state.settings.joining_timeout;
        if let Some(live) = self.state.live()
            && !live.started
            && self.now.saturating_sub(live.formed_at) > after
            && !live.joining().is_empty()
        {
            let waiting_for = live.joining();
            self.end_generation(EndCause::NotReady { after, waiting_for });
        }
    }

    /// Ranks are gone. That ends the generation, unless they had nothing left to do.
    pub(crate) fn rank_or_worker_gone(&mut self, ranks: &[Rank], cause: EndCause) {
        let Some(job) = self.state.job.as_ref() else { return };
        let Stage::Live(live) = &job.stage else { return };
        let done = ranks.iter().all(|rank| {
            let parked =
                live.members.get(rank.get() as usize).and_then(|m| m.parked_at(job.spec.total_steps()));
            parked.is_some_and(|step| {
                let staged = live.staged.get(&step);
                let staged = staged.is_some_and(|s| s.tier == Tier::Durable && s.ranks.contains(rank));
                let asked = job.committing == Some(step) && job.committing_to == Tier::Durable;
                let visible = job.last_checkpoint == Some(step) || asked;
                job.committed >= step && (staged || visible)
            })
        });
        if !done {
            self.end_generation(cause);
        }
    }
}
