//! From the plan to a step's tensors: what the loader is asked for, and what was really fed.

use crate::snapshot::{LOOK, Left};
use crate::staging::{Layout, Staging};
use anyhow::{Result, bail};
use mcl_config::{Job, Objective};
use mcl_data::{BatchRequest, Dataset, FedSample, Loader, LoaderSpec, MontageLayout};
use mcl_plan::{EpochPlan, PlanSpec, SUBSTITUTE_ATTEMPTS, Schedule, substitute};
use mcl_proto::v1;
use mcl_train::LaneInput;
use mcl_types::{Epoch, Lane, SampleIndex, Slot, Step};
use std::ops::Range;
use std::sync::Arc;
use tch::Device;

/// Lane batches of this rank, in the order of the plan.
pub(crate) struct Feed {
    staging: Staging,
    lanes: Range<u32>,
    /// The step that comes next.
    upcoming: Step,
    /// A step's input, until the step is applied: one that is broken off is done again from it.
    taken: Option<(Step, Fed)>,
    /// It failed, and gives nothing more.
    failed: bool,
}

/// A step's input and where it came from.
pub(crate) struct Fed {
    pub(crate) lanes: Vec<LaneInput>,
    /// By lane of this rank: what the loader fed, in slot order.
    pub(crate) samples: Vec<(u32, Vec<FedSample>)>,
}

impl Feed {
    /// Starts loading at `first`, for `device`.
    pub(crate) fn start(
        job: &Job,
        device: Device,
        dataset: Arc<Dataset>,
        plan: PlanSpec,
        schedule: Schedule,
        lanes: Range<u32>,
        first: Step,
    ) -> Result<Self> {
        let spec = LoaderSpec {
            threads: usize::try_from(job.data().loader_threads)?,
            queue: usize::try_from(job.data().queue)?,
            max_substitutes: SUBSTITUTE_ATTEMPTS,
            ..mcl_job::loader_spec(job)
        };
        let pictures = usize::try_from(job.batch().images_per_lane)?;
        let montages = MontageLayout::official(pictures, &job.method().levels)?;
        let replacements = plan.clone();
        let labelled = job.method().objective == Objective::MclSupervised;
        let labels = labelled.then(|| Arc::clone(&dataset));
        let loader = Loader::start(
            dataset,
            spec,
            Requests::new(plan, schedule, lanes.clone(), first),
            Arc::new(move |epoch: Epoch, step: Step, lane: Lane, slot: Slot, attempt: u32| {
                let step_in_epoch = schedule.locate(step).step_in_epoch;
                substitute(&replacements, epoch, step_in_epoch, lane, slot, attempt)
            }),
        )?;
        let images = i64::from(job.batch().images_per_lane);
        let (own, seed) = (lanes.clone(), job.seed());
        let layout = Layout { lanes: own, schedule, montages, seed, images, device, labels };
        Ok(Self {
            staging: Staging::start(loader, layout, first)?,
            lanes,
            upcoming: first,
            taken: None,
            failed: false,
        })
    }

    /// Whether it gives `lanes` from `step` on.
    pub(crate) fn serves(&self, lanes: &Range<u32>, step: Step) -> bool {
        let next = self.taken.as_ref().map_or(self.upcoming, |(taken, _)| *taken);
        !self.failed && self.lanes == *lanes && next == step
    }

    /// The batches of one step; waits for the loader where it is behind, until `left` says that nobody wants them any
    /// more: a store may be away for minutes, and a new generation does not wait for it. The same again until
    /// [`Feed::applied`].
    pub(crate) fn take(&mut self, step: Step, left: impl Fn() -> bool) -> Result<&Fed> {
        let fed = match self.taken.take() {
            Some((taken, fed)) if taken == step => fed,
            _ => self.next(step, left)?,
        };
        Ok(&self.taken.insert((step, fed)).1)
    }

    /// The step that was taken is applied.
    pub(crate) fn applied(&mut self) {
        self.taken = None;
    }

    fn next(&mut self, step: Step, left: impl Fn() -> bool) -> Result<Fed> {
        if step != self.upcoming {
            bail!("{step} was asked for, the next one to be fed is {}", self.upcoming);
        }
        loop {
            match self.staging.next_within(LOOK) {
                None if left() => return Err(Left.into()),
                None => {}
                Some(Ok(fed)) => {
                    self.upcoming = step.next();
                    return Ok(fed);
                }
                Some(Err(error)) => {
                    self.failed = true;
                    return Err(error);
                }
            }
        }
    }
}

