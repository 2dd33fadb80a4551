//! A step is committed when every rank of the generation has applied it: once, in order.

use crate::effect::{Effect, ToWorker};
use crate::event::StepReport;
use crate::reason::EndCause;
use crate::state::{Job, Stage, Turn};
use mcl_plan::ledger::{Committed, LaneRecord};
use mcl_types::{Epoch, Generation, Lane, Rank, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Weight of the newest step in the mean share of waiting: a mean over about 20 steps.
const SHARE_WEIGHT: f64 = 0.05;

/// One row of the metrics, less the time of day.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// The step, from 0.
    pub step: u64,
    /// Its epoch.
    pub epoch: u64,
    /// The generation that took it.
    pub generation: u64,
    /// Sum of a lane's losses, averaged over lanes in lane order; none where one was not finite.
    pub loss: Option<f64>,
    /// The same by level (q side plus k side, where there are two sides); empty where not finite.
    pub loss_per_level: Vec<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Momentum of the target encoder.
    pub momentum: f64,
    /// Norm of the reduced gradient before clipping; none where not finite.
    pub grad_norm: Option<f64>,
    /// K * N over the slowest rank's time.
    pub images_per_s: f64,
    /// Worker machines in the generation.
    pub workers: u32,
    /// Longest wait for pictures on any rank, seconds.
    pub data_wait_s: f64,
    /// The slowest rank's time, seconds.
    pub step_s: f64,
    /// The update was skipped.
    pub skipped: bool,
}

impl Turn<'_> {
    /// Commits every step that is complete, in order, and has ranks told once that is durable.
    pub(crate) fn commit_steps(&mut self) {
        let Some(job) = self.state.job.as_mut() else { return };
        let Stage::Live(live) = &mut job.stage else { return };
        let world = live.layout.world() as usize;
        if live.pending.get(&job.committed).is_none_or(|reports| reports.len() != world) {
            return;
        }
        let workers = u32::try_from(live.workers().len()).unwrap_or(u32::MAX);
        let generation = live.generation;
        let before = job.committed;
        let mut disagreement = None;
        let mut commits = Vec::new();
        while live.pending.get(&job.committed).is_some_and(|reports| reports.len() == world) {
            let reports = live.pending.remove(&job.committed).unwrap_or_default();
            if let Some((rank, what)) = disagrees(&reports) {
                let worker = live.place(rank).map(|p| p.worker.clone());
                disagreement = worker.map(|worker| EndCause::OutOfLine { rank, worker, what });
                break;
            }
            let pictures = u64::from(job.spec.lanes) * u64::from(job.spec.images_per_lane);
            let metrics = metrics(generation, workers, pictures, &reports);
            commits.push((record(generation, reports), metrics));
            job.committed += 1;
        }
        for (record, metrics) in commits {
            self.out.push(committed_step(job, record, metrics));
        }
        let committed = job.committed;
        if committed > before {
            for session in self.member_sessions() {
                let message = ToWorker::Committed { generation, step: committed - 1 };
                self.out.push(Effect::SendOnceDurable { session, message });
            }
            self.grant_ahead();
        }
        if let Some(cause) = disagreement {
            self.end_generation(cause);
        }
    }
}

/// Commits a step as one rank that applied it recorded it for all lanes.
pub(crate) fn commit_recounted(
    job: &mut Job,
    generation: Generation,
    report: StepReport,
    out: &mut Vec<Effect>,
) {
    let pictures = u64::from(job.spec.lanes) * u64::from(job.spec.images_per_lane);
    let reports = BTreeMap::from([(Rank::new(0), report)]);
    // How many workers carried it is not known any more.
    let metrics = metrics(generation, job.last_step.as_ref().map_or(1, |l| l.workers), pictures, &reports);
    job.committed += 1;
    out.push(committed_step(job, record(generation, reports), metrics));
}

fn committed_step(job: &mut Job, record: Committed, metrics: StepMetrics) -> Effect {
    let share = if metrics.step_s > 0.0 { metrics.data_wait_s / metrics.step_s } else { 0.0 };
    job.data_wait_share += (share.clamp(0.0, 1.0) - job.data_wait_share) * SHARE_WEIGHT;
    job.last_step = Some(metrics.clone());
    job.furthest = job.furthest.max(record.step.get() + 1);
    Effect::Commit { record, metrics }
}

