//! What agents report of a job: the plan's samples, and numbers that look like training.
//!
//! Invariant: a report is a function of (job, step, lanes), so that an agent can say it again after an outage,
//! or for other ranks when it is to recount, without having kept it.

use crate::BenchError;
use mcl_config::Job;
use mcl_plan::{EpochPlan, PlanSpec, Schedule};
use mcl_proto::v1::{Configure, FedSample, LaneReport, StepReport};
use mcl_types::{Epoch, Lane, LaneLayout, Rank, SampleIndex, Slot, Step};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Plans kept: the epoch that ranks are in and those beside it.
const PLANS: usize = 3;
/// A sample's hash, in bytes.
const HASH: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Workload {
    run_id: String,
    spec: PlanSpec,
    schedule: Schedule,
    levels: u32,
    /// Of every sample, in the dataset's order.
    ids: Vec<String>,
    hash: Vec<u8>,
    plans: Mutex<BTreeMap<Epoch, Arc<EpochPlan>>>,
}

impl Workload {
    pub(crate) fn new(
        run_id: String,
        spec: PlanSpec,
        schedule: Schedule,
        levels: u32,
        ids: Vec<String>,
    ) -> Self {
        let hash = blake3::hash(run_id.as_bytes()).as_bytes()[..HASH].to_vec();
        Self { run_id, spec, schedule, levels, ids, hash, plans: Mutex::default() }
    }

    /// As a rank process does it: from the job and the pictures that it names.
    pub(crate) fn of(configure: &Configure) -> Result<Self, BenchError> {
        let job = parse(&configure.job_toml)?;
        let workload = Self::read(configure.run_id.clone(), &job)?;
        let (found, expected) = (workload.spec.dataset_digest.to_string(), &configure.dataset_digest);
        if found != *expected {
            let source = &job.data().source;
            let text = format!("{source} has digest {found}, the coordinator has {expected}");
            return Err(BenchError::Job(text));
        }
        Ok(workload)
    }

    /// What ranks of this job will be told, and what it means.
    pub(crate) fn ahead(run_id: String, job_toml: &str) -> Result<(Configure, Self), BenchError> {
        let job = parse(job_toml)?;
        let workload = Self::read(run_id.clone(), &job)?;
        let job_toml = job.to_toml().map_err(|e| BenchError::Job(e.to_string()))?;
        let dataset_digest = workload.spec.dataset_digest.to_string();
        Ok((Configure { run_id, job_toml, dataset_digest, ..Configure::default() }, workload))
    }

    fn read(run_id: String, job: &Job) -> Result<Self, BenchError> {
        let told = |e: &dyn std::fmt::Display| BenchError::Job(e.to_string());
        let dataset = mcl_job::open_dataset(job).map_err(|e| told(&e))?;
        let spec = mcl_job::plan_spec(job, &dataset);
        let schedule = mcl_job::schedule(job, &spec).map_err(|e| told(&e))?;
        let id = |sample| dataset.id(SampleIndex::new(sample)).map(|id| id.into_owned()).unwrap_or_default();
        let levels = u32::try_from(job.method().levels.len()).unwrap_or(1);
        let ids = (0..dataset.len()).map(id).collect();
        Ok(Self::new(run_id, spec, schedule, levels, ids))
    }

    pub(crate) fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Lanes of a rank; none beyond the world.
    pub(crate) fn lanes(&self, rank: u32, world: u32) -> Range<u32> {
        LaneLayout::new(self.spec.lanes, world).map_or(0..0, |layout| layout.lanes_of(Rank::new(rank)))
    }

    pub(crate) const fn all_lanes(&self) -> Range<u32> {
        0..self.spec.lanes
    }

    /// Beyond the last step of a grant.
    pub(crate) const fn end_of(&self, epoch: u64, steps: u64) -> u64 {
        epoch.saturating_mul(self.schedule.steps_per_epoch()).saturating_add(steps)
    }

