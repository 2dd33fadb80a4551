//! Workers and ranks one by one: sorted, filtered, a page at a time, so that a browser holds few rows of thousands.
//!
//! Pure. What needs attention comes first unless another order is asked for.

use crate::model::{Rank, Snapshot, Worker, WorkerState};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::HashMap;

/// Rows of one page at most.
const MOST_ROWS: usize = 200;
/// Ranks of a worker that are listed.
const LISTED_RANKS: usize = 16;

/// What a viewer wants to see of a table.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// Rows in which this text is.
    q: String,
    /// Rows in this state: of workers a state, of ranks `straggler`.
    state: String,
    /// The column to sort by; else what needs attention first.
    sort: String,
    /// The other way round.
    desc: bool,
    /// Which page, from 0.
    page: usize,
    /// Rows of a page; 0: 50.
    rows: usize,
}

/// A page of a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Page<T> {
    /// Rows of the table that are not filtered away.
    pub found: usize,
    /// Rows of the whole table.
    pub all: usize,
    /// This page, from 0.
    pub page: usize,
    /// Pages that there are.
    pub pages: usize,
    /// Its rows.
    pub rows: Vec<T>,
}

/// A worker with what its ranks do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerRow {
    name: String,
    state: WorkerState,
    silent_s: f64,
    address: String,
    /// The first ones.
    ranks: Vec<u32>,
    rank_count: usize,
    lanes: u32,
    /// Of its slowest rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    step_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_s: Option<f64>,
    straggler: bool,
}

/// The workers.
pub fn workers(snapshot: &Snapshot, query: &Query) -> Page<WorkerRow> {
    let by_number: HashMap<u32, &Rank> = snapshot.ranks.iter().map(|r| (r.rank, r)).collect();
    let rows: Vec<WorkerRow> = snapshot.workers.iter().map(|w| worker_row(w, &by_number)).collect();
    let fits = |w: &WorkerRow| {
        (query.state.is_empty() || query.state == w.state.name())
            && (w.name.contains(&query.q) || w.address.contains(&query.q))
    };
    let name = |a: &WorkerRow, b: &WorkerRow| a.name.cmp(&b.name);
    let order = |a: &WorkerRow, b: &WorkerRow| match query.sort.as_str() {
        "name" => name(a, b),
        "state" => a.state.cmp(&b.state).then_with(|| name(a, b)),
        "silent" => a.silent_s.total_cmp(&b.silent_s).then_with(|| name(a, b)),
        "ranks" => a.rank_count.cmp(&b.rank_count).then_with(|| name(a, b)),
        "lanes" => a.lanes.cmp(&b.lanes).then_with(|| name(a, b)),
        "step" => maybe(a.step_s, b.step_s).then_with(|| name(a, b)),
        "data" => maybe(a.data_s, b.data_s).then_with(|| name(a, b)),
        "address" => a.address.cmp(&b.address).then_with(|| name(a, b)),
        _ => urgency(a).cmp(&urgency(b)).then_with(|| name(a, b)),
    };
    page(rows, query, fits, order)
}

/// Workers that do not train, then those that the others wait for, then the rest.
fn urgency(worker: &WorkerRow) -> (bool, bool, WorkerState) {
    (worker.state == WorkerState::Training, !worker.straggler, worker.state)
}

fn worker_row(worker: &Worker, ranks: &HashMap<u32, &Rank>) -> WorkerRow {
    let own = || worker.ranks.iter().filter_map(|r| ranks.get(r));
    let most = |of: fn(&Rank) -> f64| own().map(|r| of(r)).max_by(f64::total_cmp);
    WorkerRow {
        name: worker.name.clone(),
        state: worker.state,
        silent_s: worker.silent_s,
        address: worker.address.clone(),
        ranks: worker.ranks.iter().take(LISTED_RANKS).copied().collect(),
        rank_count: worker.ranks.len(),
        lanes: own().map(|r| r.lanes).sum(),
        step_s: most(|r| r.step_s),
        data_s: most(|r| r.data_s),
        straggler: own().any(|r| r.straggler),
    }
}

/// The ranks of the live generation.
pub fn ranks(snapshot: &Snapshot, query: &Query) -> Page<Rank> {
    let fits = |r: &&Rank| {
        let number = || query.q.parse() == Ok(r.rank);
        (query.state != "straggler" || r.straggler)
            && (r.worker.contains(&query.q) || r.device.contains(&query.q) || number())
    };
    let number = |a: &&Rank, b: &&Rank| a.rank.cmp(&b.rank);
    let order = |a: &&Rank, b: &&Rank| {
        let by = |of: fn(&Rank) -> f64| of(a).total_cmp(&of(b)).then_with(|| number(a, b));
        match query.sort.as_str() {
            "rank" => number(a, b),
            "worker" => a.worker.cmp(&b.worker).then_with(|| number(a, b)),
            "device" => a.device.cmp(&b.device).then_with(|| number(a, b)),
            "lanes" => a.lanes.cmp(&b.lanes).then_with(|| number(a, b)),
            "step" => by(|r| r.step_s),
            "data" => by(|r| r.data_s),
            "forward" => by(|r| r.forward_s),
            "backward" => by(|r| r.backward_s),
            "collective" => by(|r| r.collective_s),
            "last_step" => a.last_step.cmp(&b.last_step).then_with(|| number(a, b)),
            _ => b.straggler.cmp(&a.straggler).then_with(|| number(a, b)),
        }
    };
    let found = page(snapshot.ranks.iter().collect(), query, fits, order);
    let Page { found, all, page, pages, rows } = found;
    Page { found, all, page, pages, rows: rows.into_iter().cloned().collect() }
}

