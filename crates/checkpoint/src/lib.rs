//! The checkpoint service over [`mcl_checkpoint_core`], and its client.
//!
//! Role: the rim. [`serve`] answers `mcl.v1.CheckpointService` and `grpc.health.v1` on a listener that the
//! caller bound; [`CheckpointClient`] is what ranks, the coordinator and the command line use.
//!
//! Invariants:
//! - the highest fencing token of each run is on the disk before anything is done in its name, and lower
//!   ones are refused, also after a restart;
//! - what was begun under a token is finished, or refused, before a higher one is answered;
//! - an upload takes bounded memory, whatever its size; one that breaks off leaves nothing visible.
//!
//! Left out: encryption, roles and limits (`mcl-transport`).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(test)]
mod broken_off_tests;
mod client;
mod client_error;
mod fence;
mod lock;
mod memory;
mod serve;
mod service;
mod tiers;

pub use client::{CheckpointClient, CheckpointList, CheckpointSummary, DamagedCheckpoint, Draft, Patience};
pub use client_error::ClientError;
pub use lock::LockError;
pub use mcl_checkpoint_core::Layout;
pub use serve::{MEMORY_BYTES, ServeConfig, ServeError, serve};
