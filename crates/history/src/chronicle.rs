//! What happened to a run besides its steps: generations and why each came, checkpoints, pauses, ends.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;

/// The file's name in a run directory: one [`Entry`] a line.
pub const CHRONICLE: &str = "chronicle.jsonl";

/// Entries that are kept in memory, the newest.
const KEPT: usize = 512;

/// Something that happened, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Seconds since 1970.
    pub time: f64,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// A generation was formed.
    Formed {
        /// Its number.
        generation: u64,
        /// Worker machines in it.
        workers: u64,
        /// Its ranks.
        ranks: u64,
        /// Why there is a new one, as a person reads it.
        why: String,
    },
    /// All its ranks were ready and told to train.
    Started {
        /// Its number.
        generation: u64,
        /// Its first step.
        step: u64,
        /// Where its state came from, as a person reads it.
        from: String,
    },
    /// It ended.
    Ended {
        /// Its number.
        generation: u64,
        /// Why; empty where it made room for other workers or the job came to its end.
        why: String,
    },
    /// Steps no longer stand.
    RolledBack {
        /// Steps that stand.
        to: u64,
        /// Steps that stood before.
        from: u64,
    },
    /// A checkpoint became visible.
    Checkpoint {
        /// The state after so many steps.
        step: u64,
    },
    /// Somebody had the job held.
    Held,
    /// Somebody let it go on.
    Resumed,
    /// Somebody had it drained.
    Drained,
    /// A job was handed in, or handed in again.
    Submitted {
        /// Steps that stood already.
        step: u64,
    },
    /// Another coordinator has it from now on.
    TakenOver {
        /// Its reign.
        term: u64,
    },
    /// It is over.
    Over {
        /// done, interrupted, cancelled or failed.
        phase: String,
        /// How, as a person reads it.
        outcome: String,
    },
    /// Written by a later version of this program.
    #[serde(other)]
    Unknown,
}

impl Happening {
    /// The generation that it is about.
    pub const fn generation(&self) -> Option<u64> {
        match self {
            Self::Formed { generation, .. }
            | Self::Started { generation, .. }
            | Self::Ended { generation, .. } => Some(*generation),
            _ => None,
        }
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Formed { generation, workers, ranks, why } => {
                let plural = |n: &u64| if *n == 1 { "" } else { "s" };
                let (w, r) = (plural(workers), plural(ranks));
                write!(f, "g{generation} formed of {ranks} rank{r} on {workers} worker{w}: {why}")
            }
            Self::Started { generation, step, from } => {
                write!(f, "g{generation} trains from step {step} on, its state from {from}")
            }
            Self::Ended { generation, why } if why.is_empty() => write!(f, "g{generation} ended"),
            Self::Ended { generation, why } => write!(f, "g{generation} ended: {why}"),
            Self::RolledBack { to, from } => write!(f, "steps {to} to {} no longer stand", from.saturating_sub(1)),
            Self::Checkpoint { step } => write!(f, "checkpoint after {step} steps is visible"),
            Self::Held => f.write_str("held"),
            Self::Resumed => f.write_str("let go on"),
            Self::Drained => f.write_str("asked to drain"),
            Self::Submitted { step: 0 } => f.write_str("submitted"),
            Self::Submitted { step } => write!(f, "submitted; {step} steps stand already"),
            Self::TakenOver { term } => write!(f, "taken over by a coordinator in term {term}"),
            Self::Over { outcome, .. } => f.write_str(outcome),
            Self::Unknown => f.write_str("something that a later version wrote down"),
        }
    }
}

/// The newest entries of a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chronicle {
    entries: VecDeque<Entry>,
}

impl Chronicle {
    /// Takes the next one in.
    pub fn push(&mut self, entry: Entry) {
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// Oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_flat_objects_and_unknown_ones_are_read() {
        let what = Happening::Formed { generation: 3, workers: 1, ranks: 2, why: "first of the run".to_owned() };
        let entry = Entry { time: 1.5, what };
        let json = serde_json::to_string(&entry).unwrap();
        assert_eq!(
            json,
            r#"{"time":1.5,"event":"formed","generation":3,"workers":1,"ranks":2,"why":"first of the run"}"#
        );
        assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
        assert_eq!(entry.what.to_string(), "g3 formed of 2 ranks on 1 worker: first of the run");
        let later: Entry = serde_json::from_str(r#"{"time":2,"event":"sung","song":"x"}"#).unwrap();
        assert_eq!(later.what, Happening::Unknown);
    }

    #[test]
    fn a_long_chronicle_keeps_its_end() {
        let mut chronicle = Chronicle::default();
        for step in 0..2000 {
            chronicle.push(Entry { time: 0.0, what: Happening::Checkpoint { step } });
        }
        assert_eq!(chronicle.entries().len(), KEPT);
        assert_eq!(chronicle.entries().next_back().unwrap().what, Happening::Checkpoint { step: 1999 });
    }
}
