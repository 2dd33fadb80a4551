//! What a validated job means for a dataset: one answer for coordinator, rank and command line.
//!
//! Role: the only place where [`mcl_config`] meets [`mcl_data`] and [`mcl_plan`], so that the plan a
//! coordinator checks is the plan a rank reads by. Left out: everything with tensors.
#![forbid(unsafe_code)]

use mcl_config::{Job, Objective, Shuffle, Views};
use mcl_data::{AugmentSpec, Dataset, DatasetError, LoaderSpec, RemoteSpec, ViewMode};
use mcl_plan::{PlanError, PlanSpec, Schedule, ScheduleError};
use mcl_types::SampleIndex;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A job that its dataset cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Too few pictures.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No steps.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// Labels are to be learned from, and a picture has none.
    #[error(
        "method.objective = \"mcl-supervised\" needs a label of every picture; `{id}` has none: give each class a folder of \
         its own, shards with `.cls` entries, or a list with a column of labels"
    )]
    Unlabelled {
        /// The picture.
        id: String,
    },
    /// A label that is no number of a class.
    #[error(
        "method.objective = \"mcl-supervised\" takes labels below {MOST_CLASSES}; `{id}` has {label}: number the classes from 0"
    )]
    Label {
        /// The picture.
        id: String,
        /// Its label.
        label: u32,
    },
    /// What features are to be judged on is not there.
    #[error(
        "evaluation.{key} = {path}: not there; expected pictures with boxes or labels, as `mcl eval` takes them"
    )]
    NothingToJudgeOn {
        /// Which of them.
        key: &'static str,
        /// Where it was to be.
        path: PathBuf,
    },
    /// All pictures are alike.
    #[error(
        "method.objective = \"mcl-supervised\" needs at least two classes; the labels of all {pictures} pictures name {found}"
    )]
    OneClass {
        /// Pictures.
        pictures: u64,
        /// Classes.
        found: usize,
    },
}

/// Each level has a row of weights a class; labels above are ids that were never meant as numbers of classes.
const MOST_CLASSES: u32 = 1 << 20;

/// Classes that the job learns to tell, where its objective has labels: one more than the largest label.
///
/// # Errors
/// When a picture has no label, or there are fewer than two classes.
pub fn classes(job: &Job, dataset: &Dataset) -> Result<Option<u32>, JobError> {
    if job.method().objective != Objective::MclSupervised {
        return Ok(None);
    }
    let mut seen = BTreeSet::new();
    for sample in (0..dataset.len()).map(SampleIndex::new) {
        let Some(label) = dataset.label(sample) else {
            let id = dataset.id(sample).map(std::borrow::Cow::into_owned).unwrap_or_default();
            return Err(JobError::Unlabelled { id });
        };
        if label >= MOST_CLASSES {
            let id = dataset.id(sample).map(std::borrow::Cow::into_owned).unwrap_or_default();
            return Err(JobError::Label { id, label });
        }
        seen.insert(label);
    }
    if seen.len() < 2 {
        return Err(JobError::OneClass { pictures: dataset.len(), found: seen.len() });
    }
    Ok(seen.last().map(|largest| largest + 1))
}

/// The pictures of `[data] source`.
///
/// # Errors
/// When they cannot be listed.
pub fn open_dataset(job: &Job) -> Result<Dataset, DatasetError> {
    Dataset::open_as(&job.data().source, job.data().kind, &remote_spec(job))
}

/// How shards in an object store are read, and what is kept of them.
pub fn remote_spec(job: &Job) -> RemoteSpec {
    let default = RemoteSpec::default();
    // Validation keeps it far from where a float has no such integer.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0.05 to 1e9 gigabytes")]
    let cache_bytes = job.data().cache_gb.map_or(default.cache_bytes, |gb| (gb * 1e9) as u64);
    let cache_dir = job.data().cache_dir.clone().unwrap_or_else(|| default.cache_dir.clone());
    RemoteSpec { cache_dir, cache_bytes, ..default }
}

