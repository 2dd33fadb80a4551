//! How a worker fails.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a worker could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The coordinator's address is none, or does not go with the identity.
    #[error(
        "coordinator address `{url}` cannot be used: {reason}; expected one like https://10.0.0.1:7070 with certificates, http://10.0.0.1:7070 without"
    )]
    Address {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing to run a rank on.
    #[error("worker `{worker}` was given no device: expected at least one, such as `cpu` or `cuda:0`")]
    NoDevice {
        /// The worker.
        worker: String,
    },
    /// Two processes would share a device.
    #[error(
        "worker `{worker}` was given device `{device}` twice: expected each once (further CPU slots are `cpu:1`, \
         `cpu:2`, ...)"
    )]
    SameDevice {
        /// The worker.
        worker: String,
        /// The device.
        device: String,
    },
    /// The rank program is not there.
    #[error(
        "rank program {} cannot be used: {reason}; it is built beside `mcl` (see the project's setup), or \
         give its place",
        path.display()
    )]
    RankProgram {
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answered.
    #[error(
        "no coordinator at {url} for {:.0} s (last attempt: {last}): check that it runs, that the address is \
         the one it prints, and that no firewall is between",
        waited.as_secs_f64()
    )]
    Unreachable {
        /// Its address.
        url: String,
        /// How long it was tried.
        waited: Duration,
        /// How the last attempt ended.
        last: String,
    },
    /// The coordinator does not want this worker.
    #[error("the coordinator at {url} refused this worker: {reason}")]
    Refused {
        /// Its address.
        url: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The highest token cannot be kept or read.
    #[error(
        "cannot keep the highest token in {}: {source}; check the disk and its permissions, or remove the \
         file if no coordinator of the run is left",
        path.display()
    )]
    Fence {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
}
