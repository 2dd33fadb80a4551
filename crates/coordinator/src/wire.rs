//! Between messages and the core's types.
//!
//! Invariant: what comes off the wire is parsed here or refused; a rank event that cannot be parsed ends the
//! stream that brought it, since a peer that speaks another protocol would only repeat itself.

use crate::config::JobFacts;
use crate::words;
use mcl_coordinator_core::{
    FailureKind, Hello, Holding, LaneReport, Origin, ProcessId, RankEvent, RankPost, RankProcess, RankSaid,
    Status, StepReport, ToWorker,
};
use mcl_plan::EpochPlan;
use mcl_plan::ledger::{LaneRecord, SampleHash, SampleRecord};
use mcl_proto::{WireError, v1};
use mcl_types::{FencingToken, Generation, Lane, Rank, SampleIndex, Term, WorkerName};

/// A worker's first message.
pub(crate) fn hello(hello: v1::Hello) -> Result<Hello, WireError> {
    if hello.worker.is_empty() {
        return Err(WireError::Missing { field: "worker" });
    }
    let devices = hello.devices.into_iter().map(|device| words::name("devices", device));
    Ok(Hello {
        worker: WorkerName::new(words::name("worker", hello.worker)?),
        build: words::name("build", hello.build)?,
        libtorch: words::name("libtorch", hello.libtorch)?,
        devices: devices.collect::<Result<_, _>>()?,
        advertise: words::name("advertise", hello.advertise)?,
        highest: hello.highest.map(FencingToken::from).unwrap_or_default(),
        processes: hello.processes.into_iter().map(rank_process).collect::<Result<_, _>>()?,
        leaving: hello.leaving,
    })
}

fn rank_process(process: v1::RankProcess) -> Result<RankProcess, WireError> {
    Ok(RankProcess {
        device: words::name("device", process.device)?,
        process: ProcessId(process.process),
        // A name that could not be a run's is no run of ours.
        run_id: mcl_proto::run_id(&process.run_id).ok(),
        prepared: process.prepared,
        generation: Generation::new(process.generation),
        holds_state: process.holds_state,
    })
}

/// A rank's event.
pub(crate) fn rank_event(event: v1::RankEvent) -> Result<RankEvent, WireError> {
    use v1::rank_event::Event;
    let generation = mcl_proto::token(event.token)?.generation;
    let rank = Rank::new(event.rank);
    let said = match event.event.ok_or(WireError::Missing { field: "event" })? {
        Event::Spawned(_) => RankSaid::Spawned,
        Event::Prepared(_) => RankSaid::Prepared,
        Event::Ready(ready) => {
            let holding = Holding {
                applied: ready.applied,
                trained_in: Generation::new(ready.trained_in),
                recorded_from: ready.recorded_from,
            };
            RankSaid::Ready { store_address: words::name("store_address", ready.store_address)?, holding }
        }
        Event::Paused(paused) => RankSaid::Paused { step: paused.step },
        Event::Broken(broken) => {
            let activity = words::name("activity", broken.activity)?;
            RankSaid::Broken { message: words::text(broken.message), step: broken.step, activity }
        }
        Event::Recounted(recounted) => {
            RankSaid::Recounted(recounted.steps.into_iter().map(recounted_step).collect::<Result<_, _>>()?)
        }
        // Workers keep it to themselves.
        Event::Alive(_) => {
            let reason = "alive is between a rank and its worker".to_owned();
            return Err(WireError::Malformed { field: "event", reason });
        }
        Event::Training(training) => RankSaid::Training { next_step: training.next_step },
        Event::Step(report) => RankSaid::Step(step_report(report)?),
        Event::Staged(staged) => RankSaid::Staged {
            step: staged.step,
            slices: staged.slices,
            tier: mcl_proto::tier(staged.in_memory),
        },
        Event::Drained(drained) => RankSaid::Drained { step: drained.step },
        Event::Finished(_) => RankSaid::Finished,
        Event::Failed(failed) => {
            let kind = match failed.kind() {
                v1::FailureKind::Collective => FailureKind::Collective,
                v1::FailureKind::Fatal => FailureKind::Fatal,
                v1::FailureKind::Other | v1::FailureKind::Unspecified => FailureKind::Other,
            };
            RankSaid::Failed { kind, message: words::text(failed.message), step: failed.step }
        }
        Event::Exited(exited) => RankSaid::Exited {
            status: words::text(exited.status),
            last_words: words::text(exited.last_words),
        },
    };
    let device = words::name("device", event.device)?;
    Ok(RankEvent { generation, rank, device, process: ProcessId(event.process), said })
}

fn recounted_step(step: v1::RecountedStep) -> Result<(Generation, StepReport), WireError> {
    let report = step.report.ok_or(WireError::Missing { field: "report" })?;
    Ok((Generation::new(step.generation), step_report(report)?))
}

