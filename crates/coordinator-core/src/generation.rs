//! One membership: who carries which lanes, and how far each rank is.

use crate::effect::{Effect, Persisted, RankPost, ToWorker, Warning};
use crate::event::{Holding, ProcessId, StepReport};
use crate::pace::Pace;
use crate::reason::{EndCause, Failure, Outcome};
use crate::settling::{Origin, Started};
use crate::state::{Ended, Gathering, Lookup, Stage, Turn};
use mcl_types::{Generation, LaneLayout, Rank, Tier, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

/// What the journal holds of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// Its number.
    pub generation: Generation,
    /// Where its ranks are, in rank order.
    pub places: Vec<Place>,
}

/// Where a rank runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The worker.
    pub worker: WorkerName,
    /// Its device.
    pub device: String,
    /// The process on it.
    pub process: ProcessId,
}

/// How far a rank is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Member {
    /// It leaves its old group.
    Joining,
    /// It waits for the others, holding this.
    Ready(Holding),
    /// It trains, or meets the others.
    Training,
    /// It was drained after so many steps, its checkpoint is staged.
    Drained(u64),
    /// It stopped after so many steps, to join another generation.
    Paused(u64),
    /// It applied the last step.
    Finished,
}

impl Member {
    /// Where it stands still, if it does.
    pub(crate) const fn parked_at(&self, total: u64) -> Option<u64> {
        match self {
            Self::Drained(step) | Self::Paused(step) => Some(*step),
            Self::Finished => Some(total),
            _ => None,
        }
    }
}

/// Why a live generation is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainFor {
    /// The job ends.
    Stop,
    /// The job is held.
    Hold,
    /// The last worker wants to leave: its state has to go into a checkpoint.
    Departure,
    /// Another membership: processes are ready to be taken in, or a worker wants to leave.
    Regroup,
}

impl DrainFor {
    /// Whether the ranks stage a checkpoint where they stop.
    pub(crate) const fn stages(self) -> bool {
        !matches!(self, Self::Regroup)
    }
}

/// The live generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Live {
    pub(crate) generation: Generation,
    pub(crate) layout: LaneLayout,
    /// Its first step and where its state came from, once it was started.
    pub(crate) first: u64,
    pub(crate) origin: Option<Origin>,
    /// The furthest step ever committed when it was formed.
    pub(crate) furthest_before: u64,
    /// Steps that stood then, durably: what its ranks may forget.
    pub(crate) committed_before: u64,
    pub(crate) formed_at: Duration,
    pub(crate) places: Vec<Place>,
    /// In rank order.
    pub(crate) members: Vec<Member>,
    pub(crate) started: bool,
    /// Of rank 0, once it is ready.
    pub(crate) store_address: Option<String>,
    /// The rank that was asked what these steps used.
    pub(crate) recount: Option<(Rank, Range<u64>)>,
    /// Reports of steps that are not committed yet.
    pub(crate) pending: BTreeMap<u64, BTreeMap<Rank, StepReport>>,
    /// How fast each rank is, in rank order.
    pub(crate) paces: Vec<Pace>,
    /// Epochs below this one are granted.
    pub(crate) granted: u64,
    /// Checkpoints of which some slices are staged.
    pub(crate) staged: BTreeMap<u64, Staging>,
    pub(crate) drain: Option<DrainFor>,
    /// Checkpoints that the service will not make visible.
    pub(crate) refused: BTreeMap<u64, String>,
    /// Since when there is a process to take in.
    pub(crate) spare_since: Option<Duration>,
}

/// A checkpoint on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Staging {
    pub(crate) slices: u32,
    pub(crate) tier: Tier,
    pub(crate) ranks: BTreeSet<Rank>,
}

impl Live {
    /// As formed.
    pub(crate) fn new(record: &GenerationRecord, layout: LaneLayout, furthest: u64, now: Duration) -> Self {
        let world = record.places.len();
        Self {
            generation: record.generation,
            layout,
            first: 0,
            origin: None,
            furthest_before: furthest,
            committed_before: 0,
            formed_at: now,
            places: record.places.clone(),
            members: vec![Member::Joining; world],
            started: false,
            store_address: None,
            recount: None,
            pending: BTreeMap::new(),
            paces: vec![Pace::default(); world],
            granted: 0,
            staged: BTreeMap::new(),
            drain: None,
            refused: BTreeMap::new(),
            spare_since: None,
        }
    }

