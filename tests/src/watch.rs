//! Committed steps as somebody outside sees them: `metrics.jsonl` read as it grows.
//!
//! Invariant: a row that was seen once is never forgotten here, so that a row that disappears or comes back changed
//! is found. The coordinator may take rows away that were not durable in the ledger yet when it died; it must bring
//! them back the same.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A committed step.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Which, from 0.
    pub step: u64,
    /// The generation that took it.
    pub generation: u64,
    /// Worker machines in that generation.
    pub workers: u64,
    /// The loss as it stands in the file: digits and all.
    pub loss: String,
    /// The slowest rank's time for it, in seconds.
    pub seconds: f64,
    /// When it was seen first.
    pub seen: Instant,
}

impl Row {
    fn parse(line: &str, seen: Instant) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        Some(Self {
            step: value["step"].as_u64()?,
            generation: value["generation"].as_u64()?,
            workers: value["workers"].as_u64()?,
            loss: value["loss"].to_string(),
            seconds: value["step_s"].as_f64().unwrap_or(0.0),
            seen,
        })
    }
}

/// The file and what was seen in it.
#[derive(Debug)]
pub struct MetricsWatch {
    path: PathBuf,
    offset: u64,
    inode: u64,
    rest: Vec<u8>,
    /// Every row in the order in which it was seen, also those that were taken away again.
    history: Vec<Row>,
    /// The rows that stand now.
    standing: BTreeMap<u64, Row>,
    /// Rows that were seen and then taken away.
    withdrawn: BTreeMap<u64, Row>,
    /// How many there were, counted at every time.
    withdrawals: u64,
    /// Steps that stand with another loss than was seen before.
    changed: BTreeMap<u64, (String, String)>,
}

impl MetricsWatch {
    /// Of a run directory, which need not be there yet.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            path: run_dir.join("metrics.jsonl"),
            offset: 0,
            inode: 0,
            rest: Vec::new(),
            history: Vec::new(),
            standing: BTreeMap::new(),
            withdrawn: BTreeMap::new(),
            withdrawals: 0,
            changed: BTreeMap::new(),
        }
    }

    /// Reads what is new; how many rows that is.
    pub fn look(&mut self) -> usize {
        let before = self.history.len();
        let Ok(mut file) = File::open(&self.path) else { return 0 };
        let Ok(meta) = file.metadata() else { return 0 };
        if meta.ino() != self.inode || meta.len() < self.offset {
            self.start_again(meta.ino());
        }
        if meta.len() > self.offset && file.seek(SeekFrom::Start(self.offset)).is_ok() {
            let mut bytes = Vec::new();
            let read = file.read_to_end(&mut bytes).unwrap_or(0);
            self.offset += read as u64;
            self.rest.extend(bytes);
            self.take_lines();
        }
        self.history.len() - before
    }

    /// The file was cut or replaced: what is not in it any more is withdrawn.
    fn start_again(&mut self, inode: u64) {
        (self.offset, self.inode) = (0, inode);
        self.rest.clear();
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let now = Instant::now();
        let there: BTreeMap<u64, Row> =
            text.lines().filter_map(|l| Row::parse(l, now)).map(|r| (r.step, r)).collect();
        let gone: Vec<u64> = self.standing.keys().copied().filter(|s| !there.contains_key(s)).collect();
        for step in gone {
            if let Some(row) = self.standing.remove(&step) {
                self.withdrawals += 1;
                self.withdrawn.insert(step, row);
            }
        }
    }

    fn take_lines(&mut self) {
        let now = Instant::now();
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let Some(row) = Row::parse(&String::from_utf8_lossy(&line), now) else { continue };
            self.take(row);
        }
    }

    fn take(&mut self, row: Row) {
        let before = self.standing.get(&row.step).or_else(|| self.withdrawn.get(&row.step));
        if let Some(before) = before {
            if before.loss != row.loss {
                self.changed.insert(row.step, (before.loss.clone(), row.loss.clone()));
            }
            if before.generation == row.generation && self.standing.contains_key(&row.step) {
                // Read again because the file was replaced.
                return;
            }
        }
        self.withdrawn.remove(&row.step);
        self.standing.insert(row.step, row.clone());
        self.history.push(row);
    }

    /// Every row in the order in which it was seen.
    pub fn history(&self) -> &[Row] {
        &self.history
    }

    /// The newest row seen.
    pub fn last(&self) -> Option<&Row> {
        self.history.last()
    }

    /// Committed steps now.
    pub fn committed(&self) -> u64 {
        self.standing.len() as u64
    }

    /// Steps that were seen and are not there now.
    pub fn missing(&self) -> Vec<u64> {
        self.withdrawn.keys().copied().collect()
    }

    /// How often a row was taken away.
    pub const fn withdrawals(&self) -> u64 {
        self.withdrawals
    }

    /// Steps whose loss is another one than was seen before: old, new.
    pub const fn changed(&self) -> &BTreeMap<u64, (String, String)> {
        &self.changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line(step: u64, generation: u64, loss: f64) -> String {
        format!("{{\"step\":{step},\"generation\":{generation},\"workers\":1,\"loss\":{loss}}}\n")
    }

    #[test]
    fn growth_torn_lines_withdrawals_and_changes_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut watch = MetricsWatch::new(folder.path());
        assert_eq!(watch.look(), 0);
        let mut file = File::create(&path).unwrap();
        let second = line(1, 1, 0.5);
        write!(file, "{}{}", line(0, 1, 1.5), &second[..9]).unwrap();
        assert_eq!((watch.look(), watch.committed()), (1, 1));
        write!(file, "{}{}", &second[9..], line(2, 1, 0.25)).unwrap();
        assert_eq!((watch.look(), watch.committed()), (2, 3));
        // The last row was not durable; it is taken away and comes back the same, in the next generation.
        std::fs::write(&path, line(0, 1, 1.5) + &second).unwrap();
        assert_eq!((watch.look(), watch.committed(), watch.missing()), (0, 2, vec![2]));
        std::fs::write(&path, line(0, 1, 1.5) + &second + &line(2, 2, 0.25)).unwrap();
        assert_eq!((watch.look(), watch.committed(), watch.missing()), (1, 3, vec![]));
        assert!(watch.changed().is_empty() && watch.withdrawals() == 1);
        // A new file with another loss.
        std::fs::write(folder.path().join("new"), line(0, 1, 1.5) + &line(1, 3, 9.5)).unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        watch.look();
        assert_eq!(watch.changed()[&1], ("0.5".to_owned(), "9.5".to_owned()));
        assert_eq!(watch.missing(), vec![2]);
    }
}