fn step_report(report: v1::StepReport) -> Result<StepReport, WireError> {
    Ok(StepReport {
        step: report.step,
        epoch: report.epoch,
        lanes: report.lanes.into_iter().map(lane_report).collect::<Result<_, _>>()?,
        learning_rate: report.learning_rate,
        momentum: report.momentum,
        grad_norm: report.grad_norm,
        skipped: report.skipped,
        step_seconds: report.step_seconds,
        data_wait_seconds: report.data_wait_seconds,
        forward_seconds: report.forward_seconds,
        backward_seconds: report.backward_seconds,
        collective_seconds: report.collective_seconds,
    })
}

fn lane_report(report: v1::LaneReport) -> Result<LaneReport, WireError> {
    let samples = report.samples.into_iter().map(sample).collect::<Result<_, _>>()?;
    let fed = LaneRecord { lane: Lane::new(report.lane), samples };
    Ok(LaneReport { fed, losses: report.losses })
}

fn sample(fed: v1::FedSample) -> Result<SampleRecord, WireError> {
    let hash = SampleHash::try_from(fed.hash.as_slice())
        .map_err(|e| WireError::Malformed { field: "hash", reason: e.to_string() })?;
    Ok(SampleRecord {
        index: SampleIndex::new(fed.index),
        id: fed.id,
        hash,
        replaces: fed.replaces.map(SampleIndex::new),
        reason: Some(fed.reason).filter(|r| !r.is_empty()),
    })
}

/// What the rim adds to the core's messages.
pub(crate) struct Context<'a> {
    pub(crate) term: Term,
    pub(crate) heartbeat_interval_ms: u64,
    pub(crate) lost_after_ms: u64,
    pub(crate) checkpoint_url: &'a str,
    pub(crate) run_id: &'a str,
    pub(crate) advertise: &'a str,
    pub(crate) facts: Option<&'a JobFacts>,
    /// Of a grant's epoch.
    pub(crate) plan: Option<&'a EpochPlan>,
}

impl Context<'_> {
    /// The message to a worker.
    pub(crate) fn response(&self, message: ToWorker) -> v1::SessionResponse {
        use v1::rank_command::Command;
        use v1::session_response::Message;
        let message = match message {
            ToWorker::Welcome => Message::Welcome(v1::Welcome {
                term: self.term.get(),
                heartbeat_interval_ms: self.heartbeat_interval_ms,
                lost_after_ms: self.lost_after_ms,
            }),
            ToWorker::Prepare => Message::Prepare(v1::Prepare { configure: Some(self.configure()) }),
            ToWorker::Assign { generation, world, committed, ranks } => Message::Assign(v1::Assign {
                token: self.token(generation),
                posts: ranks.into_iter().map(|post| self.post(generation, world, committed, post)).collect(),
            }),
            ToWorker::Start { generation, store_address, first, origin } => {
                let origin = match origin {
                    Origin::Rank(rank) => v1::start::Origin::SourceRank(rank.get()),
                    Origin::Checkpoint(step) => v1::start::Origin::CheckpointStep(step),
                    Origin::Seed => v1::start::Origin::FromSeed(true),
                };
                let token = self.token(generation);
                let start = v1::Start { token, store_address, first_step: first, origin: Some(origin) };
                self.relay(generation, None, Command::Start(start))
            }
            ToWorker::Recount { generation, rank, steps } => {
                let (first_step, end_step) = (steps.start, steps.end);
                let recount = v1::Recount { token: self.token(generation), first_step, end_step };
                self.relay(generation, Some(rank), Command::Recount(recount))
            }
            ToWorker::Break { generation, reason } => self.relay(
                generation,
                None,
                Command::Break(v1::Break { token: self.token(generation), reason }),
            ),
            ToWorker::Pause { generation } => {
                self.relay(generation, None, Command::Pause(v1::Pause { token: self.token(generation) }))
            }
            ToWorker::Grant { generation, rank, epoch, steps, lanes } => {
                let lanes = lanes.map(|lane| self.slices(Lane::new(lane))).collect();
                let grant = v1::EpochGrant { token: self.token(generation), epoch, steps, lanes };
                self.relay(generation, Some(rank), Command::EpochGrant(grant))
            }
            ToWorker::Committed { generation, step } => {
                self.relay(generation, None, Command::Committed(v1::Committed { step }))
            }
            ToWorker::CheckpointCommitted { generation, step, digest } => {
                let committed = v1::CheckpointCommitted { step, digest };
                self.relay(generation, None, Command::CheckpointCommitted(committed))
            }
            ToWorker::Drain { generation } => {
                self.relay(generation, None, Command::Drain(v1::Drain { token: self.token(generation) }))
            }
            ToWorker::Stop { generation, rank, reason } => {
                self.relay(generation, Some(rank), Command::Stop(v1::Stop { reason }))
            }
            ToWorker::Refused { reason } => Message::Refused(v1::Refused { reason }),
            ToWorker::Dismiss { reason, leave } => Message::Dismiss(v1::Dismiss { reason, leave }),
        };
        v1::SessionResponse { message: Some(message) }
    }

    fn token(&self, generation: Generation) -> Option<v1::FencingToken> {
        Some(FencingToken { term: self.term, generation }.into())
    }

    fn relay(
        &self,
        generation: Generation,
        rank: Option<Rank>,
        command: v1::rank_command::Command,
    ) -> v1::session_response::Message {
        v1::session_response::Message::Relay(v1::Relay {
            token: self.token(generation),
            rank: rank.map(Rank::get),
            command: Some(v1::RankCommand { command: Some(command) }),
        })
    }

    fn configure(&self) -> v1::Configure {
        let plan = self.facts.map(|f| &f.plan);
        v1::Configure {
            run_id: self.run_id.to_owned(),
            job_toml: self.facts.map(|f| f.job_toml.clone()).unwrap_or_default(),
            dataset_digest: plan.map(|p| p.dataset_digest.to_string()).unwrap_or_default(),
            dataset_len: plan.map_or(0, |p| p.dataset_len),
            checkpoint_url: self.checkpoint_url.to_owned(),
            advertise: self.advertise.to_owned(),
            device: String::new(),
            lost_after_ms: self.lost_after_ms,
        }
    }

    fn post(&self, generation: Generation, world: u32, committed: u64, post: RankPost) -> v1::Post {
        let join =
            v1::Join { token: self.token(generation), rank: post.rank.get(), world_size: world, committed };
        v1::Post { device: post.device, process: post.process.0, join: Some(join) }
    }

    fn slices(&self, lane: Lane) -> v1::LaneSlices {
        let slices = self.plan.map(|p| p.slices(lane)).unwrap_or_default();
        let name = |shard: Option<usize>| {
            shard.and_then(|s| self.facts?.shard_names.get(s).cloned()).unwrap_or_default()
        };
        let slices = slices
            .into_iter()
            .map(|s| v1::ShardSlice { shard: name(s.shard), first_sample: s.first, samples: s.samples })
            .collect();
        v1::LaneSlices { lane: lane.get(), slices }
    }
}

