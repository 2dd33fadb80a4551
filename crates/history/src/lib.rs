//! How a run came to where it is: the rows of `metrics.jsonl` ([`Row`]), read as the file grows, is cut or replaced.
//!
//! Role: one type and one reader for all who look on (the page, TensorBoard's files). Invariants: a line is handed out once
//! it has its end; no line, however long, fills the memory. Left out: who writes the file (the coordinator), and how a row
//! is shown.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod lines;
mod row;

pub use lines::{Lines, LinesError, News};
pub use row::{METRICS, Row, rows_below};
