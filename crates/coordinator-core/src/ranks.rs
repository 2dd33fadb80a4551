//! What ranks say, judged.

use crate::event::{FailureKind, RankEvent, RankSaid, StepReport};
use crate::generation::{Live, Member, Staging};
use crate::job::JobSpec;
use crate::reason::{EndCause, Failure, Outcome};
use crate::state::{Stage, Turn};
use mcl_types::{Rank, WorkerName};
use std::collections::BTreeSet;

impl Turn<'_> {
    /// A rank's event, passed on by `worker`. An event of an older generation changes nothing but what is
    /// known of how that one ended; nor does one that the worker could not know.
    pub(crate) fn rank_event(&mut self, worker: &WorkerName, event: RankEvent) {
        let Some(job) = self.state.job.as_ref() else { return };
        let Some(live) = self.state.live().filter(|l| l.generation == event.generation) else {
            self.late_word(worker, event);
            return;
        };
        if live.place(event.rank).is_none_or(|p| p.worker != *worker) {
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

    fn believe(&mut self, worker: &WorkerName, event: RankEvent) {
        let rank = event.rank;
        let worker = worker.clone();
        match event.said {
            RankSaid::Ready { store_address } => self.ready(rank, store_address),
            RankSaid::Training { .. } => {}
            RankSaid::Step(report) => self.report(rank, report),
            RankSaid::Staged { step, slices } => self.staged(rank, step, slices),
            RankSaid::Drained { step } => self.park(rank, Member::Drained(step)),
            RankSaid::Finished => self.park(rank, Member::Finished),
            RankSaid::Failed { kind, message, step } => {
                let cause = EndCause::RankFailed { rank, worker, kind, message, step };
                if kind == FailureKind::Fatal {
                    self.end_generation(cause);
                } else {
                    self.rank_or_worker_gone(&[rank], cause);
                }
            }
            RankSaid::Exited { status, last_words } => {
                self.rank_or_worker_gone(&[rank], EndCause::RankExited { rank, worker, status, last_words });
            }
        }
    }

    /// A word about the generation that ended last. Its first sign is often a peer's broken collective; the
    /// cause comes later and takes its place. What would fail again fails the job, unless the next
    /// generation trains already and has so proved the contrary.
    fn late_word(&mut self, worker: &WorkerName, event: RankEvent) {
        let (rank, worker) = (event.rank, worker.clone());
        let cause = match event.said {
            RankSaid::Failed { kind, message, step } => {
                EndCause::RankFailed { rank, worker, kind, message, step }
            }
            RankSaid::Exited { status, last_words } => {
                EndCause::RankExited { rank, worker, status, last_words }
            }
            _ => return,
        };
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
        if cause.is_fatal() {
            if self.state.live().is_some() {
                self.close_generation(&cause.to_string());
            }
            self.over(Outcome::Failed(Failure::Fatal(cause)));
        }
    }

    fn ready(&mut self, rank: Rank, store_address: String) {
        let Some(live) = self.state.live_mut() else { return };
        if live.started {
            return;
        }
        if let Some(member) = live.member(rank) {
            *member = Member::Ready;
        }
        if rank.get() == 0 {
            live.store_address = Some(store_address);
        }
    }

    fn report(&mut self, rank: Rank, report: StepReport) {
        let Some(job) = self.state.job.as_mut() else { return };
        let Stage::Live(live) = &mut job.stage else { return };
        if report.step >= job.committed {
            live.pending.entry(report.step).or_default().entry(rank).or_insert(report);
        }
    }

    fn staged(&mut self, rank: Rank, step: u64, slices: u32) {
        let Some(job) = self.state.job.as_mut() else { return };
        let Stage::Live(live) = &mut job.stage else { return };
        if Some(step) > job.last_checkpoint && job.committing.is_none_or(|c| step > c) {
            let fresh = || Staging { slices, ranks: BTreeSet::new() };
            live.staged.entry(step).or_insert_with(fresh).ranks.insert(rank);
        }
    }

    fn park(&mut self, rank: Rank, member: Member) {
        if let Some(place) = self.state.live_mut().and_then(|l| l.member(rank)) {
            *place = member;
        }
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
        RankSaid::Ready { store_address } if rank.get() == 0 && store_address.is_empty() => {
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
        RankSaid::Staged { step, slices } => {
            started("staged")?;
            let before = live.staged.get(step).map(|s| s.slices);
            if *slices == 0 || before.is_some_and(|b| b != *slices) {
                return Err(format!("it staged step {step} in {slices} slices, others in {before:?}"));
            }
            within("staged step", *step, first, total)
        }
        RankSaid::Drained { step } => {
            started("drained")?;
            within("stopped after step", *step, first, total)
        }
        RankSaid::Finished => started("finished"),
        RankSaid::Ready { .. } | RankSaid::Failed { .. } | RankSaid::Exited { .. } => Ok(()),
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
    let epoch = spec.position(step).epoch.get();
    if report.epoch != epoch {
        return Err(format!("it reports step {step} in epoch {}: expected epoch {epoch}", report.epoch));
    }
    let lanes: Vec<u32> = report.lanes.iter().map(|l| l.fed.lane.get()).collect();
    if !lanes.iter().copied().eq(live.layout.lanes_of(rank)) {
        let expected = live.layout.lanes_of(rank);
        return Err(format!("it reports lanes {lanes:?} in step {step}: expected {expected:?}"));
    }
    let n = spec.images_per_lane as usize;
    if let Some(lane) = report.lanes.iter().find(|l| l.fed.samples.len() != n) {
        let found = lane.fed.samples.len();
        return Err(format!("{} was fed {found} pictures in step {step}: expected {n}", lane.fed.lane));
    }
    Ok(())
}
