//! The life of a training rank: configure, meet, load, train, leave.

use crate::control::{Commands, Reporter, claim_output, listen};
use crate::feed::{Feed, lane_report};
use crate::snapshot::Snapshots;
use crate::{engine, weights};
use anyhow::{Context, Result, bail};
use mcl_collective::{Group, Membership, Store};
use mcl_config::{Job, OptimizerKind};
use mcl_data::Dataset;
use mcl_model::Model;
use mcl_plan::Schedule;
use mcl_proto::v1::{self, rank_event::Event};
use mcl_train::{
    LearningRate, Momentum, OptimizerSettings, Rates, Rule, StepInput, StepOutcome, TrainError, Trainer,
    TrainerSettings,
};
use mcl_types::{FencingToken, LaneLayout, Rank, Step};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Device;

/// A generation's first step may take this long: devices warm up, libraries tune themselves.
const FIRST_STEP: Duration = Duration::from_secs(120);
/// Ranks compare digests every so many steps.
const DIGEST_EVERY: u64 = 100;

/// Trains as told on standard input, until done or told to stop.
pub(crate) fn run() -> ExitCode {
    let commands = listen();
    let (configure, output) = match commands.configure().and_then(|c| Ok((c, claim_output()?))) {
        Ok(both) => both,
        Err(error) => {
            tracing::error!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let token: FencingToken = configure.token.unwrap_or_default().into();
    let reporter = Reporter::new(token, configure.rank, output);
    let mut at = None;
    let outcome =
        Session::prepare(configure, token, reporter.clone()).and_then(|s| s.train(&commands, &mut at));
    match outcome {
        Ok(()) => commands.wait_for_stop(),
        Err(error) => {
            tracing::error!("{error:#}");
            let kind = kind_of(&error);
            reporter.send(Event::Failed(v1::Failed {
                kind: kind.into(),
                message: format!("{error:#}"),
                step: at,
            }));
            ExitCode::FAILURE
        }
    }
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
        let fatal = cause.is::<mcl_data::DatasetError>()
            || cause.is::<mcl_data::LoaderError>()
            || cause.is::<mcl_config::ConfigError>()
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

/// A configured rank that has not met its peers.
struct Session {
    configure: v1::Configure,
    token: FencingToken,
    reporter: Reporter,
    job: Job,
    dataset: Arc<Dataset>,
    schedule: Schedule,
    plan: mcl_plan::PlanSpec,
    model: Model,
    device: Device,
    layout: LaneLayout,
    /// Rank 0 hosts the rendezvous store as long as it lives.
    _store: Option<Store>,
}

impl Session {
    /// Builds the model, opens the dataset, checks that it is the coordinator's, answers Ready.
    fn prepare(configure: v1::Configure, token: FencingToken, reporter: Reporter) -> Result<Self> {
        let job = Job::parse(&configure.job_toml, "the coordinator's job")?;
        engine::set_threads(job.train().threads_per_rank);
        let device = engine::device(&configure.device)?;
        let dataset = Arc::new(Dataset::open(&job.data().source)?);
        check_dataset(&dataset, &configure)?;
        let plan = mcl_job::plan_spec(&job, &dataset);
        let schedule = mcl_job::schedule(&job, &plan)?;
        let layout = LaneLayout::new(job.batch().lanes, configure.world_size)?;
        let mut model = Model::new(weights::model_spec(&job)?, engine::kind(job.train().precision), device)?;
        if configure.resume_step.is_none() {
            model.initialize(job.seed())?;
        }
        let store = if configure.rank == 0 { Some(Store::host(0, timeout(&job))?) } else { None };
        let address = match &store {
            Some(store) => format!("{}:{}", configure.advertise, store.port()?),
            None => String::new(),
        };
        reporter.send(Event::Ready(v1::Ready { store_address: address }));
        Ok(Self {
            configure,
            token,
            reporter,
            job,
            dataset,
            schedule,
            plan,
            model,
            device,
            layout,
            _store: store,
        })
    }

    /// Meets the other ranks where there are any.
    fn meet(&self, start: &v1::Start) -> Result<Option<Group>> {
        let world = self.configure.world_size;
        if world == 1 {
            return Ok(None);
        }
        let limit = timeout(&self.job);
        // The hosting process talks to its own store over the network too: no second code path.
        let store = Store::connect(&start.store_address, limit)?;
        let membership = Membership { token: self.token, rank: Rank::new(self.configure.rank), world };
        let nccl = match self.device {
            Device::Cpu => None,
            _ => Some(engine::nccl()?),
        };
        Ok(Some(Group::form(&store, membership, limit, &self.configure.advertise, nccl)?))
    }

    fn train(self, commands: &Commands, at: &mut Option<u64>) -> Result<()> {
        let start = commands.start()?;
        let group = self.meet(&start)?;
        let mut snapshots = Snapshots::new(&self.configure, self.token, self.reporter.clone())?;
        let rank = Rank::new(self.configure.rank);
        let settings = TrainerSettings {
            lanes: self.layout,
            rank,
            images_per_lane: self.job.batch().images_per_lane,
            montages: None,
            compute: weights::compute_mode(self.job.method().compute),
            optimizer: optimizer_settings(&self.job),
            clip_norm: self.job.optimizer().clip_norm,
        };
        let mut trainer = Trainer::new(self.model, settings, group)?;
        let first = Step::new(self.configure.resume_step.unwrap_or(0));
        if self.configure.resume_step.is_some() {
            let state =
                snapshots.load(first).with_context(|| format!("loading the checkpoint of {first}"))?;
            trainer.load(state)?;
        }
        trainer.check_agreement(first)?;
        let lanes = self.layout.lanes_of(rank);
        let feed = Feed::start(&self.job, self.dataset, self.plan, self.schedule, lanes, first)?;
        self.reporter.send(Event::Training(v1::Training { next_step: first.get() }));
        let rates = Schedules::new(&self.job, self.schedule);
        let every = self.job.checkpoint().every_steps;
        let mut steps = Steps {
            trainer,
            feed,
            rates,
            schedule: self.schedule,
            every,
            reporter: self.reporter,
            last_staged: self.configure.resume_step,
        };
        steps.run(first, commands, &mut snapshots, at)
    }
}

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

/// How long a collective may take: three times the silence after which a machine is lost, and long
/// enough for a generation's first step.
fn timeout(job: &Job) -> Duration {
    (job.elastic().lost_after * 3).max(FIRST_STEP)
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

/// Learning rate and momentum of the job.
struct Schedules {
    lr: LearningRate,
    momentum: Momentum,
}

impl Schedules {
    fn new(job: &Job, schedule: Schedule) -> Self {
        let (o, total) = (job.optimizer(), job.schedule_steps(schedule.steps_per_epoch()));
        Self {
            lr: LearningRate {
                base: o.lr,
                min: o.min_lr,
                warmup_steps: o.warmup_steps,
                warmup_ratio: o.warmup_ratio,
                total,
            },
            momentum: Momentum { base: job.method().base_momentum, end: job.method().end_momentum, total },
        }
    }

    fn at(&self, step: Step) -> Rates {
        Rates { lr: self.lr.at(step.get()), momentum: self.momentum.at(step.get()) }
    }
}

/// The training loop's parts.
struct Steps {
    trainer: Trainer,
    feed: Feed,
    rates: Schedules,
    schedule: Schedule,
    every: u64,
    reporter: Reporter,
    last_staged: Option<u64>,
}

impl Steps {
    fn run(
        &mut self,
        first: Step,
        commands: &Commands,
        snapshots: &mut Snapshots,
        at: &mut Option<u64>,
    ) -> Result<()> {
        let total = self.schedule.total_steps();
        let mut step = first;
        while step.get() < total {
            *at = Some(step.get());
            let stop = self.one(step, commands)?;
            step = step.next();
            let done = step.get();
            let due = done.is_multiple_of(self.every) || done == total || stop;
            if due || done.is_multiple_of(DIGEST_EVERY) {
                self.trainer.check_agreement(step)?;
            }
            if due {
                self.stage(step, snapshots)?;
            }
            if stop && done < total {
                snapshots.finish_or_fail()?;
                self.reporter.send(Event::Drained(v1::Drained { step: done }));
                return Ok(());
            }
        }
        // Resumed at the very end: the checkpoint that was loaded is the last one.
        if self.last_staged != Some(total) {
            self.stage(step, snapshots)?;
        }
        snapshots.finish_or_fail()?;
        self.reporter.send(Event::Finished(v1::Finished { step: step.get() }));
        Ok(())
    }

    fn stage(&mut self, step: Step, snapshots: &mut Snapshots) -> Result<()> {
        self.last_staged = Some(step.get());
        snapshots.stage(step, &self.trainer.state()?)
    }

    /// One step; whether training is to stop after it.
    fn one(&mut self, step: Step, commands: &Commands) -> Result<bool> {
        let started = Instant::now();
        let fed = self.feed.next(step)?;
        let rates = self.rates.at(step);
        let wants_stop = commands.heard.wants_drain();
        let outcome = self.trainer.step(&StepInput { step, lanes: fed.lanes, rates, wants_stop })?;
        let epoch = self.schedule.locate(step).epoch;
        if commands.heard.granted_epochs() <= epoch.get() {
            // The plan is a pure function, so work goes on; a coordinator that is away grants later.
            tracing::debug!(%epoch, "epoch not yet granted");
        }
        let StepOutcome { lane_losses, grad_norm, skipped, stop } = outcome;
        let lanes = fed
            .samples
            .into_iter()
            .zip(lane_losses)
            .map(|((lane, samples), losses)| {
                let finite = losses.iter().all(|l| l.is_finite());
                lane_report(lane, if finite { losses } else { Vec::new() }, samples)
            })
            .collect();
        self.reporter.send(Event::Step(v1::StepReport {
            step: step.get(),
            epoch: epoch.get(),
            lanes,
            learning_rate: rates.lr,
            momentum: rates.momentum,
            grad_norm,
            skipped,
            step_seconds: started.elapsed().as_secs_f64(),
            data_wait_seconds: fed.waited.as_secs_f64(),
        }));
        Ok(stop)
    }
}
