//! What a viewer is shown: one document of bounded size, made of a snapshot and the record.
//!
//! Pure. Workers and ranks one by one are not in it, since there may be thousands: of them the numbers, and the few
//! that matter most. Tables ask for theirs page by page (`tables.rs`). A field that is not known is left out, never
//! null, so that two documents differ by a merge patch. Times are moments, not ages: a document that nothing
//! happened to does not change.

use crate::model::{Past, Phase, Queued, Rank, Snapshot, WorkerState};
use crate::sheet::SheetState;
use crate::verdict::{Verdict, verdict};
use mcl_history::Row;
use mcl_history::{Checkpoint, Evaluation, Generation, Record, Run};
use serde::Serialize;
use std::collections::BTreeMap;

/// Newest generations, checkpoints and evaluations shown.
const NEWEST: usize = 50;
/// Waiting jobs and earlier runs shown.
const JOBS: usize = 50;
/// Slowest ranks shown.
const SLOWEST: usize = 12;

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct State {
    verdict: Verdict,
    phase: Phase,
    reason: String,
    held: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Run>,
    term: u64,
    generation: u64,
    committed: u64,
    total: u64,
    steps_per_epoch: u64,
    data_wait_share: f64,
    /// The newest row.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Row>,
    skipped: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps_per_s: Option<f64>,
    workers: Workers,
    ranks: Ranks,
    generations: Vec<Generation>,
    generations_forgotten: u64,
    checkpoints: Vec<Checkpoint>,
    evaluations: Vec<Evaluation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_checkpoint: Option<u64>,
    queue: Vec<Queued>,
    queue_len: usize,
    past: Vec<Past>,
    history: HistoryState,
    sheet: SheetState,
    /// Whether a token would let a viewer act.
    actions: bool,
    build: String,
}

/// The workers in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Workers {
    known: usize,
    connected: usize,
    by_state: BTreeMap<&'static str, usize>,
}

/// The ranks in numbers, and the slowest.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Ranks {
    count: usize,
    stragglers: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    fastest_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    median_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slowest_s: Option<f64>,
    slowest: Vec<Rank>,
}

/// Whether charts must be fetched anew.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct HistoryState {
    revision: u64,
    /// Rows of earlier steps are still being read.
    reading: bool,
}

/// What is not in the record.
#[derive(Debug, Clone, PartialEq)]
pub struct Besides {
    /// The montage sheet.
    pub sheet: SheetState,
    /// Whether a token was configured.
    pub actions: bool,
    /// Rows of earlier steps are still being read.
    pub reading: bool,
}

/// The document at time `now`.
pub fn compose(snapshot: &Snapshot, record: &Record, besides: Besides, now: f64) -> State {
    let (generations, forgotten) = record.generations();
    let generations: Vec<Generation> = generations.take(NEWEST).cloned().collect();
    let beyond = record.generations().0.count() - generations.len();
    let Besides { sheet, actions, reading } = besides;
    State {
        verdict: verdict(snapshot, record, now),
        phase: snapshot.phase,
        reason: snapshot.reason.clone(),
        held: snapshot.held,
        run: record.run.clone().filter(|r| Some(&r.name) == snapshot.run.as_ref()),
        term: snapshot.term,
        generation: snapshot.generation,
        committed: snapshot.committed,
        total: snapshot.total,
        steps_per_epoch: snapshot.steps_per_epoch,
        data_wait_share: snapshot.data_wait_share,
        last: record.history.last().cloned(),
        skipped: record.skipped,
        steps_per_s: record.pace().filter(|_| snapshot.phase == Phase::Training),
        workers: workers(snapshot),
        ranks: ranks(snapshot),
        generations,
        generations_forgotten: forgotten + beyond as u64,
        checkpoints: record.checkpoints().take(NEWEST).cloned().collect(),
        evaluations: record.evaluations().take(NEWEST).cloned().collect(),
        last_checkpoint: snapshot.last_checkpoint,
        queue: snapshot.queue.iter().take(JOBS).cloned().collect(),
        queue_len: snapshot.queue.len(),
        past: snapshot.past.iter().rev().take(JOBS).cloned().collect(),
        history: HistoryState { revision: record.revision, reading },
        sheet,
        actions,
        build: snapshot.build.clone(),
    }
}

fn workers(snapshot: &Snapshot) -> Workers {
    let count = |state| snapshot.workers.iter().filter(|w| w.state == state).count();
    let by_state: BTreeMap<_, _> =
        WorkerState::ALL.iter().map(|s| (s.name(), count(*s))).filter(|(_, n)| *n > 0).collect();
    let (known, lost) = (snapshot.workers.len(), count(WorkerState::Lost));
    Workers { known, connected: known - lost, by_state }
}

fn ranks(snapshot: &Snapshot) -> Ranks {
    let mut times: Vec<f64> = snapshot.ranks.iter().map(|r| r.step_s).collect();
    times.sort_by(f64::total_cmp);
    let mut slowest: Vec<&Rank> = snapshot.ranks.iter().collect();
    let own_work = |r: &Rank| r.step_s - r.collective_s;
    let slower = |a: &&Rank, b: &&Rank| {
        b.straggler.cmp(&a.straggler).then(own_work(b).total_cmp(&own_work(a))).then(a.rank.cmp(&b.rank))
    };
    if slowest.len() > SLOWEST {
        slowest.select_nth_unstable_by(SLOWEST, slower);
        slowest.truncate(SLOWEST);
    }
    slowest.sort_by(slower);
    Ranks {
        count: times.len(),
        stragglers: snapshot.ranks.iter().filter(|r| r.straggler).count(),
        fastest_s: times.first().copied(),
        median_s: times.get(times.len().saturating_sub(1) / 2).copied(),
        slowest_s: times.last().copied(),
        slowest: slowest.into_iter().cloned().collect(),
    }
}
