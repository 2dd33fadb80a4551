//! What takes the place of a picture that cannot be decoded.

use crate::spec::PlanSpec;
use mcl_types::{Epoch, Lane, Purpose, SampleIndex, Slot};

/// How many substitutes are tried for one slot before the rank gives up: with half of all pictures broken
/// the chance to run out is 2^-64.
pub const SUBSTITUTE_ATTEMPTS: u32 = 64;

/// The `attempt`-th (from 0) substitute for one slot: a pure function, so that every worker that meets the
/// same broken picture in the same place puts the same one there. It may be the broken one again, or
/// another broken one; then the next attempt is due.
pub fn substitute(
    spec: &PlanSpec,
    epoch: Epoch,
    step_in_epoch: u64,
    lane: Lane,
    slot: Slot,
    attempt: u32,
) -> SampleIndex {
    let numbers =
        [epoch.get(), step_in_epoch, u64::from(lane.get()), u64::from(slot.get()), u64::from(attempt)];
    SampleIndex::new(spec.seed.stream(Purpose::Substitute, &numbers).below(spec.dataset_len))
}
