//! The worker daemon: one session with the coordinator, one supervised process per device.
//!
//! Role: opens the stream, says hello, heartbeats, keeps one rank process ready per device for as long as it has
//! a standing order, has them join generations, relays commands to them and their events back. Invariants:
//! decisions are pure (`state`), one loop performs them (`rim`); processes of one job run at a time, one a device,
//! and outlive generations; nothing runs after [`run`] has returned; no rank and no coordinator can make the loop
//! wait. A lost coordinator stops nothing: ranks train on, their events wait.
//! Left out: tensors, the job's meaning, deciding what a failure means for the job.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod config;
mod error;
mod event;
mod fence;
pub mod frame;
mod link;
mod outbox;
mod process;
mod ranks;
mod rim;
mod standing;
mod state;

pub use config::{Farewell, WorkerConfig, WorkerOutcome};
pub use error::WorkerError;
pub use frame::{FrameError, MAX_FRAME_BYTES, read_frame, write_frame};
pub use rim::run;
