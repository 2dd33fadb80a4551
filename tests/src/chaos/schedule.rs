//! Which faults happen, to whom, for how long: a pure function of the seed.
//!
//! Kinds are dealt from a shuffled deck, so that a campaign of some length sees every kind about as often as its
//! weight says. Invariant: nothing here knows the state of the cluster; the campaign decides when a turn may begin.

use mcl_failpoint::{Failpoint, Process};
use mcl_types::SplitMix64;
use std::time::Duration;

/// Chance that a turn is two faults at once.
const PAIR: f64 = 0.15;
/// Chance that a turn does not wait until the last one is healed.
const OVERLAP: f64 = 0.2;

/// Which of the two services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// The coordinator.
    Coordinator,
    /// The checkpoint service.
    Checkpoint,
}

/// One thing that goes wrong. Workers are counted from 0.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fault {
    /// SIGKILL of a rank.
    KillRank { worker: usize },
    /// A rank dies or hangs at a named place.
    Failpoint { worker: usize, point: Failpoint, nth: u64, hang: bool },
    /// SIGSTOP of a rank, for ever.
    StopRank { worker: usize },
    /// SIGKILL of a worker daemon, started again later.
    KillWorker { worker: usize, away: Duration },
    /// SIGTERM of a worker daemon, started again later.
    DrainWorker { worker: usize, away: Duration },
    /// SIGSTOP of a worker daemon, then SIGCONT.
    FreezeWorker { worker: usize, time: Duration },
    /// SIGKILL of a service, started again later.
    KillService { service: Service, away: Duration },
    /// SIGSTOP of a service, then SIGCONT.
    FreezeService { service: Service, time: Duration },
    /// A machine's network is gone for a while.
    CutLink { worker: usize, time: Duration },
    /// Nothing passes between a worker and the coordinator for a while, and no connection ends.
    StallLink { worker: usize, time: Duration },
    /// What passes between a worker and the coordinator comes late.
    SlowLink { worker: usize, late: Duration, time: Duration },
    /// A disk is full for a while.
    FullDisk { service: Service, time: Duration },
    /// SIGKILL of all workers and ranks at once.
    KillEverybody { away: Duration },
}

/// Who is hurt by a fault: two faults of one victim do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Victim {
    /// A worker or its rank or its link.
    Worker(usize),
    /// The coordinator or its disk.
    Coordinator,
    /// The checkpoint service or its disk.
    Checkpoint,
    /// All workers.
    Everybody,
}

impl Fault {
    /// What kind it is, as summaries call it.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::KillRank { .. } => "rank killed",
            Self::Failpoint { hang: false, .. } => "rank killed at a failpoint",
            Self::Failpoint { hang: true, .. } => "rank hung at a failpoint",
            Self::StopRank { .. } => "rank stopped",
            Self::KillWorker { .. } => "worker killed",
            Self::DrainWorker { .. } => "worker drained",
            Self::FreezeWorker { .. } => "worker frozen",
            Self::KillService { service: Service::Coordinator, .. } => "coordinator killed",
            Self::KillService { service: Service::Checkpoint, .. } => "checkpoint service killed",
            Self::FreezeService { service: Service::Coordinator, .. } => "coordinator frozen",
            Self::FreezeService { service: Service::Checkpoint, .. } => "checkpoint service frozen",
            Self::CutLink { .. } => "network cut",
            Self::StallLink { .. } => "control stream stalled",
            Self::SlowLink { .. } => "control stream late",
            Self::FullDisk { service: Service::Coordinator, .. } => "coordinator's disk full",
            Self::FullDisk { service: Service::Checkpoint, .. } => "checkpoint disk full",
            Self::KillEverybody { .. } => "all workers killed at once",
        }
    }

    /// Who is hurt.
    pub(super) const fn victim(&self) -> Victim {
        match self {
            Self::KillRank { worker }
            | Self::Failpoint { worker, .. }
            | Self::StopRank { worker }
            | Self::KillWorker { worker, .. }
            | Self::DrainWorker { worker, .. }
            | Self::FreezeWorker { worker, .. }
            | Self::CutLink { worker, .. }
            | Self::StallLink { worker, .. }
            | Self::SlowLink { worker, .. } => Victim::Worker(*worker),
            Self::KillService { service, .. }
            | Self::FreezeService { service, .. }
            | Self::FullDisk { service, .. } => match service {
                Service::Coordinator => Victim::Coordinator,
                Service::Checkpoint => Victim::Checkpoint,
            },
            Self::KillEverybody { .. } => Victim::Everybody,
        }
    }
}

