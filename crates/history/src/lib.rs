//! How a run came to where it is: the rows of `metrics.jsonl` ([`Row`]), read as the file grows, is cut or replaced; those of
//! `evaluations.jsonl` ([`Evaluation`]); and what is remembered of a run ([`Record`]), kept current ([`Chronicle`]).
//!
//! Role: one type, one reader and one memory for all who look on (the page, a terminal, TensorBoard's files). Invariants: a
//! line is handed out once it has its end; no line, however long, fills the memory, nor does a run, however long. Left out:
//! who writes the file (the coordinator), and how any of it is shown.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_precision_loss)
)]

mod chronicle;
mod evaluation;
mod happening;
mod history;
mod lines;
mod record;
mod row;

pub use chronicle::Chronicle;
pub use evaluation::{Accuracy, EVALUATIONS, Evaluation, evaluations};
pub use happening::{Draining, Happening, Run, Told, What};
pub use history::{Bucket, History, SERIES, Span};
pub use lines::{Lines, LinesError, News};
pub use record::{Checkpoint, Generation, Record};
pub use row::{METRICS, Row, rows_below};