    /// What `lanes` did in `step`.
    pub(crate) fn report(&self, step: u64, lanes: Range<u32>) -> StepReport {
        let place = self.schedule.locate(Step::new(step));
        let plan = self.plan(place.epoch);
        let lane = |lane: u32| LaneReport {
            lane,
            losses: self.losses(step, lane),
            samples: plan.as_ref().map(|p| self.samples(p, place.step_in_epoch, lane)).unwrap_or_default(),
        };
        StepReport {
            step,
            epoch: place.epoch.get(),
            lanes: lanes.map(lane).collect(),
            learning_rate: 0.1,
            momentum: 0.99,
            grad_norm: 1.0,
            skipped: false,
            step_seconds: 0.5,
            data_wait_seconds: 0.01,
            forward_seconds: 0.2,
            backward_seconds: 0.25,
            collective_seconds: 0.05,
        }
    }

    fn samples(&self, plan: &EpochPlan, step_in_epoch: u64, lane: u32) -> Vec<FedSample> {
        let slot = |slot| {
            let index = plan.sample(step_in_epoch, Lane::new(lane), Slot::new(slot))?.get();
            let id = usize::try_from(index).ok().and_then(|i| self.ids.get(i)).cloned();
            let (id, hash) = (id.unwrap_or_default(), self.hash.clone());
            Some(FedSample { index, id, hash, replaces: None, reason: String::new() })
        };
        (0..self.spec.images_per_lane).filter_map(slot).collect()
    }

    /// Two sides of every level, falling as losses do.
    fn losses(&self, step: u64, lane: u32) -> Vec<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a loss that is made up")]
        let falling = 1.0 / (1.0 + step as f64);
        (0..2 * self.levels).map(|l| falling + f64::from(lane) * 1e-3 + f64::from(l) * 1e-6).collect()
    }

    /// None where there is none: the coordinator refused such a job long ago.
    fn plan(&self, epoch: Epoch) -> Option<Arc<EpochPlan>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&epoch) {
            return Some(Arc::clone(plan));
        }
        let plan = Arc::new(EpochPlan::new(&self.spec, epoch).ok()?);
        if plans.len() >= PLANS {
            plans.pop_first();
        }
        plans.insert(epoch, Arc::clone(&plan));
        Some(plan)
    }
}

fn parse(job_toml: &str) -> Result<Job, BenchError> {
    Job::parse(job_toml, "job.toml").map_err(|e| BenchError::Job(e.to_string()))
}

/// A small job, for tests.
#[cfg(test)]
pub(crate) fn sample(lanes: u32, steps_per_epoch: u64) -> Workload {
    let len = u64::from(lanes) * 2 * steps_per_epoch;
    let spec = PlanSpec {
        seed: mcl_types::Seed::new(1),
        dataset_digest: mcl_types::Digest::of(b"d"),
        dataset_len: len,
        shards: vec![len],
        lanes,
        images_per_lane: 2,
        shuffle: mcl_plan::Shuffle::Windowed,
    };
    let schedule = Schedule::new(steps_per_epoch, 1000).unwrap();
    let ids = (0..len).map(|i| format!("picture-{i}")).collect();
    Workload::new("bench".to_owned(), spec, schedule, 4, ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_the_plans_and_the_same_every_time() {
        let workload = sample(6, 5);
        let report = workload.report(7, 2..4);
        assert_eq!((report.step, report.epoch, report.lanes.len()), (7, 1, 2));
        assert_eq!(report, workload.report(7, 2..4));
        let plan = EpochPlan::new(&workload.spec, Epoch::new(1)).unwrap();
        for lane in &report.lanes {
            assert_eq!((lane.losses.len(), lane.samples.len()), (8, 2));
            for (slot, sample) in (0..).zip(&lane.samples) {
                let planned = plan.sample(2, Lane::new(lane.lane), Slot::new(slot)).unwrap().get();
                assert_eq!((sample.index, &sample.id), (planned, &format!("picture-{planned}")));
                assert_eq!(sample.hash.len(), HASH);
            }
        }
    }

    #[test]
    fn ranks_share_the_lanes_and_spares_have_none() {
        let workload = sample(6, 5);
        assert_eq!((workload.lanes(0, 4), workload.lanes(3, 4)), (0..1, 4..6));
        assert!(workload.lanes(0, 7).is_empty());
        assert_eq!((workload.all_lanes(), workload.end_of(3, 2)), (0..6, 17));
    }
}
