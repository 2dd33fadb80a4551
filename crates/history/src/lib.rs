//! How a run came to where it is: its numbers by step, and what happened to it.
//!
//! Role: the rows of `metrics.jsonl` ([`Row`]) and the lines of `chronicle.jsonl` ([`Entry`]) as types, files of them
//! followed as they grow ([`Lines`]), a [`Course`] that keeps a run of any length in bounded memory, and all of it as the
//! message that `GetHistory` answers. Invariants: a
//! course is a function of its rows alone, not of when they came; it never holds more than a fixed number of points.
//! Left out: who writes those files (the coordinator), and how any of it is shown.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod chronicle;
mod course;
mod lines;
mod row;
mod wire;

pub use chronicle::{CHRONICLE, Chronicle, Entry, Happening};
pub use course::{Course, POINTS, Point, RECENT};
pub use lines::{Lines, LinesError, News};
pub use row::{METRICS, Row};
pub use wire::response;
