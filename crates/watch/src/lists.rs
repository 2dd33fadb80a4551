//! The rows of each pane: which there are, in which order, and what stands in them.

use crate::text::{age, clean, millis, ranges};
use crate::view::{Pane, Snapshot};
use mcl_proto::v1;
use ratatui::layout::{Alignment, Constraint};

/// How much a row needs a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    Bad,
    Warn,
    Plain,
    Faint,
}

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    pub(crate) mark: Mark,
    pub(crate) cells: Vec<String>,
}

/// A column: title, width, side.
pub(crate) type Column = (&'static str, Constraint, Alignment);

const L: Alignment = Alignment::Left;
const R: Alignment = Alignment::Right;

/// The columns of a pane.
pub(crate) const fn columns(pane: Pane) -> &'static [Column] {
    use Constraint::{Fill, Length, Min};
    match pane {
        Pane::Ranks => &[
            ("rank", Length(5), R),
            ("worker/device", Min(16), L),
            ("step ms", Length(8), R),
            ("data", Length(7), R),
            ("forward", Length(7), R),
            ("backward", Length(8), R),
            ("coll.", Length(7), R),
            ("", Length(14), L),
        ],
        Pane::Workers => &[
            ("worker", Min(18), L),
            ("state", Length(10), L),
            ("silent", Length(8), R),
            ("ranks", Min(10), L),
            ("address", Min(12), L),
        ],
        Pane::Generations => &[
            ("gen.", Length(5), R),
            ("ago", Length(6), R),
            ("workers", Length(7), R),
            ("ranks", Length(6), R),
            ("from step", Length(9), R),
            ("steps", Length(7), R),
            ("why", Fill(1), L),
        ],
        Pane::Checkpoints => &[("after steps", Length(12), R), ("ago", Length(8), R), ("", Fill(1), L)],
        Pane::Queue => &[("place", Length(6), R), ("run", Min(20), L), ("", Fill(1), L)],
    }
}

/// The rows of a pane that hold what is filtered for, those that need a look first.
pub(crate) fn items(seen: &Snapshot, pane: Pane, filter: &str, now: f64) -> Vec<Item> {
    let mut items = match pane {
        Pane::Ranks => ranks(&seen.status),
        Pane::Workers => workers(&seen.status),
        Pane::Generations => generations(&seen.history, now),
        Pane::Checkpoints => checkpoints(&seen.history, now),
        Pane::Queue => queue(&seen.status, now),
    };
    if !filter.is_empty() {
        let wanted = filter.to_lowercase();
        items.retain(|item| item.cells.iter().any(|cell| cell.to_lowercase().contains(&wanted)));
    }
    items
}

/// How many rows each pane has, for its tab.
pub(crate) fn count(seen: &Snapshot, pane: Pane) -> usize {
    match pane {
        Pane::Ranks => seen.status.ranks.len(),
        Pane::Workers => seen.status.workers.len(),
        Pane::Generations => seen.history.generations.len(),
        Pane::Checkpoints => seen.history.checkpoints.len(),
        Pane::Queue => seen.status.queue.len(),
    }
}

fn item<const N: usize>(mark: Mark, cells: [String; N]) -> Item {
    Item { mark, cells: cells.map(|c| clean(&c)).to_vec() }
}

pub(crate) fn is_lost(worker: &v1::WorkerStatus) -> bool {
    worker.state == "lost"
}

fn ranks(status: &v1::GetStatusResponse) -> Vec<Item> {
    let none = String::new;
    let lost = status.workers.iter().filter(|w| is_lost(w)).map(|w| {
        let silent = format!("lost {}", age(w.silent_seconds));
        item(Mark::Bad, [ranges(&w.ranks), w.worker.clone(), none(), none(), none(), none(), none(), silent])
    });
    let rank = |r: &v1::RankStatus| {
        let (mark, note) = if r.straggler { (Mark::Warn, "straggler") } else { (Mark::Plain, "") };
        let cells = [
            r.rank.to_string(),
            format!("{}/{}", r.worker, r.device),
            millis(r.step_seconds),
            millis(r.data_wait_seconds),
            millis(r.forward_seconds),
            millis(r.backward_seconds),
            millis(r.collective_seconds),
            note.to_owned(),
        ];
        item(mark, cells)
    };
    let mut items: Vec<Item> = lost.chain(status.ranks.iter().map(rank)).collect();
    items.sort_by_key(|i| i.mark);
    items
}

fn workers(status: &v1::GetStatusResponse) -> Vec<Item> {
    let slow: std::collections::BTreeSet<&str> =
        status.ranks.iter().filter(|r| r.straggler).map(|r| r.worker.as_str()).collect();
    let worker = |w: &v1::WorkerStatus| {
        let mark = match w.state.as_str() {
            "lost" => Mark::Bad,
            "leaving" => Mark::Warn,
            _ if slow.contains(w.worker.as_str()) => Mark::Warn,
            _ => Mark::Plain,
        };
        let silent = format!("{:.1} s", w.silent_seconds);
        item(mark, [w.worker.clone(), w.state.clone(), silent, ranges(&w.ranks), w.advertise.clone()])
    };
    let mut items: Vec<Item> = status.workers.iter().map(worker).collect();
    items.sort_by_key(|i| i.mark);
    items
}

