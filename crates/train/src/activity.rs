//! What the training thread does at this moment, for whoever watches it.

use mcl_types::Step;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One kind of work or waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Building the model, opening the dataset, warming up.
    Preparing,
    /// Waiting for a generation.
    Idle,
    /// Meeting the other ranks.
    Rendezvous,
    /// Comparing states and passing one on.
    StateTransfer,
    /// Reading a checkpoint.
    LoadingCheckpoint,
    /// Waiting for the loader.
    Data,
    /// Montages, targets and forward pass.
    Forward,
    /// Backward pass, and what ranks agree on after it.
    Backward,
    /// Optimiser and momentum encoder.
    Update,
    /// Cutting a slice, waiting for an upload, comparing digests.
    Checkpoint,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preparing => "preparing",
            Self::Idle => "idle",
            Self::Rendezvous => "rendezvous",
            Self::StateTransfer => "state transfer",
            Self::LoadingCheckpoint => "loading checkpoint",
            Self::Data => "data",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Update => "update",
            Self::Checkpoint => "checkpoint",
        })
    }
}

/// A cell that the training thread writes and a control thread reads; cheap to clone.
#[derive(Debug, Clone)]
pub struct Activity(Arc<Mutex<Now>>);

/// What is being done, in which step, since when.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The work.
    pub doing: Doing,
    /// The step in flight, where there is one.
    pub step: Option<Step>,
    since: Instant,
}

impl Now {
    /// For how long.
    pub fn lasted(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Default for Activity {
    fn default() -> Self {
        let now = Now { doing: Doing::Idle, step: None, since: Instant::now() };
        Self(Arc::new(Mutex::new(now)))
    }
}

impl Activity {
    /// From now on, `doing`.
    pub fn set(&self, doing: Doing, step: Option<Step>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Now { doing, step, since: Instant::now() };
    }

    /// What is being done.
    pub fn now(&self) -> Now {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
