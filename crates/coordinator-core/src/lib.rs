//! The coordinator's decisions, pure: `step(&mut State, Event, now) -> Vec<Effect>`.
//!
//! Role: membership, generations, commits, checkpoints, failures. Invariants (see [`invariants`]): each
//! is a named function, checked after every event in debug builds and in the property tests. A
//! generation's record comes out as an effect before any message that names it, and whoever performs the
//! effects performs them in order. Left out: clocks, sockets, files, retries; time comes in as an
//! argument, and everything that takes time goes out as an effect and comes back as an event.
//!
//! A generation that loses a rank ends. Its survivors keep their state, and the next generation takes the most
//! advanced one (`settling`); only where nobody holds what is committed it goes back to a checkpoint.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod checkpointing;
mod commit;
mod effect;
mod event;
mod gathering;
mod generation;
pub mod invariants;
mod job;
mod membership;
mod pace;
mod ranks;
mod reason;
mod regroup;
mod settings;
mod settling;
mod slots;
mod state;
mod status;
mod submission;

pub use commit::StepMetrics;
pub use effect::{Effect, Persisted, RankPost, ToWorker, Warning};
pub use event::{
    Event, FailureKind, Hello, Holding, LaneReport, ProcessId, RankEvent, RankProcess, RankSaid, SessionId,
    StepReport,
};
pub use generation::{DrainFor, GenerationRecord, Member, Place};
pub use job::{JobSpec, JobSpecError, PastRun, SubmitError};
pub use reason::{Asking, EndCause, Failure, Outcome, Phase, Reason};
pub use settings::Settings;
pub use settling::{Origin, Started};
pub use state::{Recovered, RecoveredJob, State};
pub use status::{RankStatus, Status, WorkerState, WorkerStatus};

use std::time::Duration;

/// Applies one event at time `now` (since any fixed moment; it must not go back) and says what to do,
/// in this order.
pub fn step(state: &mut State, event: Event, now: Duration) -> Vec<Effect> {
    let effects = state::Turn::new(state, now).take(event);
    debug_assert_eq!(invariants::check(state), Ok(()), "after an event at {now:?}");
    effects
}
