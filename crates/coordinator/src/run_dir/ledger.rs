//! `ledger/epoch-NNNNNN.jsonl`: one line a committed step, in the file of its epoch.

use super::append_file::{AppendFile, Line, cut, read_lines};
use crate::CoordinatorError;
use mcl_coordinator_core::Started;
use mcl_plan::Schedule;
use mcl_plan::ledger::Record;
use mcl_types::{Epoch, Step};
use std::path::{Path, PathBuf};

/// Its folder in a run directory.
pub(super) const FOLDER: &str = "ledger";

/// The ledger, open for appending.
#[derive(Debug)]
pub(super) struct Ledger {
    folder: PathBuf,
    /// The epoch whose file is open.
    current: Option<(Epoch, AppendFile)>,
}

impl Ledger {
    /// In a run directory.
    pub(super) fn open(run_dir: &Path) -> Result<Self, CoordinatorError> {
        let folder = run_dir.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(CoordinatorError::file("create", &folder))?;
        Ok(Self { folder, current: None })
    }

    /// Finds how many steps stand, from what was written of the last generation; cuts a torn line; writes the roll
    /// back of that generation where a crash came between the journal and the ledger.
    pub(super) fn recover(&mut self, last: &Started, schedule: Schedule) -> Result<u64, CoordinatorError> {
        let mut committed = last.first;
        let mut told = last.rolled_back.is_none();
        let from = schedule.locate(Step::new(last.first)).epoch;
        for (epoch, path) in files(&self.folder)? {
            if epoch < from {
                continue;
            }
            let torn = read_lines(&path, |line, number, _| {
                let record = match serde_json::from_slice::<Record>(line) {
                    Ok(record) => record,
                    Err(e) => return Ok(Line::Unreadable(e.to_string())),
                };
                match record {
                    Record::Committed(c) if c.generation == last.record.generation => {
                        if c.step.get() != committed {
                            let reason = format!("{} was found where step {committed} was expected", c.step);
                            return Err(CoordinatorError::Damaged {
                                path: path.clone(),
                                line: number,
                                reason,
                            });
                        }
                        committed += 1;
                    }
                    Record::RolledBack(r) if r.generation == last.record.generation => told = true,
                    _ => {}
                }
                Ok(Line::Read)
            })?;
            if let Some(at) = torn {
                tracing::warn!(file = %path.display(), at, "cut a line that a crash tore");
                cut(&path, at)?;
            }
        }
        if let (false, Some(rolled_back)) = (told, &last.rolled_back) {
            self.append(&Record::RolledBack(rolled_back.clone()), schedule)?;
            self.sync()?;
        }
        Ok(committed)
    }

    /// Appends a record to the file of its epoch. The file before is durable by then.
    pub(super) fn append(&mut self, record: &Record, schedule: Schedule) -> Result<(), CoordinatorError> {
        let epoch = match record {
            Record::Committed(c) => c.epoch,
            Record::RolledBack(r) => schedule.locate(r.to).epoch,
            Record::Resumed(r) => schedule.locate(r.step).epoch,
            Record::Interrupted(i) => schedule.locate(i.step).epoch,
        };
        let path = self.folder.join(format!("epoch-{:06}.jsonl", epoch.get()));
        let line =
            serde_json::to_vec(record).map_err(|e| CoordinatorError::file("write", &path)(e.into()))?;
        if self.current.as_ref().is_none_or(|(open, _)| *open != epoch) {
            self.sync()?;
            self.current = Some((epoch, AppendFile::open(&path)?));
        }
        match &mut self.current {
            Some((_, file)) => file.append(line),
            None => Ok(()),
        }
    }

    /// Makes everything appended so far durable.
    pub(super) fn sync(&mut self) -> Result<(), CoordinatorError> {
        match &mut self.current {
            Some((_, file)) => file.sync(),
            None => Ok(()),
        }
    }
}

/// The ledger's files, by epoch.
pub(crate) fn files(folder: &Path) -> Result<Vec<(Epoch, PathBuf)>, CoordinatorError> {
    let entries = std::fs::read_dir(folder).map_err(CoordinatorError::file("list", folder))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(CoordinatorError::file("list", folder))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let number = name.strip_prefix("epoch-").and_then(|n| n.strip_suffix(".jsonl"));
        if let Some(epoch) = number.and_then(|n| n.parse().ok()) {
            files.push((Epoch::new(epoch), path));
        }
    }
    files.sort();
    Ok(files)
}
