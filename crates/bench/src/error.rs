//! Why nothing could be measured. What happens to agents on the way is counted, not raised.

use std::io;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// An option out of range.
    #[error("--{option} is {found}, expected {least} to {most}")]
    Option {
        /// Its name on the command line.
        option: &'static str,
        /// What it is.
        found: f64,
        /// The least that is sensible.
        least: f64,
        /// The most.
        most: f64,
    },
    /// A coordinator of another machine.
    #[error(
        "`{url}` is not a coordinator on this machine: expected http://127.0.0.1:PORT; a load test takes a machine of its own"
    )]
    Elsewhere {
        /// What was given.
        url: String,
    },
    /// Too few files may be open.
    #[error(
        "{needed} files must be open for so many agents, this process may open {hard}: raise the hard limit (`ulimit -Hn`, as root), let agents share connections, or take fewer"
    )]
    FileLimit {
        /// What is needed.
        needed: u64,
        /// The hard limit.
        hard: u64,
    },
    /// A file or folder cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A daemon did not come up.
    #[error("{daemon} did not come up: {reason}")]
    Daemon {
        /// Which.
        daemon: &'static str,
        /// In its own words, where it had any.
        reason: String,
    },
    /// The coordinator cannot be reached, or refuses.
    #[error("{what} at {url}: {reason}")]
    Coordinator {
        /// What was asked of it.
        what: &'static str,
        /// Where it is.
        url: String,
        /// Its answer, or what is wrong with the way there.
        reason: String,
    },
    /// The certificate to show.
    #[error(transparent)]
    Identity(#[from] mcl_transport::IdentityError),
    /// The job of the coordinator makes no sense here.
    #[error("the coordinator's job: {0}")]
    Job(String),
    /// The load test's own pictures.
    #[error("making pictures to report: {0}")]
    Pictures(String),
    /// The generator's thread.
    #[error("the generator's thread: {0}")]
    Thread(String),
}

impl BenchError {
    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