/// What happens next.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Turn {
    /// One fault, or two at once.
    pub(super) faults: Vec<Fault>,
    /// How long to wait before.
    pub(super) pause: Duration,
    /// Whether it begins before the last one is healed.
    pub(super) overlapping: bool,
}

/// What the machine allows, and how things are paced.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Worker machines.
    pub(super) workers: usize,
    /// Silence after which one is lost.
    pub(super) lost_after: Duration,
    /// Whether disks can be filled.
    pub(super) disks: bool,
    /// Longest pause between two turns.
    pub(super) pause: Duration,
    /// Longest time that a coordinator is away.
    pub(super) away: Duration,
    /// Whether all workers may be killed at once, once.
    pub(super) everybody: bool,
}

/// Kinds in the deck, each as often as it weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Card {
    KillRank,
    Failpoint,
    StopRank,
    KillWorker,
    DrainWorker,
    FreezeWorker,
    Kill(Service),
    Freeze(Service),
    Cut,
    Stall,
    Slow,
    Full(Service),
}

const DECK: [(Card, usize); 15] = [
    (Card::KillRank, 3),
    (Card::Failpoint, 4),
    (Card::StopRank, 1),
    (Card::KillWorker, 3),
    (Card::DrainWorker, 2),
    (Card::FreezeWorker, 2),
    (Card::Kill(Service::Coordinator), 3),
    (Card::Kill(Service::Checkpoint), 1),
    (Card::Freeze(Service::Coordinator), 1),
    (Card::Freeze(Service::Checkpoint), 1),
    (Card::Cut, 2),
    (Card::Stall, 1),
    (Card::Slow, 1),
    (Card::Full(Service::Coordinator), 1),
    (Card::Full(Service::Checkpoint), 1),
];

/// An endless row of turns.
#[derive(Debug)]
pub(super) struct Schedule {
    draw: SplitMix64,
    pace: Pace,
    deck: Vec<Card>,
    points: Vec<Failpoint>,
    dealt: u64,
    /// The turn in which all workers are killed.
    everybody_at: u64,
}

impl Schedule {
    /// The one of a seed.
    pub(super) fn new(seed: u64, pace: Pace) -> Self {
        let mut draw = SplitMix64::new(seed ^ 0x6368_616f_7321);
        let everybody_at = 4 + draw.below(8);
        Self { draw, pace, deck: Vec::new(), points: Vec::new(), dealt: 0, everybody_at }
    }

    /// The next turn.
    pub(super) fn next(&mut self) -> Turn {
        self.dealt += 1;
        let pause = self.between(0.1, self.pace.pause.as_secs_f64());
        if self.pace.everybody && self.dealt == self.everybody_at {
            let faults = vec![Fault::KillEverybody { away: self.between(0.0, 2.0) }];
            return Turn { faults, pause, overlapping: false };
        }
        let mut faults = vec![self.fault(None)];
        if self.draw.chance(PAIR) {
            faults.push(self.fault(faults.first().map(Fault::victim)));
        }
        Turn { faults, pause, overlapping: self.draw.chance(OVERLAP) }
    }

    /// One fault of another victim than this one.
    fn fault(&mut self, other_than: Option<Victim>) -> Fault {
        loop {
            let card = self.card();
            let fault = self.of(card);
            if Some(fault.victim()) != other_than {
                return fault;
            }
        }
    }