/// Everything that a person is told.
#[derive(Debug)]
pub struct Overview {
    /// Of the job and its ranks.
    pub status: Status,
    /// First in, first out.
    pub queue: Vec<v1::QueuedJob>,
    /// Runs before the last one, oldest first.
    pub past_runs: Vec<v1::PastRun>,
    /// Where the checkpoint service is reached.
    pub checkpoint_url: String,
}

/// What `GetStatus` answers.
pub(crate) fn status(overview: Overview) -> v1::GetStatusResponse {
    let Overview { status, queue, past_runs, checkpoint_url } = overview;
    let last = status.last_step;
    v1::GetStatusResponse {
        run_id: status.run_id.map(String::from).unwrap_or_default(),
        phase: status.phase.to_string(),
        reason: status.reason.to_string(),
        term: status.term.get(),
        generation: status.generation.get(),
        committed_steps: status.committed_steps,
        total_steps: status.total_steps,
        steps_per_epoch: status.steps_per_epoch,
        workers: status
            .workers
            .into_iter()
            .map(|w| v1::WorkerStatus {
                worker: w.worker.as_str().to_owned(),
                ranks: w.ranks.into_iter().map(Rank::get).collect(),
                state: w.state.to_string(),
                silent_seconds: w.silent.as_secs_f64(),
                advertise: w.advertise,
            })
            .collect(),
        loss: last.as_ref().and_then(|l| l.loss).unwrap_or(f64::NAN),
        images_per_second: last.as_ref().map_or(0.0, |l| l.images_per_s),
        last_checkpoint: status.last_checkpoint,
        data_wait_share: status.data_wait_share,
        protocol: mcl_proto::PROTOCOL,
        build: status.build,
        queue,
        past_runs,
        checkpoint_url,
        ranks: status
            .ranks
            .into_iter()
            .map(|r| v1::RankStatus {
                rank: r.rank.get(),
                worker: r.worker.as_str().to_owned(),
                device: r.device,
                step_seconds: r.step_seconds,
                data_wait_seconds: r.data_wait_seconds,
                forward_seconds: r.forward_seconds,
                backward_seconds: r.backward_seconds,
                collective_seconds: r.collective_seconds,
                straggler: r.straggler,
                last_step: r.last_step,
            })
            .collect(),
    }
}