/// Newest first, with the reason why each came.
fn generations(history: &v1::GetHistoryResponse, now: f64) -> Vec<Item> {
    let told = |n: Option<String>| n.unwrap_or_default();
    let row = |(at, g): (usize, &v1::PastGeneration)| {
        let mark = if at == 0 { Mark::Plain } else { Mark::Faint };
        let cells = [
            g.generation.to_string(),
            age(now - g.since),
            g.workers.to_string(),
            told(g.ranks.map(|n| n.to_string())),
            told(g.first_step.map(|n| n.to_string())),
            g.steps.to_string(),
            told(g.why.clone()),
        ];
        item(mark, cells)
    };
    let forgotten = (history.forgotten_generations > 0).then(|| {
        let why = format!("{} earlier ones are not told of", history.forgotten_generations);
        let none = String::new;
        item(Mark::Faint, [none(), none(), none(), none(), none(), none(), why])
    });
    history.generations.iter().enumerate().map(row).chain(forgotten).collect()
}

/// What its features were worth, where they were judged: shares that were told right.
fn evaluated(history: &v1::GetHistoryResponse, step: u64) -> Option<String> {
    let found = history.evaluations.iter().find(|e| e.step == step)?;
    let told = |a: &v1::ProbeAccuracy| format!("{}, {} {:.0} %", a.probe, a.on, 100.0 * a.trained);
    Some(found.accuracies.iter().map(told).collect::<Vec<_>>().join("; "))
}

/// Newest first.
fn checkpoints(history: &v1::GetHistoryResponse, now: f64) -> Vec<Item> {
    let row = |(at, c): (usize, &v1::VisibleCheckpoint)| {
        let (mark, newest) =
            if at == 0 { (Mark::Plain, Some("newest".to_owned())) } else { (Mark::Faint, None) };
        let note = newest.into_iter().chain(evaluated(history, c.step)).collect::<Vec<_>>().join("; ");
        let ago = c.time.map_or_else(|| "before".to_owned(), |time| age(now - time));
        item(mark, [c.step.to_string(), ago, note])
    };
    history.checkpoints.iter().enumerate().map(row).collect()
}

fn queue(status: &v1::GetStatusResponse, now: f64) -> Vec<Item> {
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
    let ago = |then: u64| age(now - then as f64);
    let waiting = status.queue.iter().enumerate().map(|(at, job)| {
        item(Mark::Plain, [(at + 1).to_string(), job.run_id.clone(), format!("waits for {}", ago(job.since))])
    });
    let past = status.past_runs.iter().rev().map(|run| {
        let outcome = format!("{} ago: {}", ago(run.until), run.outcome);
        item(Mark::Faint, ["-".to_owned(), run.run_id.clone(), outcome])
    });
    waiting.chain(past).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene;

    fn column(items: &[Item], at: usize) -> Vec<&str> {
        items.iter().map(|i| i.cells[at].as_str()).collect()
    }

    #[test]
    fn lost_workers_come_first_then_stragglers() {
        let mut seen = scene::training(5);
        seen.status.workers[3].state = "lost".to_owned();
        seen.status.workers[3].silent_seconds = 75.0;
        seen.status.ranks.remove(3);
        let rows = items(&seen, Pane::Ranks, "", 0.0);
        assert_eq!(column(&rows, 7), ["lost 1 m", "straggler", "", "", ""]);
        assert_eq!(column(&rows, 0), ["3", "4", "0", "1", "2"]);
        let rows = items(&seen, Pane::Workers, "", 0.0);
        assert_eq!(column(&rows, 0)[..2], ["worker-003", "worker-004"]);
        assert_eq!((rows[0].mark, rows[1].mark, rows[2].mark), (Mark::Bad, Mark::Warn, Mark::Plain));
    }

    #[test]
    fn generations_say_why_they_came() {
        let mut seen = scene::training(3);
        let rows = items(&seen, Pane::Generations, "", 1000.0);
        assert_eq!(column(&rows, 0), ["2", "1"]);
        let why = "generation 1 ended: worker worker-001 was silent for 10.0 s";
        assert_eq!(rows[0].cells[1..], ["2 m", "3", "3", "620", "580", why]);
        // Of one that is known by its rows alone little is told, and of some that there were.
        seen.history.generations[1] = v1::PastGeneration { generation: 1, workers: 2, ..Default::default() };
        seen.history.forgotten_generations = 7;
        let rows = items(&seen, Pane::Generations, "", 10.0);
        assert_eq!(rows[1].cells, ["1", "10 s", "2", "", "", "0", ""]);
        assert!(rows[2].cells[6].starts_with("7 earlier"), "{rows:?}");
    }

    #[test]
    fn checkpoints_are_newest_first() {
        let seen = scene::training(3);
        let rows = items(&seen, Pane::Checkpoints, "", 1000.0);
        assert_eq!((column(&rows, 0), column(&rows, 1)), (vec!["1000", "500"], vec!["40 s", "before"]));
        assert_eq!(column(&rows, 2), vec!["newest", "knn, objects 54 %; linear, scenes 41 %"]);
    }

    #[test]
    fn what_peers_say_does_not_move_the_cursor() {
        let mut seen = scene::training(1);
        seen.status.workers[0].worker = "w\x1b[2J".to_owned();
        assert_eq!(items(&seen, Pane::Workers, "", 0.0)[0].cells[0], "w [2J");
    }
}
