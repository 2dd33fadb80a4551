//! Between generations: is there what the next one needs?

use crate::effect::{Effect, Persisted, ToWorker, Warning};
use crate::generation::{DrainFor, GenerationRecord, Place};
use crate::reason::{Asking, Outcome, Reason};
use crate::state::{Gathering, Job, Lookup, Stage, State, Turn};
use mcl_plan::ledger::RolledBack;
use mcl_types::{LaneLayout, Step, WorkerName};
use std::time::Duration;

impl Turn<'_> {
    /// Forms the next generation as soon as nothing is missing.
    pub(crate) fn gather(&mut self) {
        let fresh = self.state.last_generation.get() == 0;
        let Some(job) = self.state.job.as_mut() else { return };
        let Stage::Gathering(gathering) = &mut job.stage else { return };
        if job.drain {
            self.interrupt();
            return;
        }
        // While a checkpoint is on its way to become visible, what the store shows is not the last word.
        if gathering.lookup == Lookup::NotAsked && job.committing.is_none() {
            if fresh && job.committed == 0 {
                gathering.lookup = Lookup::Known(None);
            } else {
                gathering.lookup = Lookup::Asked;
                self.out.push(Effect::FindCheckpoints);
            }
        }
        let total = job.spec.total_steps();
        if job.committed == total && gathering.lookup == Lookup::Known(Some(total)) {
            job.last_checkpoint = Some(total);
            self.over(Outcome::Done { steps: total });
            return;
        }
        if let Some((record, layout)) = self.next_generation() {
            self.form(record, layout);
        }
    }

    fn next_generation(&self) -> Option<(GenerationRecord, LaneLayout)> {
        let job = self.state.job.as_ref()?;
        let Stage::Gathering(gathering) = &job.stage else { return None };
        if self.state.missing(job, gathering, self.now).is_some() {
            return None;
        }
        let Lookup::Known(resume) = gathering.lookup else { return None };
        let places = self.state.places(job.spec.lanes);
        let layout = LaneLayout::new(job.spec.lanes, u32::try_from(places.len()).ok()?).ok()?;
        let first = resume.unwrap_or(0);
        let generation = self.state.last_generation.next();
        let cause = job.ended.as_ref().and_then(|e| e.cause.as_ref());
        let rolled_back = (job.committed > first).then(|| RolledBack {
            from: Step::new(job.committed),
            to: Step::new(first),
            generation,
            reason: cause
                .map_or_else(|| "the run goes on from its newest checkpoint".to_owned(), ToString::to_string),
        });
        Some((GenerationRecord { generation, resume, first, places, rolled_back }, layout))
    }

    /// The newest visible checkpoint that the ledger covers is where the next generation begins.
    pub(crate) fn checkpoints_found(&mut self, steps: &[u64]) {
        let Some(job) = self.state.job.as_mut() else { return };
        let Stage::Gathering(gathering) = &mut job.stage else { return };
        if gathering.lookup != Lookup::Asked {
            return;
        }
        let committed = job.committed;
        if let Some(found) = steps.iter().copied().max().filter(|s| *s > committed) {
            self.out.push(Effect::Warn(Warning::CheckpointAhead { found, committed }));
        }
        gathering.lookup = Lookup::Known(steps.iter().copied().filter(|s| *s <= committed).max());
    }

    /// Finish the step in flight, checkpoint, stop.
    pub(crate) fn drain(&mut self) {
        let Some(job) = self.state.job.as_mut() else { return };
        if job.drain || matches!(job.stage, Stage::Over(_)) {
            return;
        }
        job.drain = true;
        self.out.push(Effect::Persist(Persisted::Drain(DrainFor::Stop)));
        let Stage::Live(live) = &mut job.stage else { return };
        live.drain = Some(DrainFor::Stop);
        let (generation, started) = (live.generation, live.started);
        if started {
            self.broadcast(&ToWorker::Drain { generation });
        } else {
            self.close_generation("the job is drained before it began to train");
            self.interrupt();
        }
    }

    /// Devices of connected workers.
    pub(crate) fn possible_world(&self) -> u32 {
        self.state.devices()
    }
}

impl State {
    /// Connected workers.
    pub(crate) fn connected(&self) -> u32 {
        count(self.workers.values().filter(|w| w.session.is_some()).count())
    }

    /// Devices of connected workers.
    pub(crate) fn devices(&self) -> u32 {
        count(self.workers.values().filter(|w| w.session.is_some()).map(|w| w.devices.len()).sum())
    }

    /// The first `lanes` devices in order of worker names: one rank each, the others are spares.
    fn places(&self, lanes: u32) -> Vec<Place> {
        let connected = self.workers.iter().filter(|(_, w)| w.session.is_some());
        let all = connected.flat_map(|(name, w)| {
            w.devices.iter().map(|device| Place { worker: name.clone(), device: device.clone() })
        });
        all.take(lanes as usize).collect()
    }

    /// Workers that are known and silent: longer than a heartbeat could take, or without a stream.
    pub(crate) fn silent(&self, now: Duration) -> Vec<(WorkerName, Duration)> {
        let worth_saying = self.lost_after() / 3;
        self.workers
            .iter()
            .map(|(name, w)| (name.clone(), now.saturating_sub(w.last_heard), w.session.is_none()))
            .filter(|(_, silent, gone)| *gone || *silent > worth_saying)
            .map(|(name, silent, _)| (name, silent))
            .collect()
    }

    /// What the next generation lacks, if anything.
    pub(crate) fn missing(&self, job: &Job, gathering: &Gathering, now: Duration) -> Option<Reason> {
        let connected = self.connected();
        let after = || job.ended.as_ref().and_then(|e| e.cause.clone());
        if connected < job.spec.min_workers {
            let needed = job.spec.min_workers;
            return Some(Reason::TooFewWorkers {
                connected,
                needed,
                silent: self.silent(now),
                after: after(),
            });
        }
        let waited = now.saturating_sub(gathering.since);
        let left = self.settings.expected_grace.saturating_sub(waited);
        if let Some(expected) = self.settings.expected_workers
            && gathering.first
            && connected < expected
            && !left.is_zero()
        {
            return Some(Reason::ExpectedWorkers { connected, expected, left });
        }
        let (devices, lanes) = (self.devices(), job.spec.lanes);
        if let Some(max_lanes_per_rank) = job.spec.max_lanes_per_rank {
            let needed = lanes.div_ceil(max_lanes_per_rank.max(1));
            if devices < needed {
                return Some(Reason::TooFewDevices { devices, needed, lanes, max_lanes_per_rank });
            }
        }
        if now < gathering.not_before {
            return Some(Reason::Pausing { left: gathering.not_before - now, after: after() });
        }
        match gathering.lookup {
            Lookup::Known(_) => None,
            Lookup::Asked => Some(Reason::CheckpointService { asking: Asking::Newest }),
            Lookup::NotAsked => Some(Reason::CheckpointService { asking: Asking::Commit }),
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
