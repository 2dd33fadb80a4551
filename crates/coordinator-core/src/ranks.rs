//! What ranks say, judged.

use crate::event::{Holding, RankEvent, RankSaid, StepReport};
use crate::generation::{Live, Member, Staging};
use crate::job::JobSpec;
use crate::reason::{EndCause, Failure, Outcome};
use crate::slots::SlotStage;
use crate::state::{Stage, Turn};
use mcl_types::{Rank, Tier, WorkerName};
use std::collections::BTreeSet;
use std::ops::Range;

impl Turn<'_> {
    /// A process's event, passed on by `worker`. One of an older generation changes nothing but what is known of
    /// the process and of how that generation ended; nor does one that the worker could not know.
    pub(crate) fn rank_event(&mut self, worker: &WorkerName, event: RankEvent) {
        self.process_event(worker, &event);
        let Some(job) = self.state.job.as_ref() else { return };
        let Some(live) = self.state.live().filter(|l| l.generation == event.generation) else {
            self.late_word(worker, event);
            return;
        };
        if live.place(event.rank).is_none_or(|p| p.worker != *worker || p.process != event.process) {
            return;
        }
        let verdict = judge(&job.spec, live, event.rank, &event.said);
        if let Err(what) = verdict {
            let (rank, worker) = (event.rank, worker.clone());
            self.end_generation(EndCause::OutOfLine { rank, worker, what });
            return;
        }
        self.believe(worker, event);
    }

    /// What an event says of the process itself, whatever generation it was in.
    fn process_event(&mut self, worker: &WorkerName, event: &RankEvent) {
        let process = event.process;
        match &event.said {
            RankSaid::Spawned => self.spawned(worker, &event.device, process),
            RankSaid::Prepared => self.prepared(worker, &event.device, process),
            RankSaid::Failed { .. } | RankSaid::Exited { .. } => {
                let unready = self.state.workers.get_mut(worker).and_then(|w| w.slot(process));
                let unready = unready.is_some_and(|s| matches!(s.stage, SlotStage::Preparing(_)));
                let Some(cause) = cause(worker, event) else { return };
                self.process_gone(worker, process, &cause);
                // A rank of the live generation is judged as one.
                if !unready || self.state.live().is_some_and(|l| l.rank_of(worker, process).is_some()) {
                    return;
                }
                if let Some(job) = self.state.job.as_mut() {
                    let keep = self.state.settings.fruitless_limit as usize;
                    job.causes.push(cause.clone());
                    job.causes.drain(..job.causes.len().saturating_sub(keep));
                }
                if cause.is_fatal() && self.state.outcome().is_none() && self.state.job.is_some() {
                    self.close_generation();
                    self.over(Outcome::Failed(Failure::Fatal(cause)));
                }
            }
            _ => {}
        }
    }

    fn believe(&mut self, worker: &WorkerName, event: RankEvent) {
        let rank = event.rank;
        let gone = cause(worker, &event);
        match event.said {
            RankSaid::Ready { store_address, holding } => self.ready(rank, store_address, holding),
            RankSaid::Spawned | RankSaid::Prepared | RankSaid::Training { .. } => {}
            RankSaid::Step(report) => self.report(rank, report),
            RankSaid::Recounted(steps) => self.recounted(rank, steps),
            RankSaid::Staged { step, slices, tier } => self.staged(rank, step, slices, tier),
            RankSaid::Drained { step } => self.park(rank, Member::Drained(step)),
            RankSaid::Paused { step } => self.park(rank, Member::Paused(step)),
            RankSaid::Finished => self.park(rank, Member::Finished),
            RankSaid::Broken { .. } | RankSaid::Failed { .. } | RankSaid::Exited { .. } => {
                let Some(cause) = gone else { return };
                if cause.is_fatal() {
                    self.end_generation(cause);
                } else {
                    self.rank_or_worker_gone(&[rank], cause);
                }
            }
        }
    }

    /// A word about the generation that ended last. Its first sign is often a peer's broken collective; the
    /// cause comes later and takes its place. What would fail again fails the job, unless the next
    /// generation trains already and has so proved the contrary.
    fn late_word(&mut self, worker: &WorkerName, event: RankEvent) {
        let Some(cause) = cause(worker, &event) else { return };
        let now = self.now;
        let Some(job) = self.state.job.as_mut() else { return };
        let Some(ended) = job.ended.as_mut().filter(|e| e.generation == event.generation) else { return };
        let too_late = match &job.stage {
            Stage::Gathering(_) => false,
            Stage::Live(live) => live.started,
            Stage::Over(_) => true,
        };
        let echo = ended.cause.as_ref().is_some_and(EndCause::is_echo);
        if too_late || cause.is_echo() || !(echo || cause.is_fatal()) {
            return;
        }
        if let Some(last) = job.causes.last_mut() {
            *last = cause.clone();
        }
        ended.cause = Some(cause.clone());
        if let Stage::Gathering(gathering) = &mut job.stage
            && job.fruitless < 3
        {
            // Known now: no more waiting for it.
            gathering.not_before = gathering.not_before.min(now);
        }
        if cause.is_fatal() {
            if self.state.live().is_some() {
                self.close_generation();
            }
            self.over(Outcome::Failed(Failure::Fatal(cause)));
        }
    }

    fn ready(&mut self, rank: Rank, store_address: String, holding: Holding) {
        let Some(live) = self.state.live_mut() else { return };
        if live.started {
            return;
        }
        if let Some(member) = live.member(rank) {
            *member = Member::Ready(holding);
        }
        if rank.get() == 0 {
            live.store_address = Some(store_address);
        }
    }

    fn report(&mut self, rank: Rank, report: StepReport) {
        let Some(job) = self.state.job.as_mut() else { return };
        let Stage::Live(live) = &mut job.stage else { return };
        if report.step < job.committed {
            return;
        }
        let known = live.pending.get(&report.step).is_some_and(|r| r.contains_key(&rank));
        if !known {
            if let Some(pace) = live.paces.get_mut(rank.get() as usize) {
                pace.take(&report);
            }
            live.pending.entry(report.step).or_default().entry(rank).or_insert(report);
        }
    }

    fn staged(&mut self, rank: Rank, step: u64, slices: u32, tier: Tier) {
        let Some(job) = self.state.job.as_mut() else { return };
        let Stage::Live(live) = &mut job.stage else { return };
        // A snapshot in memory does not stand in for a durable one of the same step.
        let safer = |than: Tier| tier < than;
        let asked = job.committing.is_some_and(|c| step < c || (step == c && !safer(job.committing_to)));
        if Some(step) <= job.last_checkpoint || asked {
            return;
        }
        let fresh = || Staging { slices, tier, ranks: BTreeSet::new() };
        let staging = live.staged.entry(step).or_insert_with(fresh);
        if safer(staging.tier) {
            *staging = fresh();
        }
        if staging.tier == tier {
            staging.ranks.insert(rank);
        }
    }

    fn park(&mut self, rank: Rank, member: Member) {
        if let Some(place) = self.state.live_mut().and_then(|l| l.member(rank)) {
            *place = member;
        }
    }
}

