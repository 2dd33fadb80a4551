//! From the coordinator's words to the page's.

use super::cluster::CurrentJob;
use crate::row::row;
use mcl_config::Job;
use mcl_coordinator::{
    Adopted, DrainFor, Observation, Observed, Phase, Progress, Reason, Status, WorkerState,
};
use mcl_page::{Draining, Ending, Happening, Past, Queued, Rank, Run, Snapshot, Told, What, Worker};
use mcl_proto::v1;
use mcl_types::{LaneLayout, Rank as RankId};
use std::sync::{Arc, PoisonError};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};

/// What happens, in the page's words; `job` is kept current.
pub(super) fn told(
    observations: broadcast::Receiver<Observation>,
    job: CurrentJob,
) -> impl Stream<Item = Told> + Send {
    BroadcastStream::new(observations).filter_map(move |observed| match observed {
        Err(BroadcastStreamRecvError::Lagged(_)) => Some(Told::Missed),
        Ok(Observation { time, what }) => {
            if let Observed::Adopted(adopted) = &what {
                let adopted = Arc::new(adopted.as_ref().clone());
                *job.lock().unwrap_or_else(PoisonError::into_inner) = Some(adopted);
            }
            Some(Told::Happening(Happening { time, what: happened(what, time) }))
        }
    })
}

fn happened(what: Observed, time: f64) -> What {
    match what {
        Observed::Adopted(adopted) => began(&adopted),
        Observed::Committed(metrics) => What::Committed(Box::new(row(*metrics, time))),
        Observed::RolledBack { to } => What::RolledBack { to },
        Observed::Formed { generation, workers, ranks } => {
            What::Formed { generation: generation.get(), workers, ranks }
        }
        Observed::Continued { generation, workers, ranks, term } => {
            What::Continued { generation: generation.get(), workers, ranks, term: term.get() }
        }
        Observed::Ended { generation } => What::Ended { generation: generation.get(), cause: None },
        Observed::Failed { generation, cause } => {
            What::Ended { generation: generation.get(), cause: Some(cause.to_string()) }
        }
        Observed::Draining(why) => What::Draining(match why {
            DrainFor::Stop => Draining::Stop,
            DrainFor::Hold => Draining::Hold,
            DrainFor::Departure => Draining::Departure,
            DrainFor::Regroup => Draining::Regroup,
        }),
        Observed::Checkpoint { step } => What::Checkpoint { step },
        Observed::CheckpointsFound { steps } => What::CheckpointsFound(steps),
    }
}

fn began(adopted: &Adopted) -> What {
    let plan = &adopted.facts.plan;
    let mut run = Run {
        name: adopted.run_id.to_string(),
        lanes: plan.lanes,
        images_per_lane: plan.images_per_lane,
        ..Run::default()
    };
    // It was read before it was adopted; without it the page lacks names of levels and bounds of the loss.
    if let Ok(job) = Job::parse(&adopted.facts.job_toml, "the job") {
        run.levels = job.method().levels.iter().map(|r| level(*r)).collect();
        let (chance, floor) = crate::run_dir::loss_bounds(&job);
        (run.chance, run.floor) = (Some(chance), Some(floor));
    }
    What::Began {
        run: Box::new(run),
        metrics: adopted.run_dir.join(crate::run_dir::METRICS),
        committed: adopted.committed,
        checkpoint: adopted.checkpoint,
    }
}

/// A level is named for the size of its pictures.
fn level(ratio: u32) -> String {
    if ratio == 1 { "full size".to_owned() } else { format!("1/{ratio} size") }
}

const fn phase(phase: Phase) -> mcl_page::Phase {
    match phase {
        Phase::Idle => mcl_page::Phase::Idle,
        Phase::Waiting => mcl_page::Phase::Waiting,
        Phase::Forming => mcl_page::Phase::Forming,
        Phase::Training => mcl_page::Phase::Training,
        Phase::Draining => mcl_page::Phase::Draining,
        Phase::Done => mcl_page::Phase::Done,
        Phase::Failed => mcl_page::Phase::Failed,
        Phase::Interrupted => mcl_page::Phase::Interrupted,
        Phase::Cancelled => mcl_page::Phase::Cancelled,
    }
}

const fn worker_state(state: WorkerState) -> mcl_page::WorkerState {
    match state {
        WorkerState::Connected => mcl_page::WorkerState::Connected,
        WorkerState::Preparing => mcl_page::WorkerState::Preparing,
        WorkerState::Ready => mcl_page::WorkerState::Ready,
        WorkerState::Training => mcl_page::WorkerState::Training,
        WorkerState::Leaving => mcl_page::WorkerState::Leaving,
        WorkerState::Lost => mcl_page::WorkerState::Lost,
    }
}

/// `lanes`: of the job, 0 where that is not known.
pub(super) fn snapshot(
    status: Status,
    queue: Vec<v1::QueuedJob>,
    past_runs: Vec<v1::PastRun>,
    lanes: u32,
) -> Snapshot {
    let world = u32::try_from(status.ranks.len()).unwrap_or(u32::MAX);
    let layout = LaneLayout::new(lanes, world).ok();
    let rank = |r: mcl_coordinator::RankStatus| {
        let lanes = layout.map(|l| l.lanes_of(RankId::new(r.rank.get()))).unwrap_or_default();
        Rank {
            rank: r.rank.get(),
            worker: r.worker.as_str().to_owned(),
            device: r.device,
            first_lane: lanes.start,
            lanes: lanes.end - lanes.start,
            step_s: r.step_seconds,
            data_s: r.data_wait_seconds,
            forward_s: r.forward_seconds,
            backward_s: r.backward_seconds,
            collective_s: r.collective_seconds,
            straggler: r.straggler,
            last_step: r.last_step,
        }
    };
    let worker = |w: mcl_coordinator::WorkerStatus| Worker {
        name: w.worker.as_str().to_owned(),
        state: worker_state(w.state),
        silent_s: w.silent.as_secs_f64(),
        address: w.advertise,
        ranks: w.ranks.into_iter().map(RankId::get).collect(),
    };
    Snapshot {
        run: status.run_id.map(String::from),
        phase: phase(status.phase),
        held: matches!(status.reason, Reason::Held),
        reason: status.reason.to_string(),
        term: status.term.get(),
        generation: status.generation.get(),
        committed: status.committed_steps,
        total: status.total_steps,
        steps_per_epoch: status.steps_per_epoch,
        data_wait_share: status.data_wait_share,
        last_checkpoint: status.last_checkpoint,
        workers: status.workers.into_iter().map(worker).collect(),
        ranks: status.ranks.into_iter().map(rank).collect(),
        queue: queue.into_iter().map(|q| Queued { run: q.run_id, since: q.since }).collect(),
        past: past_runs
            .into_iter()
            .map(|p| Past { run: p.run_id, outcome: p.outcome, until: p.until })
            .collect(),
        build: status.build,
    }
}

/// The last that is known once the coordinator's loop has ended.
pub(super) fn last(progress: &Progress) -> Ending {
    Ending {
        phase: phase(progress.phase),
        reason: progress.reason.clone(),
        committed: progress.step,
        last_checkpoint: progress.last_checkpoint,
    }
}
