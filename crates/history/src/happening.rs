//! What happens to a run, in plain data: times are seconds since 1970.

use crate::evaluation::Evaluation;
use crate::row::Row;
use serde::Serialize;
use std::path::PathBuf;

/// What does not change while a run is run.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Run {
    /// Its name.
    pub name: String,
    /// K.
    pub lanes: u32,
    /// N.
    pub images_per_lane: u32,
    /// What the levels of the loss are called, in their order.
    pub levels: Vec<String>,
    /// The loss of guessing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// The lowest loss that there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
}

/// Why ranks are asked to stop at a step boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draining {
    /// The job ends.
    Stop,
    /// The job is held.
    Hold,
    /// The last worker leaves.
    Departure,
    /// To go on with other workers.
    Regroup,
}

/// Something that happened, at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Happening {
    /// When.
    pub time: f64,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// Another run is the one that is run from now on.
    Began {
        /// Which.
        run: Box<Run>,
        /// Where its rows are; those of evaluations are beside them.
        metrics: PathBuf,
        /// Steps that stand already: rows of these are in the file.
        committed: u64,
        /// Its newest visible checkpoint.
        checkpoint: Option<u64>,
    },
    /// A step was committed.
    Committed(Box<Row>),
    /// Steps from here on no longer stand.
    RolledBack {
        /// Steps that stand.
        to: u64,
    },
    /// A generation was formed.
    Formed {
        /// Its number.
        generation: u64,
        /// Its machines.
        workers: u32,
        /// Its ranks.
        ranks: u32,
    },
    /// A generation of an earlier coordinator goes on.
    Continued {
        /// Its number.
        generation: u64,
        /// Its machines.
        workers: u32,
        /// Its ranks.
        ranks: u32,
        /// The new coordinator's term.
        term: u64,
    },
    /// A generation is over.
    Ended {
        /// Its number.
        generation: u64,
        /// None where it was stopped on purpose.
        cause: Option<String>,
    },
    /// Ranks are asked to stop.
    Draining(Draining),
    /// A checkpoint became visible.
    Checkpoint {
        /// State after so many steps.
        step: u64,
    },
    /// Checkpoints that were there already.
    CheckpointsFound(Vec<u64>),
    /// A checkpoint's features were judged.
    Evaluated {
        /// Whose.
        run: String,
        /// What was found.
        evaluation: Box<Evaluation>,
    },
}

/// Something that happened, or that some of it was missed.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// It happened.
    Happening(Happening),
    /// More happened than could be kept.
    Missed,
}