    fn card(&mut self) -> Card {
        if self.deck.is_empty() {
            let fits = |card: Card| self.pace.disks || !matches!(card, Card::Full(_));
            let all = DECK.iter().filter(|(card, _)| fits(*card));
            self.deck = all.flat_map(|(card, times)| std::iter::repeat_n(*card, *times)).collect();
            self.draw.shuffle(&mut self.deck);
        }
        self.deck.pop().unwrap()
    }

    fn of(&mut self, card: Card) -> Fault {
        let worker = usize::try_from(self.draw.below(self.pace.workers as u64)).unwrap();
        let away = self.between(0.0, 3.0);
        // Shorter or longer than the silence that makes somebody lost.
        let time = self.pace.lost_after.mul_f64(if self.draw.chance(0.5) { 0.5 } else { 2.0 });
        match card {
            Card::KillRank => Fault::KillRank { worker },
            Card::Failpoint => self.failpoint(worker),
            Card::StopRank => Fault::StopRank { worker },
            Card::KillWorker => Fault::KillWorker { worker, away },
            Card::DrainWorker => Fault::DrainWorker { worker, away },
            Card::FreezeWorker => Fault::FreezeWorker { worker, time },
            Card::Kill(service) => {
                let longest = if service == Service::Coordinator { self.pace.away } else { away };
                Fault::KillService { service, away: self.between(0.0, longest.as_secs_f64()) }
            }
            Card::Freeze(service) => Fault::FreezeService { service, time },
            Card::Cut => Fault::CutLink { worker, time },
            Card::Stall => Fault::StallLink { worker, time },
            Card::Slow => Fault::SlowLink { worker, late: self.between(0.02, 0.4), time: 2 * time },
            Card::Full(service) => Fault::FullDisk { service, time: self.between(0.5, 3.0) },
        }
    }

    fn failpoint(&mut self, worker: usize) -> Fault {
        if self.points.is_empty() {
            self.points = Failpoint::of(Process::Rank).collect();
            self.draw.shuffle(&mut self.points);
        }
        let point = self.points.pop().unwrap();
        // Once a generation or a checkpoint, so the first time is the one to be sure of; the others once a step.
        let once =
            matches!(point, Failpoint::Rendezvous | Failpoint::StateTransfer | Failpoint::StagedBeforeReport);
        let nth = if once { 1 } else { 1 + self.draw.below(12) };
        Fault::Failpoint { worker, point, nth, hang: self.draw.chance(0.25) }
    }

    fn between(&mut self, low: f64, high: f64) -> Duration {
        Duration::from_secs_f64(self.draw.range(low, high.max(low)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn pace() -> Pace {
        Pace {
            workers: 3,
            lost_after: Duration::from_secs(2),
            disks: true,
            pause: Duration::from_secs(4),
            away: Duration::from_secs(10),
            everybody: true,
        }
    }

    #[test]
    fn a_seed_is_a_schedule_and_another_seed_another_one() {
        let turns = |seed| {
            let mut schedule = Schedule::new(seed, pace());
            (0..200).map(|_| schedule.next()).collect::<Vec<_>>()
        };
        assert_eq!(turns(1), turns(1));
        assert_ne!(turns(1), turns(2));
    }

    #[test]
    fn every_kind_comes_about_as_often_as_it_weighs_and_everybody_is_killed_once() {
        let mut schedule = Schedule::new(7, pace());
        let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
        for _ in 0..300 {
            let turn = schedule.next();
            assert!(turn.faults.len() <= 2 && turn.pause <= Duration::from_secs(4));
            if let [a, b] = &turn.faults[..] {
                assert_ne!(a.victim(), b.victim());
            }
            for fault in &turn.faults {
                *kinds.entry(fault.kind()).or_default() += 1;
            }
        }
        assert_eq!(kinds["all workers killed at once"], 1);
        assert_eq!(kinds.len(), 17, "{kinds:?}");
        assert!(kinds["rank killed"] > 2 * kinds["rank stopped"], "{kinds:?}");
    }
}
