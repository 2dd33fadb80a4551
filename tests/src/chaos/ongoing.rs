//! A fault under way: a row of stages, each of which is done at once or waited for without blocking.

use super::arena::{Arena, Who};
use super::family::{LOST_AFTER, WORKERS};
use super::schedule::{Fault, Service};
use crate::processes::{self, ProcessId};
use nix::sys::signal::Signal;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a worker that was asked to leave may take, longer than a coordinator is ever away.
const LEAVE: Duration = Duration::from_secs(30);
/// How long a failpoint may take to be reached: a worker starts, its rank is prepared and admitted.
const REACH: Duration = Duration::from_secs(45);
/// A process of this age has spoken, also on a busy machine; a younger one is given so long for its first word.
const YOUNG: Duration = Duration::from_secs(10);
const BIRTH: Duration = Duration::from_secs(60);
/// How long a rank that stands still may be there: silence, then its worker's next look, on a busy machine.
const HUNG: Duration = Duration::from_secs(3 * LOST_AFTER.as_secs());
/// How long a service may still die of a disk that was full.
const AFTERMATH: Duration = Duration::from_secs(3);

/// What was done, when, and what is needed to measure its consequence.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// What kind.
    pub(super) kind: &'static str,
    /// All there is to say about it.
    pub(super) detail: String,
    /// When it began to hurt; none: it never did.
    pub(super) struck: Option<Instant>,
    /// When a deliberate outage ended.
    pub(super) repaired: Option<Instant>,
    /// When the last of it was over.
    pub(super) over: Option<Instant>,
    /// The generation that it hit.
    pub(super) generation: u64,
    /// It began before an earlier one was healed, or together with another one.
    pub(super) overlapping: bool,
}

#[derive(Debug, Clone)]
enum Stage {
    KillRank(usize),
    StopRank(usize),
    Kill(Who),
    Start(Who),
    StartAt(usize, String),
    Ask(Who),
    Freeze(Who),
    Thaw(Who),
    Cut(usize, bool),
    Stall(usize, bool),
    Late(usize, Duration),
    Fill(Service),
    Free(Service),
    KillEverybody,
    Wait(Duration),
    /// Until it has left.
    Left(Who),
    /// Until the rank of a worker has run into its failpoint.
    Reached(usize, bool),
    /// Until the watched rank is gone.
    Gone,
    Struck,
    Repaired,
}

/// One fault.
#[derive(Debug)]
pub(super) struct Ongoing {
    /// Which.
    pub(super) fault: Fault,
    /// Number of its record.
    pub(super) record: usize,
    stages: VecDeque<Stage>,
    entered: Instant,
    watched: Option<ProcessId>,
}

/// What became of a stage.
enum Progress {
    Done,
    Waiting,
    Broken(String),
}

impl Ongoing {
    /// Begins; nothing is done yet.
    pub(super) fn new(fault: Fault, record: usize) -> Self {
        let stages = stages(&fault).into();
        Self { fault, record, stages, entered: Instant::now(), watched: None }
    }

    /// Does what can be done now; whether it is over. What breaks a promise is added to `broken`.
    pub(super) fn advance(
        &mut self,
        arena: &mut Arena,
        record: &mut Record,
        broken: &mut Vec<String>,
    ) -> bool {
        while let Some(stage) = self.stages.front().cloned() {
            match self.perform(&stage, arena, record) {
                Progress::Waiting => return false,
                Progress::Done => {}
                Progress::Broken(how) => broken.push(format!("{}: {how}", record.detail)),
            }
            self.stages.pop_front();
            self.entered = Instant::now();
        }
        record.over = Some(Instant::now());
        true
    }

    fn perform(&mut self, stage: &Stage, arena: &mut Arena, record: &mut Record) -> Progress {
        match stage {
            Stage::KillRank(_) | Stage::StopRank(_) => return self.hit_rank(stage, arena, record),
            Stage::Kill(who) => arena.kill(*who),
            Stage::Start(who) => arena.start_one(*who),
            Stage::StartAt(worker, failpoint) => arena.start_with_failpoint(*worker, failpoint),
            Stage::Ask(who) => {
                arena.may_end.insert(*who);
                arena.signal(*who, Signal::SIGTERM);
            }
            Stage::Freeze(who) => arena.signal(*who, Signal::SIGSTOP),
            Stage::Thaw(who) => arena.signal(*who, Signal::SIGCONT),
            Stage::Cut(worker, yes) => arena.cut(*worker, *yes),
            Stage::Stall(worker, yes) => arena.stall(*worker, *yes),
            Stage::Late(worker, time) => arena.late(*worker, *time),
            Stage::Fill(service) => {
                arena.may_end.insert((*service).into());
                arena.fill(*service, true);
            }
            Stage::Free(service) => arena.fill(*service, false),
            Stage::KillEverybody => arena.kill_everybody(),
            Stage::Struck => record.struck = Some(Instant::now()),
            Stage::Repaired => record.repaired = Some(Instant::now()),
            Stage::Wait(time) if self.entered.elapsed() < *time => return Progress::Waiting,
            Stage::Wait(_) => {}
            Stage::Left(who) => return self.left(*who, arena),
            Stage::Reached(worker, hang) => return self.reached(*worker, *hang, arena, record),
            Stage::Gone => return self.gone(),
        }
        Progress::Done
    }

