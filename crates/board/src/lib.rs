//! A run's TensorBoard files (`events/` in the run directory), kept as `metrics.jsonl` has it.
//!
//! Role: one thread that hears of committed steps after they stand ([`Keeper`]) and writes scalars and sheets of montages.
//! It is given plain data ([`Told`]) and knows no coordinator. Invariants: whoever tells never waits; nothing that fails
//! here stops a run; what is in the files are committed steps, each once as TensorBoard counts (`board.rs`). Left out: the
//! format (`mcl-tensorboard`), drawing sheets (the caller's [`DrawSheet`]).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod board;
mod keeper;
mod sheets;

pub use keeper::{Keeper, Told};
pub use sheets::{DrawSheet, Sheet};