/// What the loader is to make: every lane of every step from a first one to the run's last.
struct Requests {
    plan: PlanSpec,
    schedule: Schedule,
    lanes: Range<u32>,
    step: Step,
    lane: u32,
    epoch: Option<EpochPlan>,
}

impl Requests {
    const fn new(plan: PlanSpec, schedule: Schedule, lanes: Range<u32>, first: Step) -> Self {
        let lane = lanes.start;
        Self { plan, schedule, lanes, step: first, lane, epoch: None }
    }

    fn samples(&mut self, epoch: Epoch, step_in_epoch: u64) -> Option<Vec<SampleIndex>> {
        if self.epoch.as_ref().is_none_or(|e| e.epoch() != epoch) {
            // A plan that cannot be made was refused when the job was submitted.
            self.epoch = EpochPlan::new(&self.plan, epoch).ok();
        }
        let plan = self.epoch.as_ref()?;
        (0..self.plan.images_per_lane)
            .map(|slot| plan.sample(step_in_epoch, Lane::new(self.lane), Slot::new(slot)))
            .collect()
    }
}

impl Iterator for Requests {
    type Item = BatchRequest;

    fn next(&mut self) -> Option<BatchRequest> {
        if self.step.get() >= self.schedule.total_steps() {
            return None;
        }
        let at = self.schedule.locate(self.step);
        let samples = self.samples(at.epoch, at.step_in_epoch)?;
        let request = BatchRequest { epoch: at.epoch, step: self.step, lane: Lane::new(self.lane), samples };
        self.lane += 1;
        if self.lane >= self.lanes.end {
            self.lane = self.lanes.start;
            self.step = self.step.next();
        }
        Some(request)
    }
}

/// What the coordinator's ledger is told of one lane.
pub(crate) fn lane_report(lane: u32, losses: &[f64], samples: Vec<v1::FedSample>) -> v1::LaneReport {
    let finite = losses.iter().all(|l| l.is_finite());
    v1::LaneReport { lane, losses: if finite { losses.to_vec() } else { Vec::new() }, samples }
}