    /// A rank that is not there now is waited for.
    fn hit_rank(&mut self, stage: &Stage, arena: &Arena, record: &mut Record) -> Progress {
        let (worker, signal) = match stage {
            Stage::StopRank(worker) => (*worker, Signal::SIGSTOP),
            Stage::KillRank(worker) => (*worker, Signal::SIGKILL),
            _ => return Progress::Done,
        };
        let Some(pid) = arena.rank(worker) else {
            if self.entered.elapsed() < REACH {
                return Progress::Waiting;
            }
            return Progress::Broken(format!("worker {worker} has no rank process"));
        };
        record.struck = Some(Instant::now());
        processes::signal(pid, signal);
        self.watched = Some(pid);
        Progress::Done
    }

    fn left(&self, who: Who, arena: &mut Arena) -> Progress {
        if arena.pid(who).is_none() {
            return Progress::Done;
        }
        if self.entered.elapsed() < LEAVE {
            return Progress::Waiting;
        }
        let name = arena.name(who);
        arena.kill(who);
        Progress::Broken(format!("{name} was asked to leave and is still there after {} s", LEAVE.as_secs()))
    }

    fn reached(&mut self, worker: usize, hang: bool, arena: &Arena, record: &mut Record) -> Progress {
        if self.watched.is_none() {
            self.watched = arena.rank(worker);
        }
        if let Some(pid) = self.watched
            && (!processes::alive(pid) || (hang && processes::stopped(pid)))
        {
            record.struck = Some(Instant::now());
            return Progress::Done;
        }
        if self.entered.elapsed() < REACH {
            return Progress::Waiting;
        }
        // Not a broken promise: a source of state never receives one, for instance.
        self.watched = None;
        Progress::Done
    }

    fn gone(&self) -> Progress {
        let Some(pid) = self.watched else { return Progress::Done };
        if !processes::alive(pid) {
            return Progress::Done;
        }
        // One that may not have said a word yet is given time to be born.
        let age = processes::age(pid).unwrap_or_default().saturating_sub(self.entered.elapsed());
        let limit = if age < YOUNG { BIRTH + HUNG } else { HUNG };
        if self.entered.elapsed() < limit {
            return Progress::Waiting;
        }
        processes::signal(pid, Signal::SIGKILL);
        Progress::Broken(format!("a rank that stands still is there after {} s", limit.as_secs()))
    }
}

/// A fault as stages.
fn stages(fault: &Fault) -> Vec<Stage> {
    use Stage::{
        Ask, Cut, Fill, Free, Freeze, Gone, Kill, KillEverybody, KillRank, Late, Left, Reached, Repaired,
        Stall, Start, StartAt, StopRank, Struck, Thaw, Wait,
    };
    match *fault {
        Fault::KillRank { worker } => vec![KillRank(worker), Gone],
        Fault::StopRank { worker } => vec![StopRank(worker), Gone],
        Fault::Failpoint { worker, point, nth, hang } => {
            let (who, how) = (Who::Worker(worker), if hang { "stop" } else { "kill" });
            let failpoint = format!("{}:{nth}:{how}", point.name());
            let mut all = vec![Ask(who), Left(who), StartAt(worker, failpoint), Reached(worker, hang), Gone];
            // It would run into it again: a worker without takes its place.
            all.extend([Wait(Duration::from_millis(1500)), Ask(who), Left(who), Start(who)]);
            all
        }
        Fault::KillWorker { worker, away } => {
            let who = Who::Worker(worker);
            vec![Struck, Kill(who), Wait(away), Repaired, Start(who)]
        }
        Fault::DrainWorker { worker, away } => {
            let who = Who::Worker(worker);
            vec![Struck, Ask(who), Left(who), Wait(away), Repaired, Start(who)]
        }
        Fault::FreezeWorker { worker, time } => {
            let who = Who::Worker(worker);
            vec![Struck, Freeze(who), Wait(time), Repaired, Thaw(who)]
        }
        Fault::KillService { service, away } => {
            vec![Struck, Kill(service.into()), Wait(away), Repaired, Start(service.into())]
        }
        Fault::FreezeService { service, time } => {
            vec![Struck, Freeze(service.into()), Wait(time), Repaired, Thaw(service.into())]
        }
        Fault::CutLink { worker, time } => {
            vec![Struck, Cut(worker, true), Wait(time), Repaired, Cut(worker, false)]
        }
        Fault::StallLink { worker, time } => {
            vec![Struck, Stall(worker, true), Wait(time), Repaired, Stall(worker, false)]
        }
        Fault::SlowLink { worker, late, time } => {
            vec![Struck, Late(worker, late), Wait(time), Repaired, Late(worker, Duration::ZERO)]
        }
        Fault::FullDisk { service, time } => {
            let mut all = vec![Struck, Fill(service), Wait(time), Free(service), Repaired];
            // It may have died, or may still: then it is started again.
            all.extend([Start(service.into()), Wait(AFTERMATH), Start(service.into())]);
            all
        }
        Fault::KillEverybody { away } => {
            let mut all = vec![Struck, KillEverybody, Wait(away), Repaired];
            all.extend((0..WORKERS).map(|w| Start(Who::Worker(w))));
            all
        }
    }
}
