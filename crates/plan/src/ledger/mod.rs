//! The ledger: what each committed step really used, one JSON object a line.
//!
//! Role: the record types, and [`verify`](verify()) which recomputes the plan and compares. Invariant: a rolled back step
//! is told from a standing one by generations alone (see [`RolledBack`]), so the order of lines and
//! files does not matter and a line may be written twice without harm. Left out: files (the coordinator owns them).

mod verify;

pub use verify::{EpochReport, Problem, RolledBacks, Verifier, VerifyReport, verify};

use mcl_types::{Epoch, Generation, Lane, SampleIndex, Step};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// A step that all ranks applied.
    Committed(Committed),
    /// Committed steps that no longer lead to the weights.
    RolledBack(RolledBack),
    /// A generation began or went on; for people, not for the proof.
    Resumed(Resumed),
    /// The job was drained; for people, not for the proof.
    Interrupted(Interrupted),
}

/// A committed step with every sample it used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The step, from 0 over the whole run.
    pub step: Step,
    /// Its epoch.
    pub epoch: Epoch,
    /// The generation that took it.
    pub generation: Generation,
    /// One entry a lane, in lane order.
    pub lanes: Vec<LaneRecord>,
    /// The update was skipped: a loss or a gradient was not finite.
    pub skipped: bool,
}

/// What one lane was fed in one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneRecord {
    /// The lane.
    pub lane: Lane,
    /// One entry a slot, in slot order.
    pub samples: Vec<SampleRecord>,
}

/// One picture that was fed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// Its place in the dataset.
    pub index: SampleIndex,
    /// Its key.
    pub id: String,
    /// Of the encoded bytes that were decoded.
    pub hash: SampleHash,
    /// The planned picture, where that one could not be decoded and this one took its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<SampleIndex>,
    /// Why it was replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// From generation `generation` on, training goes on at step `to`: what older generations committed at or
/// beyond it no longer leads to the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// Steps committed before.
    pub from: Step,
    /// Steps that stand.
    pub to: Step,
    /// The generation that goes on from there.
    pub generation: Generation,
    /// Why.
    pub reason: String,
}

/// A generation started to train.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// The generation.
    pub generation: Generation,
    /// Its first step.
    pub step: Step,
    /// Ranks in it.
    pub ranks: u32,
}

/// The job was drained before its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupted {
    /// The step that a continued job begins with.
    pub step: Step,
}

/// First 16 bytes of the BLAKE3 of a picture's encoded bytes; written as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SampleHash([u8; 16]);

/// Not a sample's hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a sample's hash: expected 16 bytes, written as 32 hex digits")]
pub struct SampleHashError {
    found: String,
}

impl SampleHash {
    /// Wraps what a hasher gave.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
    /// The bare bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl TryFrom<&[u8]> for SampleHash {
    type Error = SampleHashError;
    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self).map_err(|_| SampleHashError { found: hex::encode(bytes) })
    }
}

impl TryFrom<String> for SampleHash {
    type Error = SampleHashError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 16];
        match hex::decode_to_slice(&text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err(SampleHashError { found: text }),
        }
    }
}

impl From<SampleHash> for String {
    fn from(hash: SampleHash) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for SampleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SampleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SampleHash({self})")
    }
}
