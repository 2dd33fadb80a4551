//! A row of `metrics.jsonl`: a committed step.

use crate::lines::{Lines, LinesError};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name in a run directory.
pub const METRICS: &str = "metrics.jsonl";

/// A committed step, as the coordinator wrote it down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The step, from 0.
    pub step: u64,
    /// Its epoch.
    pub epoch: u64,
    /// The generation that took it.
    pub generation: u64,
    /// None where it was not finite.
    pub loss: Option<f64>,
    /// Empty where one was not finite.
    pub loss_per_level: Vec<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Momentum of the target encoder.
    pub momentum: f64,
    /// Before clipping; none where it was not finite.
    pub grad_norm: Option<f64>,
    /// Pictures over the slowest rank's time.
    pub images_per_s: f64,
    /// Worker machines.
    pub workers: u32,
    /// Longest wait for pictures, seconds.
    pub data_wait_s: f64,
    /// The slowest rank's time, seconds.
    pub step_s: f64,
    /// The update was skipped.
    pub skipped: bool,
    /// Seconds since 1970 at which it was committed.
    pub time: f64,
}

/// Rows that are handed out at once.
const BATCH: usize = 4096;

/// Hands out the rows of the first `below` steps of a file in parts, in its order; how many lines were no rows. A file that
/// is not there has none.
///
/// # Errors
/// When it cannot be read.
pub fn rows_below(path: &Path, below: u64, mut take: impl FnMut(Vec<Row>)) -> Result<u64, LinesError> {
    let (mut lines, mut strange) = (Lines::<Row>::new(path), 0);
    loop {
        let mut news = lines.look(BATCH)?;
        strange += news.unreadable;
        let beyond = news.lines.iter().position(|row| row.step >= below);
        news.lines.truncate(beyond.unwrap_or(news.lines.len()));
        take(news.lines);
        if beyond.is_some() || !news.more {
            return Ok(strange);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64) -> Row {
        Row {
            step,
            epoch: 0,
            generation: 1,
            loss: Some(1.0),
            loss_per_level: vec![1.0],
            lr: 0.1,
            momentum: 0.9,
            grad_norm: None,
            images_per_s: 10.0,
            workers: 1,
            data_wait_s: 0.0,
            step_s: 0.1,
            skipped: false,
            time: 7.0,
        }
    }

    #[test]
    fn rows_that_stand_are_handed_out_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(METRICS);
        let read = |below| {
            let (mut steps, mut parts) = (Vec::new(), 0);
            let strange = rows_below(&path, below, |rows| {
                parts += 1;
                steps.extend(rows.iter().map(|r| r.step));
            });
            (steps, parts, strange.unwrap())
        };
        assert_eq!(read(9), (Vec::new(), 1, 0));
        let all = 2 * BATCH as u64 + 10;
        let mut text: String = (0..all).map(|s| serde_json::to_string(&row(s)).unwrap() + "\n").collect();
        text.insert_str(0, "nonsense\n");
        std::fs::write(&path, text).unwrap();
        assert_eq!(read(all), ((0..all).collect(), 3, 1));
        assert_eq!(read(5), ((0..5).collect(), 1, 1));
        assert_eq!(read(0), (Vec::new(), 1, 1));
    }
}
