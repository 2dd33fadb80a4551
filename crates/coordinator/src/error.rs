//! How a coordinator ends: well, or not.

use mcl_coordinator_core::Outcome;
use std::io;
use std::path::PathBuf;

/// How its job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobOutcome {
    /// All steps are committed and the last checkpoint is visible.
    Done {
        /// Steps of the run.
        steps: u64,
    },
    /// Drained: the job can be continued from this step.
    Interrupted {
        /// The newest visible checkpoint; 0 for none.
        step: u64,
    },
    /// Somebody stopped it for good.
    Cancelled {
        /// The newest visible checkpoint; 0 for none.
        step: u64,
    },
    /// The job cannot go on.
    Failed {
        /// Why, with the rank, worker and step where there is one.
        reason: String,
    },
    /// The coordinator was told to leave; the job goes on with the next one in this directory.
    Stopped,
}

impl From<&Outcome> for JobOutcome {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done { steps } => Self::Done { steps: *steps },
            Outcome::Interrupted { step } => Self::Interrupted { step: *step },
            Outcome::Cancelled { step } => Self::Cancelled { step: *step },
            Outcome::Failed(failure) => Self::Failed { reason: failure.to_string() },
        }
    }
}

/// Why a coordinator does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// Two coordinators, one directory.
    #[error("another run is using {}: wait for it, stop it, or give this one another run directory", dir.display())]
    InUse {
        /// The run directory.
        dir: PathBuf,
    },
    /// A folder of runs was given as a run directory.
    #[error("{} is a folder of runs: start the coordinator with --runs, or give it another run directory", dir.display())]
    FolderOfRuns {
        /// The folder.
        dir: PathBuf,
    },
    /// A run directory was given as a folder of runs.
    #[error("{} is the directory of one run: start the coordinator with --run-dir, or give it another folder", dir.display())]
    OneRun {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory has a past that is in no journal of this coordinator.
    #[error("{} holds steps of a run that this coordinator knows nothing of: submit under another name, or continue that run with a coordinator of its own (--run-dir)", dir.display())]
    Foreign {
        /// The run directory.
        dir: PathBuf,
    },
    /// Something else lies where a run's directory would be.
    #[error("{} is not a directory: submit under another name", path.display())]
    Taken {
        /// What lies there.
        path: PathBuf,
    },
    /// The journal does not open or does not take a record.
    #[error("journal {}: {source}; free space on that disk or repair it, then start again: what was written before stands", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<redb::Error>,
    },
    /// A record of the journal does not parse.
    #[error("journal {}: the record `{key}` is not readable: {reason}; it was written by another version: continue with that one, or use another run directory", path.display())]
    JournalRecord {
        /// The file.
        path: PathBuf,
        /// The record.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the run directory cannot be read or written.
    #[error("cannot {action} {}: {source}; free space on that disk or fix its permissions, then start again: what was written before stands", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A file of the run directory holds something that the coordinator did not write.
    #[error("{} line {line}: {reason}; the file was changed by hand or by a broken disk: restore it, or use another run directory", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// The job of the run directory cannot be read any more.
    #[error("{}: {reason}", path.display())]
    Job {
        /// Its job file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The journal names a generation that could not have been.
    #[error("journal: {0}; it does not belong to the job of this run directory")]
    Layout(#[from] mcl_types::LaneLayoutError),
    /// The checkpoint service knows a later coordinator of this run.
    #[error(
        "{reason}; the checkpoint store belongs to another run directory of run `{run_id}`: continue there, or submit the job under another run id"
    )]
    Superseded {
        /// The run.
        run_id: String,
        /// What the service said.
        reason: String,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {reason}; expected getrandom(2) to work here")]
    Random {
        /// What it said.
        reason: String,
    },
    /// The listener broke.
    #[error("the coordinator stopped listening: {0}; check the network, then start it again")]
    Transport(#[from] tonic::transport::Error),
    /// The loop broke down.
    #[error("the coordinator's loop ended by itself: {0}; this is a defect, please report it with the log")]
    Loop(String),
}

impl CoordinatorError {
    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
