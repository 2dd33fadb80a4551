//! A run on a terminal: what is shown of it, and what keys do.
//!
//! Role: [`View`] is all that is known and chosen; [`step`] is a pure function of it and of an [`Event`]; [`draw`] puts it on
//! any terminal, a test's too; [`Tape`] says the same in lines, where there is no terminal. [`show`] is the one place that
//! touches a real one. Invariants: whatever a coordinator or a file says, nothing here fails or panics; work goes with
//! what is seen, not with the size of the cluster, but for one pass over it a frame. Left out: where what is seen comes
//! from (the caller's business).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod curves;
mod draw;
mod lists;
#[cfg(test)]
mod scene;
mod screen;
mod tape;
mod text;
mod view;

pub use draw::{DATA_LIMIT, draw};
pub use screen::show;
pub use tape::{Line, Tape};
pub use text::{age, clean, duration};
pub use view::{Event, Key, Link, Order, Pane, Snapshot, View, Wish, step};