    /// As an earlier coordinator started it.
    pub(crate) fn adopted(started: &Started, layout: LaneLayout, furthest: u64, now: Duration) -> Self {
        let mut live = Self::new(&started.record, layout, furthest, now);
        live.started = true;
        live.members.fill(Member::Training);
        live.first = started.first;
        live.origin = Some(started.origin);
        live.store_address = Some(started.store_address.clone());
        live
    }

    /// All ranks.
    pub(crate) fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..self.layout.world()).map(Rank::new)
    }

    /// The ranks of one worker.
    pub(crate) fn ranks_of(&self, worker: &WorkerName) -> Vec<Rank> {
        // Places are in order of worker names.
        let from = self.places.partition_point(|p| p.worker < *worker);
        let more = self.places.iter().skip(from).take_while(|p| p.worker == *worker).count();
        (from..from + more).filter_map(|r| u32::try_from(r).ok()).map(Rank::new).collect()
    }

    /// Where a rank runs.
    pub(crate) fn place(&self, rank: Rank) -> Option<&Place> {
        self.places.get(rank.get() as usize)
    }

    /// The rank that a process is.
    pub(crate) fn rank_of(&self, worker: &WorkerName, process: ProcessId) -> Option<Rank> {
        self.ranks_of(worker).into_iter().find(|r| self.place(*r).is_some_and(|p| p.process == process))
    }

    /// How far a rank is.
    pub(crate) fn member(&mut self, rank: Rank) -> Option<&mut Member> {
        self.members.get_mut(rank.get() as usize)
    }

    /// The workers of this generation, in name order.
    pub(crate) fn workers(&self) -> BTreeSet<&WorkerName> {
        self.places.iter().map(|p| &p.worker).collect()
    }

    /// What its ranks hold, once all are ready.
    pub(crate) fn holdings(&self) -> Option<Vec<Holding>> {
        let holding = |m: &Member| if let Member::Ready(holding) = m { Some(*holding) } else { None };
        self.members.iter().map(holding).collect()
    }

    /// Ranks that left their old group already.
    pub(crate) fn ready(&self) -> u32 {
        let ready = self.members.iter().filter(|m| matches!(m, Member::Ready(_))).count();
        u32::try_from(ready).unwrap_or(u32::MAX)
    }

    /// Ranks that have not, with their workers.
    pub(crate) fn joining(&self) -> Vec<(Rank, WorkerName)> {
        self.ranks()
            .zip(&self.members)
            .filter(|(_, m)| **m == Member::Joining)
            .filter_map(|(r, _)| Some((r, self.place(r)?.worker.clone())))
            .collect()
    }
}

