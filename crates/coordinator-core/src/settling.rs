//! Once all ranks of a generation are ready: where the state comes from, and with which step it begins.
//!
//! Invariants: committed steps are rolled back only where nobody is left who holds them; a state that is ahead
//! of the ledger is taken only once its steps are in the ledger; a state that a roll back left behind is never
//! taken (see [`Line`]).

use crate::commit::commit_recounted;
use crate::effect::{Effect, Persisted, ToWorker};
use crate::event::{Holding, StepReport};
use crate::generation::{DrainFor, GenerationRecord, Live, Member};
use crate::reason::{EndCause, Failure, Outcome};
use crate::state::{Job, Lookup, Stage, Turn};
use mcl_plan::ledger::{Record, Resumed, RolledBack};
use mcl_types::{Generation, Rank, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Started generations that are remembered: a process that slept through more of them is a newcomer.
const REMEMBERED: usize = 64;

/// Where a generation's state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// This rank holds it and passes it to those that do not.
    Rank(Rank),
    /// A visible checkpoint.
    Checkpoint(u64),
    /// The job's seed.
    Seed,
}

/// A generation that was told to train.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// What it is.
    pub record: GenerationRecord,
    /// Where its ranks meet.
    pub store_address: String,
    /// Its first step.
    pub first: u64,
    /// Where its state comes from.
    pub origin: Origin,
    /// The newest durable checkpoint that it may fall back on.
    #[serde(default)]
    pub last_checkpoint: Option<u64>,
    /// What it rolled back, so that the ledger can be completed after a crash between the two writes.
    pub rolled_back: Option<RolledBack>,
}

/// The generations that led to the present state, since the last roll back, with their first steps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Line(BTreeMap<Generation, u64>);

impl Line {
    pub(crate) fn extend(&mut self, generation: Generation, first: u64) {
        self.0.insert(generation, first);
        while self.0.len() > REMEMBERED {
            self.0.pop_first();
        }
    }

    /// What came after this generation, or all of it, is left behind.
    pub(crate) fn cut_after(&mut self, generation: Option<Generation>) {
        match generation {
            Some(last) => drop(self.0.split_off(&last.next())),
            None => self.0.clear(),
        }
    }

    /// The last one.
    pub(crate) fn newest(&self) -> Option<Generation> {
        self.0.last_key_value().map(|(generation, _)| *generation)
    }

    /// Whether the state after `applied` steps, the last of them taken in `generation`, led to the present.
    pub(crate) fn holds(&self, generation: Generation, applied: u64) -> bool {
        let Some(first) = self.0.get(&generation) else { return false };
        let next = self.0.range(generation.next()..).next();
        applied >= *first && next.is_none_or(|(_, first)| applied <= *first)
    }
}

/// What the generation waits for before it is started.
enum Settled {
    /// It can begin.
    At(u64, Origin),
    /// This rank is to tell what these steps used.
    Recount(Rank, Range<u64>),
    /// Nobody holds what is committed: which checkpoints are there?
    Ask,
    /// Something is on its way.
    Wait,
    /// The state that the run was to begin with is gone.
    NoInitial,
    /// A checkpoint was durable once, and no good one is there.
    Lost,
}