/// The first rank whose account of the step differs from rank 0's in what must be the same everywhere.
fn disagrees(reports: &BTreeMap<Rank, StepReport>) -> Option<(Rank, String)> {
    let (_, first) = reports.first_key_value()?;
    reports.iter().find(|(_, r)| r.skipped != first.skipped).map(|(rank, r)| {
        (*rank, format!("it says skipped = {} of step {}, rank 0 says {}", r.skipped, r.step, first.skipped))
    })
}

/// The ledger's line. Ranks carry contiguous lanes, so rank order is lane order.
fn record(generation: Generation, reports: BTreeMap<Rank, StepReport>) -> Committed {
    let (step, epoch, skipped) =
        reports.first_key_value().map(|(_, r)| (r.step, r.epoch, r.skipped)).unwrap_or_default();
    let lanes: Vec<LaneRecord> = reports.into_values().flat_map(|r| r.lanes).map(|lane| lane.fed).collect();
    debug_assert!(lanes.iter().map(|l| l.lane).eq((0..).take(lanes.len()).map(Lane::new)));
    Committed { step: Step::new(step), epoch: Epoch::new(epoch), generation, lanes, skipped }
}

fn metrics(
    generation: Generation,
    workers: u32,
    pictures: u64,
    reports: &BTreeMap<Rank, StepReport>,
) -> StepMetrics {
    let first = reports.values().next();
    let of = |pick: fn(&StepReport) -> f64| first.map_or(0.0, pick);
    let most = |pick: fn(&StepReport) -> f64| reports.values().map(pick).fold(0.0, f64::max);
    let lanes: Vec<&[f64]> = reports.values().flat_map(|r| &r.lanes).map(|l| l.losses.as_slice()).collect();
    let loss_per_level = levels(&lanes);
    let step_s = most(|r| r.step_seconds);
    #[expect(clippy::cast_precision_loss, reason = "a batch has fewer than 2^53 pictures")]
    let images_per_s = if step_s > 0.0 { pictures as f64 / step_s } else { 0.0 };
    StepMetrics {
        step: first.map_or(0, |r| r.step),
        epoch: first.map_or(0, |r| r.epoch),
        generation: generation.get(),
        loss: mean_loss(&lanes),
        loss_per_level,
        lr: of(|r| r.learning_rate),
        momentum: of(|r| r.momentum),
        grad_norm: first.map(|r| r.grad_norm).filter(|g| g.is_finite()),
        images_per_s,
        workers,
        data_wait_s: most(|r| r.data_wait_seconds),
        step_s,
        skipped: first.is_some_and(|r| r.skipped),
    }
}

/// Sums in lane order, so that the number does not depend on who carried which lane.
fn mean_loss(lanes: &[&[f64]]) -> Option<f64> {
    if lanes.is_empty() || lanes.iter().any(|l| l.is_empty()) {
        return None;
    }
    let sum: f64 = lanes.iter().map(|l| l.iter().sum::<f64>()).sum();
    Some(sum / count(lanes)).filter(|l| l.is_finite())
}

fn levels(lanes: &[&[f64]]) -> Vec<f64> {
    let len = lanes.first().map_or(0, |l| l.len());
    if len == 0 || lanes.iter().any(|l| l.len() != len) {
        return Vec::new();
    }
    let levels = if len.is_multiple_of(2) { len / 2 } else { len };
    let of = |level: usize| {
        lanes.iter().map(|l| l.iter().skip(level).step_by(levels).sum::<f64>()).sum::<f64>() / count(lanes)
    };
    (0..levels).map(of).collect()
}

#[expect(clippy::cast_precision_loss, reason = "lanes are few")]
const fn count(lanes: &[&[f64]]) -> f64 {
    lanes.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_summed_over_levels_and_sides_and_averaged_over_lanes() {
        let lanes: [&[f64]; 2] = [&[1.0, 2.0, 10.0, 20.0], &[3.0, 4.0, 30.0, 40.0]];
        assert_eq!(mean_loss(&lanes), Some(55.0));
        assert_eq!(levels(&lanes), [22.0, 33.0]);
        assert_eq!(levels(&[&[1.5], &[0.5]]), [1.0]);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_none() {
        assert_eq!(mean_loss(&[&[1.0], &[]]), None);
        assert_eq!(mean_loss(&[&[f64::NAN]]), None);
        assert!(levels(&[&[1.0, 2.0], &[]]).is_empty());
        assert_eq!(mean_loss(&[]), None);
    }
}
