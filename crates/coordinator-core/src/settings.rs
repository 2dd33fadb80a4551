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
    /// How long ranks may take from Assign to Ready.
    pub forming_timeout: Duration,
    /// Generations in a row that may end without a new step before the job fails.
    pub fruitless_limit: u32,
    /// How long a spare device must have been there before the job drains to take it in; none: never.
    pub grow_after: Option<Duration>,
    /// Whether worker daemons are asked to go when the job is over.
    pub leave_when_done: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lost_after: Duration::from_secs(10),
            expected_workers: None,
            expected_grace: Duration::from_secs(10),
            // Opening a large dataset and warming a device up takes minutes; a hung rank takes for ever.
            forming_timeout: Duration::from_secs(600),
            fruitless_limit: 5,
            grow_after: Some(Duration::from_secs(5)),
            leave_when_done: false,
        }
    }
}
