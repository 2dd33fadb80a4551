//! Workers come, speak, fall silent and go.

use crate::effect::{Effect, Persisted, ToWorker, Warning};
use crate::event::{Hello, RankEvent, SessionId};
use crate::generation::{DrainFor, Member};
use crate::reason::EndCause;
use crate::state::{Stage, Turn, Worker};
use mcl_types::{FencingToken, Rank, WorkerName};

impl Turn<'_> {
    pub(crate) fn connected(&mut self, session: SessionId, hello: Hello) {
        if let Some(reason) = self.refusal(&hello) {
            let worker = hello.worker;
            self.out.push(Effect::Warn(Warning::WorkerRefused { worker, reason: reason.clone() }));
            self.out.push(Effect::Send { session, message: ToWorker::Refused { reason } });
            self.out.push(Effect::Close { session });
            return;
        }
        let name = hello.worker;
        let worker = Worker {
            session: Some(session),
            last_heard: self.now,
            devices: hello.devices,
            advertise: hello.advertise,
            libtorch: hello.libtorch,
            highest: hello.highest,
        };
        let before = self.state.workers.insert(name.clone(), worker);
        if let Some(old) = before.and_then(|w| w.session) {
            self.out.push(Effect::Close { session: old });
        }
        self.out.push(Effect::Send { session, message: ToWorker::Welcome });
        let dormant = self.state.job.as_ref().is_some_and(|j| j.dormant);
        if let Some(outcome) = self.state.outcome().filter(|_| !dormant) {
            let (reason, leave) = (outcome.to_string(), self.state.settings.leave_when_done);
            self.out.push(Effect::Send { session, message: ToWorker::Dismiss { reason, leave } });
        }
        self.reattach(&name);
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
        if hello.devices.is_empty() {
            return Some(format!("worker {} offers no device: expected at least one", hello.worker));
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
    fn reattach(&mut self, name: &WorkerName) {
        let Some(job) = self.state.job.as_ref() else { return };
        let Stage::Live(live) = &job.stage else { return };
        let ranks = live.ranks_of(name);
        let Some(worker) = self.state.workers.get(name) else { return };
        if ranks.is_empty() {
            return;
        }
        let generation = live.generation;
        let lost_devices =
            ranks.iter().any(|r| live.place(*r).is_none_or(|p| !worker.devices.contains(&p.device)));
        let never_assigned = worker.highest.generation < generation;
        if lost_devices || (never_assigned && live.started) {
            self.rank_or_worker_gone(&ranks, EndCause::RanksGone { worker: name.clone() });
        } else if never_assigned {
            self.prepare_again(&ranks);
            self.assign(Some(name));
        } else if live.started {
            let start =
                live.store_address.clone().map(|store_address| ToWorker::Start { generation, store_address });
            let drain = live.drain.map(|_| ToWorker::Drain { generation });
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
    }

    /// Ranks that are started afresh: what earlier ones of the same number said is void.
    fn prepare_again(&mut self, ranks: &[Rank]) {
        let Some(live) = self.state.live_mut() else { return };
        for rank in ranks {
            if let Some(member) = live.member(*rank) {
                *member = Member::Preparing;
            }
            if rank.get() == 0 {
                live.store_address = None;
            }
        }
    }

    fn session(&self, name: &WorkerName) -> Option<SessionId> {
        self.state.workers.get(name)?.session
    }

    pub(crate) fn heartbeat(
        &mut self,
        session: SessionId,
        token: Option<FencingToken>,
        events: Vec<RankEvent>,
    ) {
        let Some(name) = self.state.worker_of(session).cloned() else { return };
        if let Some(worker) = self.state.workers.get_mut(&name) {
            worker.last_heard = self.now;
        }
        for event in events {
            self.rank_event(&name, event);
        }
        self.check_token(&name, token);
    }

    /// A worker that had seen the live generation and no longer runs it has lost its ranks. A worker
    /// that says nothing of its token is trusted to report each exit.
    fn check_token(&mut self, name: &WorkerName, token: Option<FencingToken>) {
        let Some(live) = self.state.live() else { return };
        let Some(worker) = self.state.workers.get(name) else { return };
        let ranks = live.ranks_of(name);
        let Some(token) = token else { return };
        let knew_it = worker.highest.generation >= live.generation;
        if !ranks.is_empty() && knew_it && token.generation < live.generation {
            self.rank_or_worker_gone(&ranks, EndCause::RanksGone { worker: name.clone() });
        } else if token.generation == live.generation
            && let Some(worker) = self.state.workers.get_mut(name)
        {
            worker.highest = worker.highest.max(token);
        }
    }

    pub(crate) fn disconnected(&mut self, session: SessionId) {
        let Some(name) = self.state.worker_of(session).cloned() else { return };
        if let Some(worker) = self.state.workers.get_mut(&name) {
            worker.session = None;
        }
    }

    /// Time passed: who is silent for too long is lost, who does not become ready in time is given up.
    pub(crate) fn tick(&mut self) {
        let patience = self.state.lost_after();
        let lost: Vec<(WorkerName, std::time::Duration)> = self
            .state
            .workers
            .iter()
            .map(|(name, w)| (name.clone(), self.now.saturating_sub(w.last_heard)))
            .filter(|(_, silent)| *silent >= patience)
            .collect();
        for (name, silent) in lost {
            if let Some(session) = self.state.workers.remove(&name).and_then(|w| w.session) {
                self.out.push(Effect::Close { session });
            }
            let ranks = self.state.live().map(|l| l.ranks_of(&name)).unwrap_or_default();
            if !ranks.is_empty() {
                self.rank_or_worker_gone(&ranks, EndCause::WorkerLost { worker: name, silent });
            }
        }
        let after = self.state.settings.forming_timeout;
        if let Some(live) = self.state.live()
            && !live.started
            && self.now.saturating_sub(live.formed_at) > after
        {
            let waiting_for = live.preparing();
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
                let staged = live.staged.get(&step).is_some_and(|s| s.ranks.contains(rank));
                let visible = job.last_checkpoint == Some(step) || job.committing == Some(step);
                job.committed >= step && (staged || visible)
            })
        });
        if !done {
            self.end_generation(cause);
        }
    }

    /// Drains the live generation when spare devices have been there long enough to be worth it.
    pub(crate) fn consider_growth(&mut self) {
        let Some(grow_after) = self.state.settings.grow_after else { return };
        let spare = self.has_spare_device();
        let now = self.now;
        let Some(job) = self.state.job.as_mut() else { return };
        let committed = job.committed;
        let Stage::Live(live) = &mut job.stage else { return };
        if !spare {
            live.spare_since = None;
            return;
        }
        let since = *live.spare_since.get_or_insert(now);
        // Only a generation that has brought the run forward is interrupted, and only once.
        let worth_it = live.started
            && live.drain.is_none()
            && committed > live.first
            && live.members.iter().all(|m| *m == Member::Training);
        if worth_it && now.saturating_sub(since) >= grow_after {
            live.drain = Some(DrainFor::Growth);
            let generation = live.generation;
            self.out.push(Effect::Persist(Persisted::Drain(DrainFor::Growth)));
            self.broadcast(&ToWorker::Drain { generation });
        }
    }

    /// Whether more ranks than now could have a lane.
    fn has_spare_device(&self) -> bool {
        let Some(live) = self.state.live() else { return false };
        live.layout.world() < self.possible_world().min(live.layout.lanes())
    }
}
