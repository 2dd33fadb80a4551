//! The gRPC contract of `proto/mcl/v1`: generated code, and conversions to and from [`mcl_types`].
//!
//! Invariant: whatever comes off the wire becomes a validated type here or is an error; nothing else in
//! the project reads raw numbers from a message without it.
#![forbid(unsafe_code)]

use mcl_types::{Digest, FencingToken, Generation, RunId, Term, Tier};

/// Version of the protocol; a worker and a coordinator that differ refuse each other by name.
pub const PROTOCOL: u32 = 3;

/// Largest gRPC message either side accepts: a heartbeat after an outage is the largest one.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Bytes of a checkpoint slice in one message; some of them are in flight at once, in memory that an uploading rank keeps.
pub const CHUNK_BYTES: usize = 128 << 10;

/// What the services are generated from (`google.protobuf.FileDescriptorSet`): every call there is.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/files.bin"));

/// Generated code, package mcl.v1.
#[expect(missing_docs, clippy::all, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("mcl.v1");
}

/// A message that does not say what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field is absent.
    #[error("message lacks `{field}`: the peer speaks another protocol version (ours is {PROTOCOL})")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// A field holds something that does not parse.
    #[error("`{field}`: {reason}")]
    Malformed {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<FencingToken> for v1::FencingToken {
    fn from(token: FencingToken) -> Self {
        Self { term: token.term.get(), generation: token.generation.get() }
    }
}

impl From<v1::FencingToken> for FencingToken {
    fn from(token: v1::FencingToken) -> Self {
        Self { term: Term::new(token.term), generation: Generation::new(token.generation) }
    }
}

/// A required token.
///
/// # Errors
/// When the field is absent.
pub fn token(token: Option<v1::FencingToken>) -> Result<FencingToken, WireError> {
    token.map(Into::into).ok_or(WireError::Missing { field: "token" })
}

/// Where a checkpoint is kept.
pub const fn tier(in_memory: bool) -> Tier {
    if in_memory { Tier::Memory } else { Tier::Durable }
}

/// A run's name, checked.
///
/// # Errors
/// When it could not be a folder name.
pub fn run_id(text: &str) -> Result<RunId, WireError> {
    RunId::new(text).map_err(|e| WireError::Malformed { field: "run_id", reason: e.to_string() })
}

/// A digest, checked.
///
/// # Errors
/// When it is not 64 hex digits.
pub fn digest(field: &'static str, text: &str) -> Result<Digest, WireError> {
    text.parse()
        .map_err(|e: mcl_types::ParseDigestError| WireError::Malformed { field, reason: e.to_string() })
}
