//! Between generations: is there what the next one needs?

use crate::effect::{Effect, ToWorker, Warning};
use crate::generation::{DrainFor, GenerationRecord, Place};
use crate::reason::{Asking, Outcome, Reason};
use crate::slots::Slot;
use crate::state::{Gathering, Job, Lookup, Newest, Stage, State, Turn};
use crate::{Failure, Persisted};
use mcl_types::{LaneLayout, WorkerName};
use std::time::Duration;

impl Turn<'_> {
    /// Forms the next generation as soon as nothing is missing.
    pub(crate) fn gather(&mut self) {
        let now = self.now;
        let Some(job) = self.state.job.as_ref() else { return };
        let Stage::Gathering(gathering) = &job.stage else { return };
        // Said in full by whoever asks; while many workers join it is not worth the words.
        let plain = !job.drain && !job.held && job.committed < job.spec.total_steps();
        if plain && self.state.ready_workers() < job.spec.min_workers {
            self.give_up_if_unfit();
            return;
        }
        let missing = self.state.missing(job, gathering, now);
        // Whoever wants the job to stop does not wait for machines; but a state that is there is saved first.
        let no_use_in_waiting = match &missing {
            None => !self.state.usable().any(|(_, s)| s.holds),
            Some(Reason::Pausing { .. }) => false,
            Some(_) => true,
        };
        if job.drain && no_use_in_waiting {
            self.interrupt();
            return;
        }
        let total = job.spec.total_steps();
        if job.committed == total {
            let (lookup, committing) = (job.lookup.clone(), job.committing.is_some());
            if lookup == Lookup::NotAsked && !committing && !job.fresh {
                if let Some(job) = self.state.job.as_mut() {
                    job.lookup = Lookup::Asked;
                }
                self.out.push(Effect::FindCheckpoints { at_most: total });
                return;
            }
            if matches!(lookup, Lookup::Known(newest) if newest.durable == Some(total)) {
                if let Some(job) = self.state.job.as_mut() {
                    job.last_checkpoint = Some(total);
                }
                self.over(Outcome::Done { steps: total });
                return;
            }
            if !matches!(lookup, Lookup::Known(_) | Lookup::Gone) {
                return;
            }
        }
        if missing.is_some() {
            self.give_up_if_unfit();
            return;
        }
        if let Some((record, layout)) = self.next_generation() {
            self.form(record, layout);
        }
    }

    /// Where every process of every device failed too often there is nothing to wait for.
    fn give_up_if_unfit(&mut self) {
        let limit = self.state.settings.fruitless_limit;
        let mut slots =
            self.state.workers.values().filter(|w| w.takes_part()).flat_map(|w| &w.slots).peekable();
        if slots.peek().is_none() || !slots.all(|s| s.failures >= limit) {
            return;
        }
        let Some(job) = self.state.job.as_ref() else { return };
        let causes = job.causes.clone();
        self.over(Outcome::Failed(Failure::NoStart { times: limit, causes }));
    }

    fn next_generation(&self) -> Option<(GenerationRecord, LaneLayout)> {
        let job = self.state.job.as_ref()?;
        let places = self.state.places(job.spec.lanes);
        let layout = LaneLayout::new(job.spec.lanes, u32::try_from(places.len()).ok()?).ok()?;
        let generation = self.state.last_generation.next();
        Some((GenerationRecord { generation, places }, layout))
    }

    /// The newest visible checkpoint that the ledger covers is where a generation begins that has nothing better.
    pub(crate) fn checkpoints_found(&mut self, steps: &[u64], in_memory: &[u64], damaged: bool) {
        let Some(job) = self.state.job.as_mut() else { return };
        if job.lookup != Lookup::Asked {
            return;
        }
        let committed = job.committed;
        if let Some(found) = steps.iter().copied().max().filter(|s| *s > committed) {
            self.out.push(Effect::Warn(Warning::CheckpointAhead { found, committed }));
        }
        // Step 0 has a checkpoint where the run was given one to begin with; any other is somebody else's.
        let first = u64::from(job.spec.initial.is_none());
        let durable = steps.iter().copied().filter(|s| (first..=committed).contains(s)).max();
        // A job is not done with a state that may be gone tomorrow.
        let end = job.spec.total_steps().min(committed.saturating_add(1));
        let in_memory = in_memory.iter().copied().filter(|s| (1..end).contains(s)).max();
        let newest = Newest { durable, in_memory };
        let saved = job.last_checkpoint.is_some_and(|s| s > 0);
        let gone = newest.of_both().is_none() && saved && !damaged;
        job.lookup = if gone { Lookup::Gone } else { Lookup::Known(newest) };
    }

    /// Finish the step in flight, checkpoint, stop.
    pub(crate) fn drain(&mut self) {
        let Some(job) = self.state.job.as_mut() else { return };
        if job.drain || matches!(job.stage, Stage::Over(_)) {
            return;
        }
        job.drain = true;
        self.out.push(Effect::Persist(Persisted::Drain(DrainFor::Stop)));
        self.ask_to_stop(DrainFor::Stop);
    }

    /// Finish the step in flight, checkpoint, keep the processes, wait.
    pub(crate) fn hold(&mut self) {
        let Some(job) = self.state.job.as_mut() else { return };
        if job.held || matches!(job.stage, Stage::Over(_)) {
            return;
        }
        job.held = true;
        self.out.push(Effect::Persist(Persisted::Held(true)));
        self.ask_to_stop(DrainFor::Hold);
    }

    /// Go on.
    pub(crate) fn resume(&mut self) {
        let Some(job) = self.state.job.as_mut() else { return };
        if !job.held || matches!(job.stage, Stage::Over(_)) {
            return;
        }
        job.held = false;
        self.out.push(Effect::Persist(Persisted::Held(false)));
    }

    /// Stop for good.
    pub(crate) fn cancel(&mut self) {
        let Some(job) = self.state.job.as_ref() else { return };
        if matches!(job.stage, Stage::Over(_)) {
            return;
        }
        let step = job.last_checkpoint.unwrap_or(0);
        self.close_generation();
        self.over(Outcome::Cancelled { step });
    }

    /// The live generation stops at a boundary and stages a checkpoint. One that has not begun is broken up: a
    /// state that it may hold stops at the first boundary of the next one.
    fn ask_to_stop(&mut self, why: DrainFor) {
        let Some(live) = self.state.live_mut() else { return };
        live.drain = Some(why);
        let (generation, started) = (live.generation, live.started);
        if started {
            self.broadcast(&ToWorker::Drain { generation });
        } else if !self.state.usable().any(|(_, s)| s.holds) {
            self.regroup();
        }
    }
}