impl Turn<'_> {
    /// Once every rank is ready: find the state, have it recounted, persist the choice, give the store's address
    /// and the first epochs out.
    pub(crate) fn start_if_ready(&mut self) {
        let Some(job) = self.state.job.as_ref() else { return };
        let Stage::Live(live) = &job.stage else { return };
        if live.started || live.store_address.is_none() || live.holdings().is_none() {
            return;
        }
        match settle(job, live) {
            Settled::Wait => {}
            Settled::At(first, origin) => self.start(first, origin),
            Settled::Recount(rank, steps) => self.recount(rank, steps),
            Settled::NoInitial => self.fail(Failure::NoInitial),
            Settled::Lost => {
                let step = job.last_checkpoint.unwrap_or(0);
                self.fail(Failure::CheckpointsLost { step });
            }
            Settled::Ask => {
                if let Some(job) = self.state.job.as_mut() {
                    job.lookup = Lookup::Asked;
                    self.out.push(Effect::FindCheckpoints { at_most: job.committed });
                }
            }
        }
    }

    fn fail(&mut self, why: Failure) {
        self.close_generation();
        self.over(Outcome::Failed(why));
    }

    fn recount(&mut self, rank: Rank, steps: Range<u64>) {
        let Some(live) = self.state.live_mut() else { return };
        live.recount = Some((rank, steps.clone()));
        self.send_recount();
    }

    /// Sends the pending request, where there is one: also to a worker that may not have heard it.
    pub(crate) fn send_recount(&mut self) {
        let Some(live) = self.state.live() else { return };
        let Some((rank, steps)) = live.recount.clone() else { return };
        let Some(worker) = live.place(rank).map(|p| p.worker.clone()) else { return };
        let generation = live.generation;
        self.send(&worker, ToWorker::Recount { generation, rank, steps });
    }

    /// The steps between the ledger and the chosen state, as its holder recorded them.
    pub(crate) fn recounted(&mut self, rank: Rank, steps: Vec<(Generation, StepReport)>) {
        let Some(job) = self.state.job.as_mut() else { return };
        let Stage::Live(live) = &mut job.stage else { return };
        let Some((asked, expected)) = live.recount.take() else { return };
        if asked != rank {
            live.recount = Some((asked, expected));
            return;
        }
        if let Err(what) = judge_recount(job, &expected, &steps) {
            let Some(worker) = self.worker_of_rank(rank) else { return };
            self.end_generation(EndCause::OutOfLine { rank, worker, what });
            return;
        }
        for (generation, report) in steps {
            commit_recounted(job, generation, report, &mut self.out);
        }
    }

    fn start(&mut self, first: u64, origin: Origin) {
        let Some(job) = self.state.job.as_mut() else { return };
        let Stage::Live(live) = &mut job.stage else { return };
        let Some(store_address) = live.store_address.clone() else { return };
        let (generation, ranks) = (live.generation, live.layout.world());
        let cause = job.ended.as_ref().and_then(|e| e.cause.as_ref());
        let rolled_back = (job.committed > first).then(|| RolledBack {
            from: Step::new(job.committed),
            to: Step::new(first),
            generation,
            reason: cause
                .map_or_else(|| "nobody holds the state of later steps".to_owned(), ToString::to_string),
        });
        let source = match origin {
            Origin::Rank(rank) => live.holdings().and_then(|h| h.get(rank.get() as usize).copied()),
            _ => None,
        };
        live.started = true;
        live.first = first;
        live.origin = Some(origin);
        live.members.fill(Member::Training);
        if rolled_back.is_some() || origin == Origin::Seed {
            job.line.cut_after(source.map(|s| s.trained_in));
        }
        job.line.extend(generation, first);
        job.committed = first;
        job.fresh = false;
        job.last_checkpoint = match (origin, &job.lookup) {
            (Origin::Checkpoint(_), Lookup::Known(newest)) => newest.durable,
            _ => job.last_checkpoint.filter(|s| *s <= first),
        };
        job.lookup = Lookup::NotAsked;
        let record = GenerationRecord { generation, places: live.places.clone() };
        let started = Started {
            record,
            store_address: store_address.clone(),
            first,
            origin,
            rolled_back: rolled_back.clone(),
            last_checkpoint: job.last_checkpoint,
        };
        self.out.push(Effect::Persist(Persisted::Started(started)));
        if let Some(record) = rolled_back {
            self.out.push(Effect::RollBack { to: first, record: Record::RolledBack(record) });
        }
        let resumed = Resumed { generation, step: Step::new(first), ranks };
        self.out.push(Effect::AppendLedger(Record::Resumed(resumed)));
        self.mark_holders();
        self.broadcast(&ToWorker::Start { generation, store_address, first, origin });
        self.grant_ahead();
        self.drain_again();
    }

    /// A job that was asked to stop while it had no generation stops at the first boundary of this one.
    fn drain_again(&mut self) {
        let Some(job) = self.state.job.as_mut() else { return };
        let why = match (job.drain, job.held) {
            (true, _) => DrainFor::Stop,
            (_, true) => DrainFor::Hold,
            _ => return,
        };
        let Stage::Live(live) = &mut job.stage else { return };
        live.drain = Some(why);
        let generation = live.generation;
        self.broadcast(&ToWorker::Drain { generation });
    }
}

