//! What must hold after every event; each invariant is a function with its name.
//!
//! That a generation is persisted before anyone hears of it concerns the order of effects, not the state:
//! the property tests check it there.

use crate::generation::Live;
use crate::state::{Job, Stage, State};
use mcl_types::{Lane, Rank};
use std::collections::BTreeSet;

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant} is broken: {what}")]
pub struct Violation {
    /// Its name.
    pub invariant: &'static str,
    /// How.
    pub what: String,
}

/// A named invariant.
type Invariant = (&'static str, fn(&State) -> Result<(), String>);

/// All of them.
const ALL: &[Invariant] = &[
    ("at most one generation is live and it is the newest", newest_generation_is_live),
    ("each lane belongs to exactly one rank", each_lane_has_one_rank),
    ("no rank carries more lanes than allowed", lanes_per_rank_are_bounded),
    ("a step is committed once and in order", commits_are_contiguous),
    ("a visible checkpoint is covered by the ledger", checkpoints_are_covered),
    ("reports wait only for steps that are not committed", pending_is_ahead),
    ("a training generation has leave for its next step", grants_cover_next_step),
    ("the live generation is the end of the line", line_ends_live),
    ("places are in order of worker names", places_are_in_order),
    ("a stream belongs to one worker", sessions_are_unique),
    ("who is said to leave is who asked to", leavers_are_known),
    ("fruitless generations are bounded", budget_is_kept),
];

/// Checks all invariants.
///
/// # Errors
/// The first broken one.
pub fn check(state: &State) -> Result<(), Violation> {
    ALL.iter().try_for_each(|(invariant, holds)| holds(state).map_err(|what| Violation { invariant, what }))
}

fn demand(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

fn live(state: &State) -> Option<(&Job, &Live)> {
    let job = state.job.as_ref()?;
    match &job.stage {
        Stage::Live(live) => Some((job, live)),
        _ => None,
    }
}

fn newest_generation_is_live(state: &State) -> Result<(), String> {
    let Some((job, live)) = live(state) else { return Ok(()) };
    let newest = state.last_generation;
    demand(live.generation == newest, || format!("{} is live, {newest} is the newest", live.generation))?;
    let older = job.ended.as_ref().is_none_or(|e| e.generation < live.generation);
    demand(older, || format!("{} ended and is live", live.generation))
}

fn each_lane_has_one_rank(state: &State) -> Result<(), String> {
    let Some((job, live)) = live(state) else { return Ok(()) };
    let world = live.layout.world() as usize;
    let sizes = (live.places.len(), live.members.len(), live.layout.lanes());
    demand(sizes == (world, world, job.spec.lanes), || format!("{world} ranks, but {sizes:?}"))?;
    let dealt: Vec<u32> = live.ranks().flat_map(|r| live.layout.lanes_of(r)).collect();
    demand(dealt.iter().copied().eq(0..job.spec.lanes), || format!("lanes dealt as {dealt:?}"))?;
    let devices: BTreeSet<_> = live.places.iter().map(|p| (&p.worker, p.process)).collect();
    let place = |lane| live.layout.rank_of(Lane::new(lane)).and_then(|r: Rank| live.place(r));
    let homeless = (0..job.spec.lanes).find(|lane| place(*lane).is_none());
    demand(homeless.is_none() && devices.len() == world, || format!("lane {homeless:?} has no place"))
}

fn lanes_per_rank_are_bounded(state: &State) -> Result<(), String> {
    let Some((job, live)) = live(state) else { return Ok(()) };
    let most = live.layout.most_lanes();
    let limit = job.spec.max_lanes_per_rank;
    demand(limit.is_none_or(|l| most <= l), || format!("{most} lanes on one rank, allowed are {limit:?}"))
}

fn commits_are_contiguous(state: &State) -> Result<(), String> {
    let Some(job) = state.job.as_ref() else { return Ok(()) };
    let (committed, furthest, total) = (job.committed, job.furthest, job.spec.total_steps());
    demand(committed <= furthest && furthest <= total, || {
        format!("{committed} committed, {furthest} at most, {total} in all")
    })?;
    let first = live(state).map_or(0, |(_, l)| l.first);
    demand(first <= committed, || format!("{committed} committed by a generation that began at {first}"))
}

fn checkpoints_are_covered(state: &State) -> Result<(), String> {
    let Some(job) = state.job.as_ref() else { return Ok(()) };
    let newest = job.last_checkpoint.max(job.committing).unwrap_or(0);
    demand(newest <= job.committed, || {
        format!("checkpoint {newest} is or becomes visible, {} steps are committed", job.committed)
    })
}

fn pending_is_ahead(state: &State) -> Result<(), String> {
    let Some((job, live)) = live(state) else { return Ok(()) };
    let world = live.layout.world();
    let stale = live.pending.keys().find(|s| **s < job.committed);
    demand(stale.is_none(), || format!("step {stale:?} waits, {} are committed", job.committed))?;
    let stranger = live.pending.values().flat_map(|r| r.keys()).find(|r| r.get() >= world);
    demand(stranger.is_none(), || format!("a report of {stranger:?} waits among {world} ranks"))?;
    let complete = live.pending.get(&job.committed).is_some_and(|r| r.len() == world as usize);
    demand(!complete, || format!("step {} is complete and not committed", job.committed))
}

fn grants_cover_next_step(state: &State) -> Result<(), String> {
    let Some((job, live)) = live(state) else { return Ok(()) };
    let epoch = job.spec.position(job.committed).epoch.get();
    // A generation that was taken over is granted to again when its workers are back.
    let granted = !live.started || live.granted > epoch || live.granted == 0;
    let ended = job.committed == job.spec.total_steps();
    demand(granted || ended, || format!("epoch {epoch} begins, granted are those below {}", live.granted))
}

fn line_ends_live(state: &State) -> Result<(), String> {
    let Some((job, live)) = live(state) else { return Ok(()) };
    let newest = job.line.newest();
    let fits = if live.started { newest == Some(live.generation) } else { newest < Some(live.generation) };
    demand(fits, || format!("{newest:?} was started last, {} is live", live.generation))
}

fn sessions_are_unique(state: &State) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    let twice =
        state.workers.iter().filter_map(|(n, w)| Some((n, w.session?))).find(|(_, s)| !seen.insert(*s));
    demand(twice.is_none(), || format!("{twice:?} has another worker's stream"))?;
    let index: BTreeSet<_> = state.sessions.keys().copied().collect();
    demand(index == seen, || format!("streams {seen:?} are open, {index:?} are known"))?;
    let wrong = state
        .sessions
        .iter()
        .find(|(s, name)| state.workers.get(*name).is_none_or(|w| w.session != Some(**s)));
    demand(wrong.is_none(), || format!("{wrong:?} is not that worker's stream"))
}

fn places_are_in_order(state: &State) -> Result<(), String> {
    let Some((_, live)) = live(state) else { return Ok(()) };
    demand(live.places.is_sorted_by_key(|p| &p.worker), || format!("places are {:?}", live.places))
}

fn leavers_are_known(state: &State) -> Result<(), String> {
    let asked: BTreeSet<_> =
        state.workers.iter().filter(|(_, w)| w.leaving).map(|(name, _)| name.clone()).collect();
    demand(asked == state.leavers, || format!("{asked:?} asked to leave, {:?} are noted", state.leavers))
}

fn budget_is_kept(state: &State) -> Result<(), String> {
    let Some(job) = state.job.as_ref() else { return Ok(()) };
    let over = matches!(job.stage, Stage::Over(_));
    demand(over || job.fruitless < state.settings.fruitless_limit.max(1), || {
        format!("{} generations without a step, and it goes on", job.fruitless)
    })
}
