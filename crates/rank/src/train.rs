//! The life of a training process: configure once, then one generation after another.

use crate::control::{Control, Reporter, claim_output, keep_alive};
use crate::generation::Process;
use crate::orders::{Next, Orders};
use crate::records::Records;
use crate::snapshot::{Left, Snapshots};
use crate::{engine, weights};
use anyhow::{Result, bail};
use mcl_checkpoint::ClientError;
use mcl_config::{Job, OptimizerKind, Precision};
use mcl_data::Dataset;
use mcl_model::Model;
use mcl_proto::v1::{self, rank_event::Event};
use mcl_train::{Activity, Doing, OptimizerSettings, Rule, TrainError, Trainer, TrainerSettings};
use mcl_types::FencingToken;
use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;

/// Trains as told on standard input, until told to stop.
pub(crate) fn run() -> ExitCode {
    let armed = mcl_failpoint::arm_from_environment(mcl_failpoint::Process::Rank);
    let output = match armed.map_err(Into::into).and_then(|()| claim_output()) {
        Ok(output) => output,
        Err(error) => {
            tracing::error!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let reporter = Reporter::new(output);
    let (orders, records) = (Arc::new(Orders::default()), Arc::new(Records::default()));
    let control =
        Control { orders: Arc::clone(&orders), records: Arc::clone(&records), reporter: reporter.clone() };
    control.listen();
    let activity = Activity::default();
    let Err(error) = life(&orders, records, &activity, &reporter);
    tracing::error!("{error:#}");
    let (token, rank) = orders.stamp();
    reporter.stamped(token, rank).send(Event::Failed(v1::Failed {
        kind: kind_of(&error).into(),
        message: format!("{error:#}"),
        step: activity.now().step.map(mcl_types::Step::get),
    }));
    ExitCode::FAILURE
}

/// Ends with an error only; a process that has nothing more to do waits for Stop, which the control thread hears.
fn life(
    orders: &Arc<Orders>,
    records: Arc<Records>,
    activity: &Activity,
    reporter: &Reporter,
) -> Result<Infallible> {
    let configure = orders.configure();
    activity.set(Doing::Preparing, None);
    keep_alive(reporter.clone(), Arc::clone(orders), activity.clone(), configure.lost_after_ms);
    let mut process = prepare(configure, Arc::clone(orders), records, activity.clone(), reporter.clone())?;
    reporter.send(Event::Prepared(v1::Prepared {}));
    // The last generation of which was said that it broke.
    let mut told = None;
    loop {
        activity.set(Doing::Idle, None);
        let (token, rank, message) = match orders.next() {
            Next::Leave(leave) => {
                let token: FencingToken = leave.token.unwrap_or_default().into();
                if told == Some(token) {
                    continue;
                }
                (token, orders.stamp().1, format!("told to leave: {}", leave.reason))
            }
            Next::Join(join) => {
                let Err(error) = process.generation(&join) else { continue };
                let token = join.token.unwrap_or_default().into();
                if !survives(&error, orders.replaced(token)) {
                    return Err(error);
                }
                (token, join.rank, format!("{error:#}"))
            }
        };
        let now = activity.now();
        tracing::warn!(activity = %now.doing, %message, "generation over");
        told = Some(token);
        reporter.stamped(token, rank).send(Event::Broken(v1::Broken {
            message,
            step: now.step.map(mcl_types::Step::get),
            activity: now.doing.to_string(),
        }));
    }
}

/// Whether only the group is of no use any more. The state is whole then: what tears it says so. Where it was
/// `replaced`, whatever failed for no reason of its own failed because of that.
fn survives(error: &anyhow::Error, replaced: bool) -> bool {
    let torn = |e: &TrainError| matches!(e, TrainError::Torn { .. });
    if error.chain().any(|cause| cause.downcast_ref::<TrainError>().is_some_and(torn)) {
        return false;
    }
    // A checkpoint that cannot be stored or read is no fault of the state that is held, which may be the newest.
    let of_checkpoints = error.chain().any(|cause| cause.is::<ClientError>());
    of_checkpoints
        || error.is::<Left>()
        || match kind_of(error) {
            v1::FailureKind::Collective => true,
            v1::FailureKind::Fatal => false,
            v1::FailureKind::Other | v1::FailureKind::Unspecified => replaced,
        }
}

/// Builds the model, opens the dataset, checks that it is the coordinator's, warms the device up.
fn prepare(
    configure: v1::Configure,
    orders: Arc<Orders>,
    records: Arc<Records>,
    activity: Activity,
    reporter: Reporter,
) -> Result<Process> {
    let job = Job::parse(&configure.job_toml, "the coordinator's job")?;
    engine::set_threads(job.train().threads_per_rank);
    let device = engine::device(&configure.device)?;
    engine::tune(device);
    let dataset = Arc::new(mcl_job::open_dataset(&job)?);
    check_dataset(&dataset, &configure)?;
    let classes = mcl_job::classes(&job, &dataset)?;
    let plan = mcl_job::plan_spec(&job, &dataset);
    let schedule = mcl_job::schedule(&job, &plan)?;
    let model = Model::new(weights::model_spec(&job, classes)?, engine::kind(job.train().precision), device)?;
    let mut trainer = Trainer::new(model, trainer_settings(&job))?;
    trainer.tell(activity.clone());
    let snapshots = Snapshots::new(&configure, Arc::clone(&orders))?;
    Ok(Process {
        configure,
        job,
        dataset,
        schedule,
        plan,
        device,
        trainer,
        snapshots,
        feed: None,
        held: None,
        records,
        orders,
        activity,
        reporter,
        host: None,
    })
}

/// Whether starting again could help: lost peers yes; bad data, settings or numbers no.
fn kind_of(error: &anyhow::Error) -> v1::FailureKind {
    for cause in error.chain() {
        if let Some(e) = cause.downcast_ref::<TrainError>() {
            return match e {
                _ if e.is_peer_loss() => v1::FailureKind::Collective,
                TrainError::NotFinite { .. } | TrainError::State(_) | TrainError::Diverged { .. } => {
                    v1::FailureKind::Fatal
                }
                _ => v1::FailureKind::Other,
            };
        }
        if let Some(e) = cause.downcast_ref::<mcl_collective::CollectiveError>() {
            return if e.is_peer_loss() { v1::FailureKind::Collective } else { v1::FailureKind::Other };
        }
        // An object store that is away for long costs the rank, not the job.
        let away =
            cause.downcast_ref::<mcl_data::DatasetError>().is_some_and(mcl_data::DatasetError::may_pass)
                || cause.downcast_ref::<mcl_data::LoaderError>().is_some_and(mcl_data::LoaderError::may_pass);
        if away {
            return v1::FailureKind::Other;
        }
        let fatal = cause.is::<mcl_data::DatasetError>()
            || cause.is::<mcl_data::LoaderError>()
            || cause.is::<mcl_config::ConfigError>()
            || cause.is::<mcl_job::JobError>()
            || cause.is::<mcl_model::ModelError>()
            || cause.is::<Mismatch>();
        if fatal {
            return v1::FailureKind::Fatal;
        }
    }
    v1::FailureKind::Other
}

/// This machine sees another dataset than the coordinator.
#[derive(Debug)]
struct Mismatch(String);

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

fn check_dataset(dataset: &Dataset, configure: &v1::Configure) -> Result<()> {
    let (found, expected) = (dataset.digest().to_string(), &configure.dataset_digest);
    if &found != expected || dataset.len() != configure.dataset_len {
        bail!(Mismatch(format!(
            "the dataset here has {} pictures and digest {found:.12}, the coordinator's has {} and {expected:.12}: \
             give every machine the same files",
            dataset.len(),
            configure.dataset_len
        )));
    }
    Ok(())
}

/// What a job says of its trainer.
pub(crate) fn trainer_settings(job: &Job) -> TrainerSettings {
    TrainerSettings {
        lanes: job.batch().lanes,
        images_per_lane: job.batch().images_per_lane,
        montages: None,
        compute: weights::compute_mode(job.method().compute),
        norm: weights::norm_scope(job.method().norm),
        autocast: job.train().precision == Precision::Bf16,
        optimizer: optimizer_settings(job),
        clip_norm: job.optimizer().clip_norm,
        seed: job.seed(),
        supervision: [job.method().contrastive_share, job.method().classifier_share],
    }
}

fn optimizer_settings(job: &Job) -> OptimizerSettings {
    let o = job.optimizer();
    let rule = match o.kind {
        OptimizerKind::Lars => Rule::Lars { momentum: o.momentum, eta: o.eta },
        OptimizerKind::Sgd => Rule::Sgd { momentum: o.momentum },
        OptimizerKind::AdamW => Rule::AdamW { betas: o.betas, eps: o.eps },
    };
    OptimizerSettings { rule, weight_decay: o.weight_decay }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_that_fails_ends_no_process_that_holds_a_whole_state() {
        let full = ClientError::Full { url: "http://h:1".into(), call: "PutSlice", reason: "full".into() };
        let error = anyhow::Error::from(full).context("checkpoint of step 3");
        assert!(survives(&error, false));
        let torn = TrainError::Torn { source: Box::new(TrainError::State("half".into())) };
        assert!(!survives(&torn.into(), true), "torn");
        assert!(!survives(&anyhow::anyhow!("something else"), false));
    }
}
