//! How long it took from a fault to the next step: from when rows of committed steps were seen and when things were done.
//!
//! Invariant: pure. A step that was under way already when the fault struck may be committed a moment after it; it is no
//! recovery. So a fault that ends a generation is over with the first step of a later one, and one that only holds
//! things up is over with the step that ends the longest gap.

use super::ongoing::Record;
use crate::watch::Row;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long after a fault its consequence is looked for at most.
const HORIZON: Duration = Duration::from_secs(60);
/// A gap of that much more than a step is a gap.
const NOTICEABLE: f64 = 0.05;

/// One measurement, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Recovery {
    /// From the fault to the next new step, less an undisturbed step.
    pub(super) from_fault: f64,
    /// From the end of a deliberate outage, where there was one.
    pub(super) from_repair: Option<f64>,
    /// Whether the generation ended.
    pub(super) new_generation: bool,
    /// When the next new step was there.
    pub(super) back: Instant,
}

/// Measures a fault; none where no step came after it, or it did not strike.
pub(super) fn measure(record: &Record, next: Option<Instant>, rows: &[Row], step: f64) -> Option<Recovery> {
    let struck = record.struck?;
    // A fault's deliberate outage belongs to it, however long.
    let end = record.over.unwrap_or(struck).max(struck) + HORIZON;
    let end = next.map_or(end, |n| n.min(end));
    let first = rows.partition_point(|r| r.seen <= struck);
    let after: Vec<&Row> = rows[first..].iter().take_while(|r| r.seen <= end).collect();
    let renewed = after.iter().find(|r| r.generation > record.generation);
    let before = rows[..first].last().map_or(struck, |r| r.seen);
    let back = match renewed {
        Some(row) => row.seen,
        None => end_of_longest_gap(before, &after, step)?,
    };
    let since = |from: Instant| (back.saturating_duration_since(from).as_secs_f64() - step).max(0.0);
    Some(Recovery {
        from_fault: since(struck),
        from_repair: record.repaired.map(since),
        new_generation: renewed.is_some(),
        back,
    })
}

fn end_of_longest_gap(mut last: Instant, rows: &[&Row], step: f64) -> Option<Instant> {
    let mut longest = (0.0, rows.first()?.seen);
    for row in rows {
        let gap = row.seen.duration_since(last).as_secs_f64();
        if gap > longest.0 {
            longest = (gap, row.seen);
        }
        last = row.seen;
    }
    let noticeable = longest.0 > 3.0 * step + NOTICEABLE;
    Some(if noticeable { longest.1 } else { rows.first()?.seen })
}

/// Number, median, 99th percentile and maximum of each kind.
pub(super) fn by_kind<'a>(all: impl Iterator<Item = (&'a str, f64)>) -> Value {
    let mut kinds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (kind, seconds) in all {
        kinds.entry(kind).or_default().push(seconds);
    }
    let entries = kinds.into_iter().map(|(kind, mut values)| {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| round(quantile(&values, share));
        (kind.to_owned(), json!({ "n": values.len(), "p50": at(0.5), "p99": at(0.99), "max": at(1.0) }))
    });
    Value::Object(entries.collect())
}

/// The value below which a share of sorted values lies; the next larger one of the list.
pub(super) fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let index = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(index).copied().unwrap_or(0.0)
}

/// Milliseconds are enough.
pub(super) fn round(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// Median time between committed steps.
pub(super) fn median_step(rows: &[Row]) -> f64 {
    let gaps = rows.windows(2).map(|w| w[1].seen.duration_since(w[0].seen).as_secs_f64());
    let mut gaps: Vec<f64> = gaps.collect();
    gaps.sort_by(f64::total_cmp);
    quantile(&gaps, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(begun: Instant, list: &[(u64, u64)]) -> Vec<Row> {
        let row = |(step, (ms, generation)): (usize, &(u64, u64))| Row {
            step: step as u64,
            generation: *generation,
            workers: 3,
            loss: String::new(),
            seconds: 0.1,
            seen: begun + Duration::from_millis(*ms),
        };
        list.iter().enumerate().map(row).collect()
    }

    fn record(begun: Instant, struck: u64, repaired: Option<u64>) -> Record {
        let at = |ms| begun + Duration::from_millis(ms);
        Record {
            kind: "k",
            detail: String::new(),
            struck: Some(at(struck)),
            repaired: repaired.map(at),
            over: Some(at(repaired.unwrap_or(struck))),
            generation: 1,
            overlapping: false,
        }
    }

    #[test]
    fn a_step_that_was_under_way_is_no_recovery() {
        let begun = Instant::now();
        let rows = rows(begun, &[(100, 1), (200, 1), (300, 1), (1300, 2), (1400, 2), (9000, 3)]);
        let found = measure(&record(begun, 250, None), None, &rows, 0.1).unwrap();
        assert!((found.from_fault - 0.95).abs() < 1e-9 && found.new_generation, "{found:?}");
    }

    #[test]
    fn an_outage_that_changes_no_generation_is_the_longest_gap() {
        let begun = Instant::now();
        let rows = rows(begun, &[(100, 1), (200, 1), (300, 1), (3500, 1), (3600, 1), (3750, 1)]);
        let found = measure(&record(begun, 250, Some(3000)), None, &rows, 0.1).unwrap();
        assert!((found.from_fault - 3.15).abs() < 1e-9 && !found.new_generation, "{found:?}");
        assert!((found.from_repair.unwrap() - 0.4).abs() < 1e-9, "{found:?}");
        let unnoticed = measure(&record(begun, 3550, None), None, &rows, 0.1).unwrap();
        assert!(unnoticed.from_fault.abs() < 1e-9, "{unnoticed:?}");
    }

    #[test]
    fn what_the_next_fault_did_is_not_this_ones_doing() {
        let begun = Instant::now();
        let rows = rows(begun, &[(100, 1), (200, 1), (300, 1), (400, 1), (5000, 2)]);
        let next = Some(begun + Duration::from_millis(450));
        let found = measure(&record(begun, 250, None), next, &rows, 0.1).unwrap();
        assert!(found.from_fault < 0.01 && !found.new_generation, "{found:?}");
    }

    #[test]
    fn quantiles() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|q| quantile(&values, q)), [1.0, 50.0, 99.0, 100.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
