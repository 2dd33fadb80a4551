//! A web page about one cluster, and its metrics for Prometheus.
//!
//! Role: show people what a job does and, with a token, let them pause, resume, drain and cancel it. It is given plain
//! data ([`Snapshot`], [`mcl_history::Happening`]) and knows nothing of where they come from. Invariants: whoever looks on costs a
//! bounded amount of memory and, together, about one snapshot a second; the page never holds up what it shows; it
//! fetches nothing from elsewhere; without a token it changes nothing. Left out: encryption and names of people (the
//! page listens on loopback unless its caller says otherwise), alerts (Prometheus has them).
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_precision_loss)
)]

mod access;
mod assets;
mod charts;
mod live;
mod metrics;
mod model;
mod page;
mod patch;
mod process;
mod rate;
mod routes;
#[cfg(test)]
mod samples;
mod serve;
mod sheet;
mod state;
mod tables;
mod verdict;

pub use access::{Token, TokenError};
pub use model::{
    ActError, Action, Cluster, Ending, Past, Phase, Queued, Rank, Snapshot, Worker, WorkerState,
};
pub use page::{Config, Page};
pub use serve::serve;
