//! The coordinator's patience.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long it waits for what; none of it changes what is computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Silence after which a worker is lost.
    pub lost_after: Duration,
    /// Workers that are on their way when a job starts.
    pub expected_workers: Option<u32>,
    /// How long the first generation waits for them.
    pub expected_grace: Duration,
    /// How long a process may take to build its model before the others begin without it.
    pub preparing_timeout: Duration,
    /// How long ranks may take from Assign to Ready.
    pub joining_timeout: Duration,
    /// How long the cause of a broken collective is waited for: it comes over another worker's stream.
    pub echo_wait: Duration,
    /// How long, beyond `lost_after`, workers have to find a coordinator that was started again.
    pub return_grace: Duration,
    /// Generations in a row that may end without a new step before the job fails.
    pub fruitless_limit: u32,
    /// How long a process must have been ready before ranks pause to take it in, so that several that become
    /// ready together cost one pause; none: never.
    pub grow_after: Option<Duration>,
    /// The coordinator's version: workers of another one are refused; empty takes any.
    pub build: String,
    /// Whether worker daemons are asked to go when the job is over.
    pub leave_when_done: bool,
    /// Whether jobs of other runs may follow one that is over.
    pub many_runs: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lost_after: Duration::from_secs(10),
            expected_workers: None,
            expected_grace: Duration::from_secs(10),
            // Opening a large dataset and warming a device up takes minutes; a hung rank takes for ever.
            preparing_timeout: Duration::from_secs(600),
            // Its training thread only has to come back from an aborted collective.
            joining_timeout: Duration::from_secs(15),
            echo_wait: Duration::from_millis(200),
            return_grace: Duration::from_secs(3),
            fruitless_limit: 8,
            grow_after: Some(Duration::from_millis(200)),
            build: String::new(),
            leave_when_done: false,
            many_runs: false,
        }
    }
}