/// The plan of the job's epochs over `dataset`.
pub fn plan_spec(job: &Job, dataset: &Dataset) -> PlanSpec {
    PlanSpec {
        seed: job.seed(),
        dataset_digest: dataset.digest(),
        dataset_len: dataset.len(),
        shards: dataset.shards().iter().map(|s| s.len).collect(),
        lanes: job.batch().lanes,
        images_per_lane: job.batch().images_per_lane,
        shuffle: match job.shuffle() {
            Shuffle::Global => mcl_plan::Shuffle::Global,
            Shuffle::Windowed => mcl_plan::Shuffle::Windowed,
        },
    }
}

/// Steps of an epoch and of the run.
///
/// # Errors
/// When the dataset is smaller than one step, or the run has no steps.
pub fn schedule(job: &Job, plan: &PlanSpec) -> Result<Schedule, JobError> {
    let steps_per_epoch = plan.steps_per_epoch()?;
    Ok(Schedule::new(steps_per_epoch, job.total_steps(steps_per_epoch))?)
}

/// After which steps features are judged (`[evaluation] every_epochs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evaluations {
    every: u64,
    total: u64,
}

impl Evaluations {
    /// None where the job wants none.
    pub fn of(job: &Job, schedule: Schedule) -> Option<Self> {
        let every = job.evaluation().every_epochs.saturating_mul(schedule.steps_per_epoch());
        (every > 0).then_some(Self { every, total: schedule.total_steps() })
    }

    /// Whether the state after so many steps is to be saved for it.
    pub const fn is_due(self, done: u64) -> bool {
        done == self.total || done.is_multiple_of(self.every)
    }

    /// Whether a checkpoint is to be judged, given the one before it that was, or 0: it is the first since an epoch ended
    /// after which one is due. Where the snapshot at that step was taken late, it is a later one.
    pub const fn follows(self, judged: u64, checkpoint: u64) -> bool {
        checkpoint > judged && (checkpoint == self.total || checkpoint / self.every > judged / self.every)
    }
}

/// Whether what features are judged on is there.
///
/// # Errors
/// When it is not.
pub fn check_evaluation(job: &Job) -> Result<(), JobError> {
    let e = job.evaluation();
    for (key, path) in [("train", &e.train), ("test", &e.test), ("scenes", &e.scenes)] {
        if let Some(path) = path.as_ref().filter(|path| e.is_on() && !path.exists()) {
            return Err(JobError::NothingToJudgeOn { key, path: path.clone() });
        }
    }
    Ok(())
}

/// The augmentation of `[augment]`.
pub fn augment_spec(job: &Job) -> AugmentSpec {
    let a = job.augment();
    AugmentSpec {
        crop_scale: a.crop_scale.into(),
        flip_p: a.flip,
        jitter: mcl_data::Jitter {
            brightness: a.jitter.brightness,
            contrast: a.jitter.contrast,
            saturation: a.jitter.saturation,
            hue: a.jitter.hue,
        },
        jitter_p: a.jitter_p,
        grey_p: a.grey_p,
        blur_p_q: a.blur_p_q,
        blur_p_k: a.blur_p_k,
        blur_sigma: a.blur_sigma.into(),
        solarize_p_q: a.solarize_p_q,
        solarize_p_k: a.solarize_p_k,
        channel_permutation_p: a.channel_permutation_p,
        invert_p: a.invert_p,
        quarter_turn_p: a.quarter_turn_p,
        ..AugmentSpec::default()
    }
}

/// What a loader makes of pictures; how many threads it has is its owner's business.
pub fn loader_spec(job: &Job) -> LoaderSpec {
    let mode = match job.data().views {
        Views::Exact => ViewMode::Exact,
        Views::Level => ViewMode::Level,
    };
    LoaderSpec {
        augment: augment_spec(job),
        image_size: job.model().image_size,
        levels: job.method().levels.clone(),
        mode,
        seed: job.seed(),
        ..LoaderSpec::default()
    }
}