/// What is not known comes first.
fn maybe(a: Option<f64>, b: Option<f64>) -> Ordering {
    let or = |v: Option<f64>| v.unwrap_or(f64::NEG_INFINITY);
    or(a).total_cmp(&or(b))
}

fn page<T>(
    mut rows: Vec<T>,
    query: &Query,
    fits: impl Fn(&T) -> bool,
    order: impl Fn(&T, &T) -> Ordering,
) -> Page<T> {
    let all = rows.len();
    rows.retain(fits);
    rows.sort_by(|a, b| if query.desc { order(b, a) } else { order(a, b) });
    let found = rows.len();
    let size = if query.rows == 0 { 50 } else { query.rows.min(MOST_ROWS) };
    let pages = found.div_ceil(size).max(1);
    let page = query.page.min(pages - 1);
    let rows = rows.into_iter().skip(page * size).take(size).collect();
    Page { found, all, page, pages, rows }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// So many workers of two ranks each; one in ten is lost, rank 7 is slow.
    pub(crate) fn cluster(workers: u32) -> Snapshot {
        let lost = |w: u32| w % 10 == 9;
        let worker = |w: u32| Worker {
            name: format!("w{w:04}"),
            state: if lost(w) { WorkerState::Lost } else { WorkerState::Training },
            silent_s: f64::from(w % 7),
            address: format!("10.0.0.{}", w % 250),
            ranks: vec![2 * w, 2 * w + 1],
        };
        let rank = |r: u32| Rank {
            rank: r,
            worker: format!("w{:04}", r / 2),
            device: format!("cuda:{}", r % 2),
            first_lane: r,
            lanes: 1,
            step_s: if r == 7 { 2.0 } else { 0.5 + f64::from(r % 5) / 100.0 },
            data_s: 0.01,
            forward_s: 0.2,
            backward_s: 0.25,
            collective_s: 0.05,
            straggler: r == 7,
            last_step: 41,
        };
        Snapshot {
            workers: (0..workers).map(worker).collect(),
            ranks: (0..2 * workers).map(rank).collect(),
            ..Snapshot::default()
        }
    }

    fn names(page: &Page<WorkerRow>) -> Vec<&str> {
        page.rows.iter().map(|w| w.name.as_str()).collect()
    }

    #[test]
    fn what_needs_attention_comes_first() {
        let page = workers(&cluster(30), &Query { rows: 5, ..Query::default() });
        assert_eq!((page.found, page.all, page.pages), (30, 30, 6));
        assert_eq!(names(&page), ["w0009", "w0019", "w0029", "w0003", "w0000"]);
        assert_eq!((page.rows[3].step_s, page.rows[3].lanes), (Some(2.0), 2));
        let first = &ranks(&cluster(30), &Query::default()).rows[0];
        assert_eq!((first.rank, first.straggler), (7, true));
    }

    #[test]
    fn rows_are_sorted_filtered_and_paged() {
        let query = |sort: &str, desc| Query { sort: sort.to_owned(), desc, rows: 2, ..Query::default() };
        assert_eq!(names(&workers(&cluster(30), &query("name", true))), ["w0029", "w0028"]);
        assert_eq!(names(&workers(&cluster(30), &query("step", true)))[0], "w0003");
        let filtered = Query { state: "lost".to_owned(), page: 99, rows: 2, ..Query::default() };
        let page = workers(&cluster(30), &filtered);
        assert_eq!((page.found, page.page, page.pages, names(&page)), (3, 1, 2, vec!["w0029"]));
        let found = workers(&cluster(30), &Query { q: "w001".to_owned(), ..Query::default() });
        assert_eq!(found.found, 10);
        let stragglers = Query { state: "straggler".to_owned(), ..Query::default() };
        assert_eq!(ranks(&cluster(30), &stragglers).rows.len(), 1);
        let one = ranks(&cluster(30), &Query { q: "42".to_owned(), ..Query::default() });
        assert_eq!(one.rows.iter().map(|r| r.rank).collect::<Vec<_>>(), [42]);
    }

    #[test]
    fn every_column_sorts_and_a_page_is_never_large() {
        for sort in ["name", "state", "silent", "ranks", "lanes", "step", "data", "address", "nonsense"] {
            let query = Query { sort: sort.to_owned(), rows: 100_000, ..Query::default() };
            assert_eq!(workers(&cluster(500), &query).rows.len(), MOST_ROWS);
        }
        for sort in [
            "rank",
            "worker",
            "device",
            "lanes",
            "step",
            "data",
            "forward",
            "backward",
            "collective",
            "last_step",
        ] {
            let query = |desc| Query { sort: sort.to_owned(), desc, rows: 200, ..Query::default() };
            let mut up = ranks(&cluster(50), &query(false)).rows;
            up.reverse();
            assert_eq!(up, ranks(&cluster(50), &query(true)).rows, "{sort}");
        }
        let empty = workers(&Snapshot::default(), &Query::default());
        assert_eq!((empty.pages, empty.rows.len()), (1, 0));
    }
}
