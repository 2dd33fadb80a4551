//! From the coordinator's words to the page's.

use mcl_coordinator::{Phase, Progress, Reason, Status, WorkerState};
use mcl_page::{Ending, Past, Queued, Rank, Snapshot, Worker};
use mcl_proto::v1;
use mcl_types::{LaneLayout, Rank as RankId};

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