impl Turn<'_> {
    /// Makes `record` the live generation: persisted first, then the assignments.
    pub(crate) fn form(&mut self, record: GenerationRecord, layout: LaneLayout) {
        let now = self.now;
        let Some(job) = self.state.job.as_mut() else { return };
        let mut live = Live::new(&record, layout, job.furthest, now);
        live.committed_before = job.committed;
        self.state.last_generation = record.generation;
        self.out.push(Effect::Persist(Persisted::Formed(record)));
        job.stage = Stage::Live(live);
        self.assign(None);
    }

    /// Sends the live generation's assignments, to one worker or to all of them.
    pub(crate) fn assign(&mut self, only: Option<&WorkerName>) {
        let Some(live) = self.state.live() else { return };
        let committed = live.committed_before;
        let mut messages = Vec::new();
        for worker in live.workers() {
            if only.is_some_and(|o| o != worker) {
                continue;
            }
            let post = |rank: Rank| {
                let place = live.place(rank)?;
                Some(RankPost { rank, device: place.device.clone(), process: place.process })
            };
            let ranks = live.ranks_of(worker).into_iter().filter_map(post).collect();
            let (generation, world) = (live.generation, live.layout.world());
            messages.push((worker.clone(), ToWorker::Assign { generation, world, committed, ranks }));
        }
        for (worker, message) in messages {
            self.send(&worker, message);
        }
    }

    /// Grants the epoch that the next step lies in and the one after it.
    pub(crate) fn grant_ahead(&mut self) {
        let Some(job) = self.state.job.as_mut() else { return };
        let schedule = job.spec.schedule;
        let current = job.spec.position(job.committed).epoch.get();
        let Stage::Live(live) = &mut job.stage else { return };
        if !live.started {
            return;
        }
        let until = (current + 2).min(schedule.epochs());
        let from = live.granted.max(current);
        live.granted = live.granted.max(until);
        self.send_grants(from..until, None);
    }

    /// Sends grants to the ranks of one worker, or to all.
    pub(crate) fn send_grants(&mut self, epochs: Range<u64>, only: Option<&WorkerName>) {
        let Some(job) = self.state.job.as_ref() else { return };
        let Stage::Live(live) = &job.stage else { return };
        let mut messages = Vec::new();
        for epoch in epochs {
            let steps = job.spec.schedule.steps_in(mcl_types::Epoch::new(epoch));
            for (rank, place) in live.ranks().zip(&live.places) {
                if only.is_none_or(|o| *o == place.worker) {
                    let lanes = live.layout.lanes_of(rank);
                    let grant = ToWorker::Grant { generation: live.generation, rank, epoch, steps, lanes };
                    messages.push((place.worker.clone(), grant));
                }
            }
        }
        for (worker, message) in messages {
            self.send(&worker, message);
        }
    }

    /// Ends the live generation because of `cause`. Survivors leave their group, keep their state and wait.
    pub(crate) fn end_generation(&mut self, cause: EndCause) {
        let culprits = cause.to_be_replaced();
        let Some(generation) = self.close_generation() else { return };
        self.out.push(Effect::Warn(Warning::GenerationEnded { generation, cause: cause.clone() }));
        let reason = cause.to_string();
        let (now, limit, echo) = self.patience();
        let Some(job) = self.state.job.as_mut() else { return };
        job.ended = Some(Ended { generation, cause: Some(cause.clone()) });
        job.causes.push(cause.clone());
        let keep = limit as usize;
        job.causes.drain(..job.causes.len().saturating_sub(keep));
        // An echo says that something happened elsewhere: what it was is known in a moment.
        let wait = pause(job.fruitless).max(if cause.is_echo() { echo } else { Duration::ZERO });
        let places =
            match std::mem::replace(&mut job.stage, Stage::Gathering(Gathering::new(now, now + wait, false)))
            {
                Stage::Live(live) => live.places,
                _ => Vec::new(),
            };
        self.break_group(generation, &places, &culprits, &reason);
        let Some(job) = self.state.job.as_ref() else { return };
        if cause.is_fatal() {
            self.over(Outcome::Failed(Failure::Fatal(cause)));
        } else if job.fruitless >= limit {
            let (generations, causes) = (job.fruitless, job.causes.clone());
            self.over(Outcome::Failed(Failure::NoProgress { generations, causes }));
        }
    }

    /// Ranks leave the group; those that cannot be worked with are replaced.
    fn break_group(&mut self, generation: Generation, places: &[Place], culprits: &[Rank], reason: &str) {
        let workers: BTreeSet<&WorkerName> = places.iter().map(|p| &p.worker).collect();
        for worker in workers {
            self.send(worker, ToWorker::Break { generation, reason: reason.to_owned() });
        }
        for rank in culprits {
            let Some(place) = places.get(rank.get() as usize) else { continue };
            self.discard(&place.worker, place.process);
            let stop = ToWorker::Stop { generation, rank: *rank, reason: reason.to_owned() };
            self.send(&place.worker, stop);
        }
    }

    /// Closes the live generation, whose ranks stand still or are told to, and counts whether it brought the run
    /// forward.
    pub(crate) fn close_generation(&mut self) -> Option<Generation> {
        let generation = self.state.live()?.generation;
        self.out.push(Effect::Persist(Persisted::Ended(generation)));
        let job = self.state.job.as_mut()?;
        job.lookup = Lookup::NotAsked;
        let Stage::Live(live) = &job.stage else { return None };
        if job.furthest > live.furthest_before {
            job.fruitless = 0;
            job.causes.clear();
        } else {
            job.fruitless += 1;
        }
        Some(generation)
    }

    fn patience(&self) -> (Duration, u32, Duration) {
        (self.now, self.state.settings.fruitless_limit.max(1), self.state.settings.echo_wait)
    }

    /// The worker of a rank of the live generation.
    pub(crate) fn worker_of_rank(&self, rank: Rank) -> Option<WorkerName> {
        self.state.live()?.place(rank).map(|p| p.worker.clone())
    }
}

/// None after the first two failures in a row, then a second more each time: enough for a port or a file system
/// to come back.
fn pause(fruitless: u32) -> Duration {
    Duration::from_secs(u64::from(fruitless.saturating_sub(2)))
}