/// What an event says of the end of its rank or group, if it does.
fn cause(worker: &WorkerName, event: &RankEvent) -> Option<EndCause> {
    let (rank, worker) = (event.rank, worker.clone());
    let unborn = event.generation.get() == 0;
    match &event.said {
        RankSaid::Exited { status, last_words } if unborn => Some(EndCause::ProcessExited {
            device: event.device.clone(),
            worker,
            status: status.clone(),
            last_words: last_words.clone(),
        }),
        RankSaid::Failed { kind, message, .. } if unborn => Some(EndCause::ProcessFailed {
            device: event.device.clone(),
            worker,
            kind: *kind,
            message: message.clone(),
        }),
        RankSaid::Exited { status, last_words } => Some(EndCause::RankExited {
            rank,
            worker,
            status: status.clone(),
            last_words: last_words.clone(),
        }),
        RankSaid::Failed { kind, message, step } => {
            Some(EndCause::RankFailed { rank, worker, kind: *kind, message: message.clone(), step: *step })
        }
        RankSaid::Broken { message, step, activity } => Some(EndCause::GroupBroken {
            rank,
            worker,
            message: message.clone(),
            step: *step,
            activity: activity.clone(),
        }),
        _ => None,
    }
}

/// Whether a rank of the live generation may say this; if not, what it said and what was expected.
fn judge(spec: &JobSpec, live: &Live, rank: Rank, said: &RankSaid) -> Result<(), String> {
    let first = live.first;
    let total = spec.total_steps();
    let started = |what: &str| {
        if live.started { Ok(()) } else { Err(format!("it says `{what}` before the generation was started")) }
    };
    match said {
        RankSaid::Ready { store_address, .. } if rank.get() == 0 && store_address.is_empty() => {
            Err("rank 0 is ready without a store address: expected host:port".to_owned())
        }
        RankSaid::Training { next_step } => {
            started("training")?;
            if *next_step == first {
                return Ok(());
            }
            Err(format!("it would train step {next_step} next, this generation begins with step {first}"))
        }
        RankSaid::Step(report) => {
            started("step")?;
            judge_report(spec, live, rank, report)
        }
        RankSaid::Staged { step, slices, tier } => {
            started("staged")?;
            let before = live.staged.get(step).filter(|s| s.tier == *tier).map(|s| s.slices);
            if *slices == 0 || before.is_some_and(|b| b != *slices) {
                return Err(format!("it staged step {step} in {slices} slices, others in {before:?}"));
            }
            within("staged step", *step, first, total)
        }
        RankSaid::Drained { step } | RankSaid::Paused { step } => {
            started("stopped")?;
            within("stopped after step", *step, first, total)
        }
        RankSaid::Finished => started("finished"),
        // What it recounts is held against what it was asked.
        RankSaid::Recounted(_)
        | RankSaid::Spawned
        | RankSaid::Prepared
        | RankSaid::Ready { .. }
        | RankSaid::Broken { .. }
        | RankSaid::Failed { .. }
        | RankSaid::Exited { .. } => Ok(()),
    }
}