/// What a lane of this rank was fed, reasons included.
pub(crate) fn fed_samples(samples: &[FedSample]) -> Vec<v1::FedSample> {
    let told = |s: &FedSample| v1::FedSample {
        index: s.index.get(),
        id: s.id.clone(),
        hash: s.hash.to_vec(),
        replaces: s.replaced.as_ref().map(|r| r.wanted.get()),
        reason: s.replaced.as_ref().map_or_else(String::new, |r| r.reason.clone()),
    };
    samples.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_data::generate::{GenerateSpec, generate};
    use mcl_plan::ledger::{Committed, LaneRecord, Record, SampleHash, SampleRecord, VerifyReport, verify};
    use mcl_types::{Generation, Seed};

    /// What a loader that is asked for `requests` really feeds, as the ledger would record it.
    fn ledger_of(dataset: &Arc<Dataset>, requests: Vec<BatchRequest>) -> Vec<Record> {
        let spec = LoaderSpec { image_size: 32, levels: vec![1], ..LoaderSpec::default() };
        let never = Arc::new(|_, _, _, _, _| SampleIndex::new(0));
        let mut loader = Loader::start(Arc::clone(dataset), spec, requests, never).unwrap();
        let mut records = Vec::new();
        while let Some(batch) = loader.next().unwrap() {
            let sample = |s: FedSample| SampleRecord {
                index: s.index,
                id: s.id,
                hash: SampleHash::from_bytes(s.hash),
                replaces: None,
                reason: None,
            };
            let lane = LaneRecord { lane: batch.lane, samples: batch.fed.into_iter().map(sample).collect() };
            records.push(Record::Committed(Committed {
                step: batch.step,
                epoch: batch.epoch,
                generation: Generation::new(1),
                lanes: vec![lane],
                skipped: false,
            }));
        }
        records
    }

    fn counts(report: &VerifyReport) -> (u64, u64, u64) {
        (report.missing, report.twice, report.foreign)
    }

    #[test]
    fn a_loader_that_skips_one_sample_and_repeats_another_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        generate(folder.path(), &GenerateSpec::objects(24, Seed::new(1)), &mut |_, _| {}).unwrap();
        let dataset = Arc::new(Dataset::open(folder.path()).unwrap());
        let plan = PlanSpec {
            seed: Seed::new(9),
            dataset_digest: dataset.digest(),
            dataset_len: dataset.len(),
            shards: dataset.shards().iter().map(|s| s.len).collect(),
            lanes: 1,
            images_per_lane: 8,
            shuffle: mcl_plan::Shuffle::Global,
        };
        let schedule = Schedule::new(plan.steps_per_epoch().unwrap(), 3).unwrap();
        let planned: Vec<BatchRequest> = Requests::new(plan.clone(), schedule, 0..1, Step::new(0)).collect();
        let honest = verify(&ledger_of(&dataset, planned.clone()), &plan).unwrap();
        assert!(honest.is_exact() && honest.samples == 24, "{honest:?}");

        let mut tampered = planned;
        tampered[1].samples[3] = tampered[1].samples[2];
        let report = verify(&ledger_of(&dataset, tampered), &plan).unwrap();
        assert!(!report.is_exact());
        assert_eq!(counts(&report), (1, 1, 1), "{report:?}");
    }

    /// A job of two lanes over generated pictures in `folder`.
    fn job_over(folder: &std::path::Path) -> (Job, Arc<Dataset>, PlanSpec, Schedule) {
        generate(folder, &GenerateSpec::objects(32, Seed::new(1)), &mut |_, _| {}).unwrap();
        let text = format!(
            "[data]\nsource = {folder:?}\n[model]\nimage_size = 32\n[method]\nlevels = [1]\nlevel_weights = [1.0]\n\
             [batch]\nlanes = 2\nimages_per_lane = 8\n[train]\nsteps = 3\n",
        );
        let job = Job::parse(&text, "test").unwrap();
        let dataset = Arc::new(Dataset::open(folder).unwrap());
        let plan = mcl_job::plan_spec(&job, &dataset);
        let schedule = mcl_job::schedule(&job, &plan).unwrap();
        (job, dataset, plan, schedule)
    }

    #[test]
    fn nobody_waits_for_a_storage_that_hangs_once_the_generation_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let (job, dataset, plan, schedule) = job_over(folder.path());
        // Opening a pipe that nobody writes to takes for ever.
        for index in 0..dataset.len() {
            let file = folder.path().join(&*dataset.id(SampleIndex::new(index)).unwrap());
            std::fs::remove_file(&file).unwrap();
            nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let mut feed = Feed::start(&job, Device::Cpu, dataset, plan, schedule, 0..1, Step::new(0)).unwrap();
        let looks = std::cell::Cell::new(0);
        let left = || looks.replace(looks.get() + 1) == 2;
        assert!(feed.take(Step::new(0), left).err().unwrap().is::<Left>());
        assert_eq!(looks.get(), 3);
        // The next generation takes up the same wait, or lets go of it without one.
        assert!(feed.serves(&(0..1), Step::new(0)));
        drop(feed);
    }

    #[test]
    fn a_step_is_given_again_until_it_is_applied_and_only_its_own_lanes_are_served() {
        let folder = tempfile::tempdir().unwrap();
        let (job, dataset, plan, schedule) = job_over(folder.path());
        let mut feed = Feed::start(&job, Device::Cpu, dataset, plan, schedule, 1..2, Step::new(0)).unwrap();
        let indices = |fed: &Fed| fed.lanes[0].notes.clone();
        assert!(feed.serves(&(1..2), Step::new(0)) && !feed.serves(&(0..2), Step::new(0)));
        let never = || false;
        let first = indices(feed.take(Step::new(0), never).unwrap());
        assert!(feed.serves(&(1..2), Step::new(0)), "a broken step is done again");
        assert_eq!(indices(feed.take(Step::new(0), never).unwrap()), first);
        feed.applied();
        assert!(feed.serves(&(1..2), Step::new(1)) && !feed.serves(&(1..2), Step::new(0)));
        assert_ne!(indices(feed.take(Step::new(1), never).unwrap()), first);
    }
}
