//! `mcl ledger verify`: the ledger of a run directory against the plan.

use crate::CoordinatorError;
use crate::run_dir::ledger_files;
use mcl_plan::ledger::{Record, RolledBacks, Verifier, VerifyReport};
use mcl_plan::{PlanError, PlanSpec};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

/// A ledger that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// There is none, or it cannot be opened.
    #[error(transparent)]
    Folder(#[from] CoordinatorError),
    /// A file breaks off while it is read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A line is no record.
    #[error("{} line {line} is not a ledger record: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Where.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// No plan to compare with.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Reads the ledger of `run_dir` twice and compares it with the plan of `spec`. A last line without an end
/// (a coordinator is writing it, or a crash tore it) does not count.
/// `heard` is told how many bytes were read, and of how many: each file is read twice.
///
/// # Errors
/// When there is no ledger, a line of it is no record, or no plan can be made of `spec`.
pub fn verify_ledger(
    run_dir: &Path,
    spec: &PlanSpec,
    heard: &mut dyn FnMut(u64, u64),
) -> Result<VerifyReport, LedgerError> {
    let folder = run_dir.join("ledger");
    let size = |(_, path): &(_, PathBuf)| std::fs::metadata(path).map_or(0, |m| m.len());
    let once: u64 = ledger_files(&folder)?.iter().map(size).sum();
    let mut rolled_backs = RolledBacks::default();
    each_record(&folder, &mut |read| heard(read, 2 * once), |record| {
        rolled_backs.note(record);
        Ok(())
    })?;
    let mut verifier = Verifier::new(spec, rolled_backs)?;
    let mut again = |read| heard(once + read, 2 * once);
    each_record(&folder, &mut again, |record| Ok(verifier.record(record)?))?;
    Ok(verifier.finish())
}

fn each_record(
    folder: &Path,
    heard: &mut dyn FnMut(u64),
    mut take: impl FnMut(&Record) -> Result<(), LedgerError>,
) -> Result<(), LedgerError> {
    let mut bytes = 0;
    for (_, path) in ledger_files(folder)? {
        let read = |source| LedgerError::Read { path: path.clone(), source };
        let mut reader = BufReader::with_capacity(1 << 20, File::open(&path).map_err(read)?);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            reader.read_until(b'\n', &mut line).map_err(read)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            let record = serde_json::from_slice(&line).map_err(|e| LedgerError::Line {
                path: path.clone(),
                line: number,
                reason: e.to_string(),
            })?;
            take(&record)?;
            bytes += line.len() as u64;
            heard(bytes);
        }
    }
    Ok(())
}