impl State {
    /// Connected workers.
    pub(crate) fn connected(&self) -> u32 {
        count(self.workers.values().filter(|w| w.takes_part()).count())
    }

    /// Workers with a process that can join.
    pub(crate) fn ready_workers(&self) -> u32 {
        let ready = |w: &&crate::state::Worker| {
            w.takes_part() && w.slots.iter().any(|s| s.is_prepared() && s.process.is_some())
        };
        count(self.workers.values().filter(ready).count())
    }

    /// The processes of the next generation, at most one a lane: first those that may hold the state, then others;
    /// ranks are numbered in order of worker names and devices.
    pub(crate) fn places(&self, lanes: u32) -> Vec<Place> {
        let all: Vec<(&WorkerName, &Slot)> = self.usable().collect();
        let mut chosen: Vec<usize> = (0..all.len()).collect();
        chosen.sort_by_key(|i| all.get(*i).is_none_or(|(_, s)| !s.holds));
        chosen.truncate(lanes as usize);
        chosen.sort_unstable();
        let place = |i: usize| {
            let (worker, slot) = all.get(i)?;
            Some(Place { worker: (*worker).clone(), device: slot.device.clone(), process: slot.process? })
        };
        chosen.into_iter().filter_map(place).collect()
    }

    /// Workers that are known and silent: longer than a heartbeat could take, or without a stream.
    pub(crate) fn silent(&self, now: Duration) -> Vec<(WorkerName, Duration)> {
        let worth_saying = self.lost_after() / 3;
        self.workers
            .iter()
            .map(|(name, w)| (name, now.saturating_sub(w.last_heard), w.session.is_none()))
            .filter(|(_, silent, gone)| *gone || *silent > worth_saying)
            .map(|(name, silent, _)| (name.clone(), silent))
            .collect()
    }

    /// What the next generation lacks, if anything.
    pub(crate) fn missing(&self, job: &Job, gathering: &Gathering, now: Duration) -> Option<Reason> {
        if job.held && !job.drain {
            return Some(Reason::Held);
        }
        let after = || job.ended.as_ref().and_then(|e| e.cause.clone());
        let connected = self.connected();
        let waited = now.saturating_sub(gathering.since);
        let left = self.settings.expected_grace.saturating_sub(waited);
        if let Some(expected) = self.settings.expected_workers
            && gathering.first
            && connected < expected
            && connected >= job.spec.min_workers
            && !left.is_zero()
        {
            return Some(Reason::ExpectedWorkers { connected, expected, left });
        }
        let ready = self.ready_workers();
        let needed = job.spec.min_workers;
        let preparing = || self.preparing(now).map(|(name, s)| (name.clone(), s.device.clone())).collect();
        if ready < needed {
            let (silent, preparing) = (self.silent(now), preparing());
            return Some(Reason::TooFewWorkers {
                connected,
                ready,
                needed,
                preparing,
                silent,
                after: after(),
            });
        }
        // Who holds the state goes on at once; without it nobody is left behind.
        if !self.usable().any(|(_, s)| s.holds) {
            if let Some(worker) = self.holder_away() {
                return Some(Reason::HolderAway { worker: worker.clone(), after: after() });
            }
            let preparing: Vec<(WorkerName, String)> = preparing();
            if !preparing.is_empty() {
                return Some(Reason::Preparing { preparing });
            }
        }
        let (devices, lanes) = (count(self.usable().count()), job.spec.lanes);
        if let Some(max_lanes_per_rank) = job.spec.max_lanes_per_rank {
            let needed = lanes.div_ceil(max_lanes_per_rank.max(1));
            if devices < needed {
                return Some(Reason::TooFewDevices { devices, needed, lanes, max_lanes_per_rank });
            }
        }
        if now < gathering.not_before {
            return Some(Reason::Pausing { left: gathering.not_before - now, after: after() });
        }
        None
    }

    /// What a generation that is ready waits for before it can be started.
    pub(crate) fn unsettled(&self, job: &Job) -> Option<Reason> {
        let live = self.live()?;
        if let Some((rank, steps)) = &live.recount {
            return Some(Reason::Recounting { rank: *rank, first: steps.start, end: steps.end });
        }
        match job.lookup {
            Lookup::Asked => Some(Reason::CheckpointService { asking: Asking::Newest }),
            Lookup::NotAsked if job.committing.is_some() => {
                Some(Reason::CheckpointService { asking: Asking::Commit })
            }
            _ => None,
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
