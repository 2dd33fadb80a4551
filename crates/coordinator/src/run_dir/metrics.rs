//! `metrics.jsonl`: one object a committed step, each step once.
//!
//! Rows of steps that no longer stand move to `metrics.rolled_back.jsonl`. A row is written before its
//! ledger line and made durable before it, so that after a crash there may be rows too many, never too few.

use super::append_file::{AppendFile, Line, cut, read_lines, replace};
use crate::CoordinatorError;
use mcl_coordinator_core::StepMetrics;
use mcl_failpoint::{Failpoint, pass};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The metrics, open for appending.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    file: AppendFile,
}

/// A row, as written.
#[derive(Debug, Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    metrics: &'a StepMetrics,
    /// Seconds since 1970 at which the step was committed.
    time: f64,
}

/// A row, as far as its place matters.
#[derive(Debug, Deserialize)]
struct Place {
    step: u64,
}

impl Metrics {
    /// Opens them, with the rows of the first `committed` steps.
    pub(super) fn open(run_dir: &Path, committed: u64) -> Result<Self, CoordinatorError> {
        let path = run_dir.join("metrics.jsonl");
        keep(&path, committed)?;
        Ok(Self { file: AppendFile::open(&path)?, path })
    }

    /// Appends a step's row.
    pub(super) fn append(&mut self, metrics: &StepMetrics, time: f64) -> Result<(), CoordinatorError> {
        let line = serde_json::to_vec(&Row { metrics, time })
            .map_err(|e| CoordinatorError::file("write", &self.path)(e.into()))?;
        self.file.append(line)
    }

    /// Takes the rows of steps from `to` on away.
    pub(super) fn roll_back(&mut self, to: u64) -> Result<(), CoordinatorError> {
        self.file.sync()?;
        keep(&self.path, to)?;
        self.file = AppendFile::open(&self.path)?;
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<(), CoordinatorError> {
        self.file.sync()
    }
}

/// Keeps the rows of the first `steps` steps; the others move to the file of rolled back rows, and torn ones
/// go.
fn keep(path: &Path, steps: u64) -> Result<(), CoordinatorError> {
    let mut rows = 0;
    let mut end = None;
    let torn = read_lines(path, |line, _, offset| {
        let place = match serde_json::from_slice::<Place>(line) {
            Ok(place) => place,
            Err(e) => return Ok(Line::Unreadable(e.to_string())),
        };
        if place.step >= steps && end.is_none() {
            end = Some(offset);
        }
        rows += u64::from(end.is_none());
        Ok(Line::Read)
    })?;
    if rows < steps {
        let file = path.display();
        tracing::warn!(%file, rows, steps, "rows are missing: the file was cut or removed by someone else");
    }
    let whole = std::fs::metadata(path).map_or(0, |m| m.len());
    let readable = torn.unwrap_or(whole);
    let kept = end.unwrap_or(readable);
    if kept == whole {
        return Ok(());
    }
    if kept < readable {
        move_rows(path, kept, readable)?;
        pass(Failpoint::RollBackRowsMoved);
    }
    replace(path, |new| {
        let mut old = File::open(path)?.take(kept);
        std::io::copy(&mut old, new).map(drop)
    })
}

fn move_rows(path: &Path, from: u64, to: u64) -> Result<(), CoordinatorError> {
    let attempt = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let mut rows = Vec::new();
        file.take(to - from).read_to_end(&mut rows)?;
        Ok(rows)
    };
    let rows = attempt().map_err(CoordinatorError::file("read", path))?;
    let undone = path.with_file_name("metrics.rolled_back.jsonl");
    let mut rest = not_moved_yet(&undone, &rows)?.to_vec();
    if rest.pop().is_none() {
        return Ok(());
    }
    let mut undone = AppendFile::open(&undone)?;
    undone.append(rest)?;
    undone.sync()
}

/// The rows that a move which a crash broke off did not bring over; what it tore is cut.
fn not_moved_yet<'a>(undone: &Path, rows: &'a [u8]) -> Result<&'a [u8], CoordinatorError> {
    let torn = read_lines(undone, |line, _, _| {
        let parsed = serde_json::from_slice::<Place>(line);
        Ok(parsed.map_or_else(|e| Line::Unreadable(e.to_string()), |_| Line::Read))
    })?;
    if let Some(at) = torn {
        cut(undone, at)?;
    }
    let there = match std::fs::read(undone) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(rows),
        there => there.map_err(CoordinatorError::file("read", undone))?,
    };
    let ends = rows.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let mut moved =
        ends.filter_map(|end| rows.split_at_checked(end)).filter(|(moved, _)| there.ends_with(moved));
    Ok(moved.next().map_or(rows, |(_, rest)| rest))
}
