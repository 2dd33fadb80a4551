//! TensorBoard's event files: numbers and pictures by step, written and read.
//!
//! Role: the format and nothing else. A file is a row of records (length, its checksum, bytes, their checksum), each of
//! them one protobuf message. Invariants: a record is handed to the disk whole or the file is given up; what is read is
//! verified before it is decoded, and nothing is allocated for a length that the file cannot hold. Left out: what is
//! written when, and what a step is (the coordinator's business).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod message;
mod read;
mod record;
mod write;

pub use message::{Event, Image, SessionLog, Status, Summary, Value, ValueKind, What};
pub use read::{ReadError, Records, event_files};
pub use write::EventFile;