fn within(what: &str, step: u64, first: u64, total: u64) -> Result<(), String> {
    if (first..=total).contains(&step) {
        Ok(())
    } else {
        Err(format!("it {what} {step}: expected {first} to {total}"))
    }
}

fn judge_report(spec: &JobSpec, live: &Live, rank: Rank, report: &StepReport) -> Result<(), String> {
    let step = report.step;
    if step < live.first || step >= spec.total_steps() {
        let last = spec.total_steps() - 1;
        return Err(format!("it reports step {step}: expected {} to {last}", live.first));
    }
    judge_lanes(spec, report, live.layout.lanes_of(rank))
}

/// Whether a report tells of these lanes, each with all its pictures, in the step's epoch.
pub(crate) fn judge_lanes(spec: &JobSpec, report: &StepReport, expected: Range<u32>) -> Result<(), String> {
    let step = report.step;
    let epoch = spec.position(step).epoch.get();
    if report.epoch != epoch {
        return Err(format!("it reports step {step} in epoch {}: expected epoch {epoch}", report.epoch));
    }
    let lanes: Vec<u32> = report.lanes.iter().map(|l| l.fed.lane.get()).collect();
    if !lanes.iter().copied().eq(expected.clone()) {
        return Err(format!("it reports lanes {lanes:?} in step {step}: expected {expected:?}"));
    }
    let n = spec.images_per_lane as usize;
    if let Some(lane) = report.lanes.iter().find(|l| l.fed.samples.len() != n) {
        let found = lane.fed.samples.len();
        return Err(format!("{} was fed {found} pictures in step {step}: expected {n}", lane.fed.lane));
    }
    Ok(())
}
