//! Buckets as the columns that charts are drawn of. Pure.
//!
//! Numbers are single precision: a chart has no more pixels, and the newest row is sent exactly elsewhere.

use mcl_history::Record;
use mcl_history::{Bucket, SERIES, Span};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Points of an answer at most, and where none are asked for.
const POINTS: (usize, usize) = (2000, 600);

/// What a chart wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// Points at most.
    points: usize,
    /// The newest so many steps only; 0: the whole run.
    newest: usize,
}

/// The history in columns.
pub fn history(record: &Record, query: Query) -> Value {
    let points = if query.points == 0 { POINTS.1 } else { query.points.min(POINTS.0) };
    let buckets = match query.newest {
        0 => record.history.whole(points),
        newest => record.history.newest(newest, points),
    };
    let column = |of: fn(&Bucket) -> u64| buckets.iter().map(of).collect::<Vec<u64>>();
    let joined = buckets.iter().any(|b| b.rows > 1);
    let count = buckets.iter().map(|b| b.spans.len()).max().unwrap_or(SERIES.len());
    let series: Map<String, Value> = (0..count)
        .map(|at| {
            let spans: Vec<Option<&Span>> = buckets.iter().map(|b| b.spans.get(at)).collect();
            (name(at), columns(&spans, joined))
        })
        .collect();
    json!({
        "revision": record.revision,
        "first": column(|b| b.first),
        "last": column(|b| b.last),
        "time": buckets.iter().map(|b| b.time).collect::<Vec<f64>>(),
        "generation": column(|b| b.generation),
        "skipped": column(|b| b.skipped),
        "series": series,
    })
}

/// One bucket as a point that charts grow by.
pub fn point(bucket: &Bucket, revision: u64) -> Value {
    let series: Map<String, Value> = bucket
        .spans
        .iter()
        .enumerate()
        .map(|(at, span)| {
            let spans = [Some(span)];
            (name(at), columns(&spans, true))
        })
        .collect();
    json!({
        "revision": revision,
        "first": [bucket.first],
        "last": [bucket.last],
        "time": [bucket.time],
        "generation": [bucket.generation],
        "skipped": [bucket.skipped],
        "series": series,
    })
}

/// `level_0` is the first level.
fn name(at: usize) -> String {
    SERIES.get(at).map_or_else(|| format!("level_{}", at - SERIES.len()), |name| (*name).to_owned())
}

fn columns(spans: &[Option<&Span>], joined: bool) -> Value {
    let column = |of: fn(&Span) -> Option<f64>| -> Vec<Option<f32>> {
        spans.iter().map(|span| span.and_then(of).map(single).filter(|v| v.is_finite())).collect()
    };
    if !joined {
        return json!({ "mean": column(Span::mean) });
    }
    json!({
        "mean": column(Span::mean),
        "min": column(|s| Some(s.min)),
        "max": column(|s| Some(s.max)),
    })
}

#[expect(clippy::cast_possible_truncation, reason = "meant: see the module")]
const fn single(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::row;
    use mcl_history::{Happening, What};

    fn record(steps: u64) -> Record {
        let mut record = Record::default();
        (0..steps)
            .for_each(|s| record.take(Happening { time: 0.0, what: What::Committed(Box::new(row(s))) }));
        record
    }

    #[test]
    fn columns_are_of_one_length_and_bounded() {
        for (steps, query, expected) in [
            (0, Query::default(), 0),
            (3, Query::default(), 3),
            (5_000, Query::default(), 600),
            (5_000, Query { points: usize::MAX, newest: 0 }, 2_000),
            (5_000, Query { points: 100, newest: 1_000 }, 100),
        ] {
            let history = history(&record(steps), query);
            let length = history["first"].as_array().unwrap().len();
            assert!(length <= expected && 2 * length >= expected, "{steps} {query:?}: {length}");
            for (name, series) in history["series"].as_object().unwrap() {
                for column in series.as_object().unwrap().values() {
                    assert_eq!(column.as_array().unwrap().len(), length, "{name}");
                }
            }
            let levels = history["series"].get("level_1").is_some();
            assert_eq!(levels, steps > 0);
        }
    }

    #[test]
    fn single_steps_have_no_spread_and_gaps_are_null() {
        let whole = history(&record(8), Query::default());
        assert!(whole["series"]["loss"].get("min").is_none());
        assert_eq!(whole["series"]["loss"]["mean"][1], 5.0);
        assert_eq!(whole["series"]["grad_norm"]["mean"][3], Value::Null);
        let thin = history(&record(8), Query { points: 2, newest: 0 });
        assert_eq!(thin["series"]["loss"]["max"][0], 10.0);
        assert_eq!((&thin["first"], &thin["last"]), (&json!([0, 4]), &json!([3, 7])));
    }

    #[test]
    fn a_point_continues_the_columns() {
        let mut bucket = Bucket::of(&row(3));
        bucket.join(&Bucket::of(&row(4)));
        let point = point(&bucket, 7);
        assert_eq!(
            (&point["revision"], &point["last"][0], &point["skipped"][0]),
            (&json!(7), &json!(4), &json!(1))
        );
        assert_eq!(point["series"]["grad_norm"]["mean"], json!([4.0]));
        assert_eq!(point["series"]["level_0"], json!({"mean": [3.5], "min": [3.0], "max": [4.0]}));
    }
}