/// The most advanced state that can be taken.
fn settle(job: &Job, live: &Live) -> Settled {
    let Some(holdings) = live.holdings() else { return Settled::Wait };
    let usable = |h: &Holding| h.applied.filter(|a| job.line.holds(h.trained_in, *a));
    let told = |h: &Holding, applied: u64| {
        applied == job.committed
            || (h.recorded_from <= job.committed && Some(h.trained_in) == job.line.newest())
    };
    let holders = || (0..).map(Rank::new).zip(&holdings).filter_map(|(r, h)| Some((usable(h)?, r, h)));
    // Of equals the lowest rank.
    let best = holders()
        .filter(|(applied, _, h)| *applied >= job.committed && told(h, *applied))
        .max_by_key(|(applied, rank, _)| (*applied, std::cmp::Reverse(*rank)));
    if let Some((applied, rank, _)) = best {
        return match () {
            () if applied == job.committed => Settled::At(applied, Origin::Rank(rank)),
            () if live.recount.is_some() => Settled::Wait,
            () => Settled::Recount(rank, job.committed..applied),
        };
    }
    if job.committed == 0 && job.line.newest().is_none() && job.last_checkpoint.is_none() && job.fresh {
        return Settled::At(0, Origin::Seed);
    }
    // While a checkpoint is on its way to become visible, what the store shows is not the last word.
    match job.lookup {
        Lookup::NotAsked if job.committing.is_none() => Settled::Ask,
        Lookup::NotAsked | Lookup::Asked => Settled::Wait,
        Lookup::Known(_) | Lookup::Gone => {
            let found = match job.lookup {
                Lookup::Known(newest) => newest.of_both().filter(|f| *f <= job.committed),
                _ => None,
            };
            let behind = holders()
                .filter(|(applied, _, _)| *applied < job.committed && Some(*applied) > found)
                .max_by_key(|(applied, rank, _)| (*applied, std::cmp::Reverse(*rank)));
            match (behind, found) {
                (Some((applied, rank, _)), _) => Settled::At(applied, Origin::Rank(rank)),
                (None, Some(step)) => Settled::At(step, Origin::Checkpoint(step)),
                // To begin anew with the seed is what nobody asked for: the service may look at another folder.
                (None, None) if job.lookup == Lookup::Gone => Settled::Lost,
                (None, None) if job.spec.initial.is_some() => Settled::NoInitial,
                (None, None) => Settled::At(0, Origin::Seed),
            }
        }
    }
}

fn judge_recount(job: &Job, expected: &Range<u64>, steps: &[(Generation, StepReport)]) -> Result<(), String> {
    let found: Vec<u64> = steps.iter().map(|(_, r)| r.step).collect();
    if !expected.clone().eq(found.iter().copied()) {
        return Err(format!("it recounts steps {found:?}: expected {expected:?}"));
    }
    for (generation, report) in steps {
        if Some(*generation) != job.line.newest() {
            let newest = job.line.newest();
            return Err(format!("it recounts step {} of {generation}: expected {newest:?}", report.step));
        }
        crate::ranks::judge_lanes(&job.spec, report, 0..job.spec.lanes)?;
    }
    Ok(())
}
