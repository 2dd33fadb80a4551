//! "Is my job fine?", answered in one line.
//!
//! Pure: a function of what is known and of the time. Levels and notes are typed; their texts are for people.

use crate::model::{Phase, Snapshot, WorkerState};
use mcl_history::Record;
use serde::Serialize;
use std::fmt;

/// Share of a step spent waiting for pictures beyond which data is the limit.
const DATA_LIMIT: f64 = 0.2;
/// A step that takes so many times longer than those before it has stalled, but not before so many seconds.
const STALLED: (f64, f64) = (10.0, 30.0);
/// Seconds without a step after which waiting is no longer a matter of course.
const WAITED_LONG: f64 = 300.0;
/// Newest rows looked at, and skipped ones among them that are no accident any more.
const SKIPPED: (usize, usize) = (20, 3);

/// How a person should feel about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing is run, on purpose.
    Idle,
    /// All is well.
    Good,
    /// It is worth a look.
    Watch,
    /// Something is wrong.
    Bad,
}

/// What is worth a look.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// No step for longer than steps take.
    Stalled {
        /// Seconds since the last one.
        seconds: f64,
    },
    /// Updates that were skipped lately.
    Skipped {
        /// How many.
        skipped: usize,
        /// Of so many steps.
        of: usize,
    },
    /// Workers without a stream.
    Lost {
        /// How many.
        workers: usize,
        /// One of them.
        first: String,
    },
    /// Ranks that the others wait for.
    Stragglers {
        /// How many.
        ranks: usize,
        /// One of them.
        rank: u32,
        /// Where it is.
        worker: String,
    },
    /// Loading pictures is what limits it.
    Data {
        /// Share of a step.
        share: f64,
    },
}

impl Note {
    const fn level(&self) -> Level {
        match self {
            Self::Stalled { .. } => Level::Bad,
            Self::Skipped { skipped, .. } if *skipped >= SKIPPED.1 => Level::Bad,
            _ => Level::Watch,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others =
            |count: usize| if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        match self {
            Self::Stalled { seconds } => write!(f, "no step for {seconds:.0} s"),
            Self::Skipped { skipped, of } => {
                write!(
                    f,
                    "{skipped} of the last {of} updates were skipped: a loss or a gradient was not finite"
                )
            }
            Self::Lost { workers, first } => write!(f, "worker {first}{} lost", others(*workers)),
            Self::Stragglers { ranks, rank, worker } => {
                write!(f, "the others wait for rank {rank} on {worker}{}", others(*ranks))
            }
            Self::Data { share } => {
                write!(f, "loading pictures is the limit: {:.0} % of a step waits for them", 100.0 * share)
            }
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// How bad it is.
    pub level: Level,
    /// In a few words.
    pub headline: &'static str,
    /// What is worth a look.
    pub notes: Vec<String>,
}

/// Judges at time `now`.
pub fn verdict(snapshot: &Snapshot, record: &Record, now: f64) -> Verdict {
    let notes = notes(snapshot, record, now);
    let worst = notes.iter().map(Note::level).max().unwrap_or(Level::Good);
    let (level, headline) = match snapshot.phase {
        Phase::Idle => (Level::Idle, "No job"),
        Phase::Training => (
            worst,
            match worst {
                Level::Bad => "Training, but something is wrong",
                Level::Watch => "Training; worth a look",
                Level::Good | Level::Idle => "Training, all is well",
            },
        ),
        Phase::Waiting if snapshot.held => (Level::Idle, "Paused"),
        Phase::Waiting => (worst.max(Level::Watch), "Waiting: no step is taken"),
        Phase::Forming => (worst.max(Level::Watch), "Forming: ranks get ready"),
        Phase::Draining => (worst.max(Level::Watch), "Stopping at a step boundary"),
        Phase::Done => (Level::Good, "Done"),
        Phase::Interrupted => (Level::Idle, "Drained; it can be continued"),
        Phase::Cancelled => (Level::Idle, "Cancelled"),
        Phase::Failed => (Level::Bad, "Failed"),
    };
    Verdict { level, headline, notes: notes.iter().map(ToString::to_string).collect() }
}

fn notes(snapshot: &Snapshot, record: &Record, now: f64) -> Vec<Note> {
    if !matches!(snapshot.phase, Phase::Waiting | Phase::Forming | Phase::Training | Phase::Draining) {
        return Vec::new();
    }
    let training = snapshot.phase == Phase::Training;
    let mut notes = Vec::new();
    let quiet = record.history.last().map(|last| now - last.time);
    let usual = record.pace().map_or(f64::INFINITY, |pace| STALLED.0 / pace).max(STALLED.1);
    let patience = if training { usual } else { WAITED_LONG };
    if let Some(seconds) = quiet.filter(|q| *q > patience && !snapshot.held) {
        notes.push(Note::Stalled { seconds });
    }
    let newest = record.history.recent().rev().take(SKIPPED.0);
    let (of, skipped) =
        newest.fold((0, 0), |(of, skipped), row| (of + 1, skipped + usize::from(row.skipped)));
    if skipped > 0 {
        notes.push(Note::Skipped { skipped, of });
    }
    let mut lost = snapshot.workers.iter().filter(|w| w.state == WorkerState::Lost);
    if let Some(first) = lost.next() {
        notes.push(Note::Lost { workers: 1 + lost.count(), first: first.name.clone() });
    }
    let mut slow = snapshot.ranks.iter().filter(|r| r.straggler);
    if let Some(first) = slow.next().filter(|_| training) {
        let (rank, worker) = (first.rank, first.worker.clone());
        notes.push(Note::Stragglers { ranks: 1 + slow.count(), rank, worker });
    }
    if training && snapshot.data_wait_share > DATA_LIMIT {
        notes.push(Note::Data { share: snapshot.data_wait_share });
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rank, Worker};
    use crate::samples::row;
    use mcl_history::Row;
    use mcl_history::{Happening, What};

    fn worker(name: &str, state: WorkerState) -> Worker {
        Worker { name: name.to_owned(), state, silent_s: 0.0, address: String::new(), ranks: Vec::new() }
    }

    fn rank(rank: u32, straggler: bool) -> Rank {
        Rank {
            rank,
            worker: "b".to_owned(),
            device: "cpu".to_owned(),
            first_lane: rank,
            lanes: 1,
            step_s: 0.5,
            data_s: 0.0,
            forward_s: 0.2,
            backward_s: 0.2,
            collective_s: 0.1,
            straggler,
            last_step: 5,
        }
    }

    /// Twenty steps, one a second, the last one at time 19.
    fn record(skipped: u64) -> Record {
        let mut record = Record::default();
        for step in 0..20 {
            let row = Row { time: step as f64, skipped: step < skipped, generation: 1, ..row(step) };
            record.take(Happening { time: row.time, what: What::Committed(Box::new(row)) });
        }
        record
    }

    fn training() -> Snapshot {
        let workers = vec![worker("a", WorkerState::Training), worker("b", WorkerState::Training)];
        Snapshot { phase: Phase::Training, workers, ranks: vec![rank(0, false)], ..Snapshot::default() }
    }

    fn told(snapshot: &Snapshot, record: &Record, now: f64) -> (Level, String) {
        let verdict = verdict(snapshot, record, now);
        (verdict.level, format!("{}: {}", verdict.headline, verdict.notes.join("; ")))
    }

    #[test]
    fn a_run_that_advances_is_fine() {
        assert_eq!(told(&training(), &record(0), 20.0), (Level::Good, "Training, all is well: ".to_owned()));
        // A step may take its time.
        assert_eq!(told(&training(), &record(0), 48.0).0, Level::Good);
    }

    #[test]
    fn what_is_worth_a_look_is_named() {
        let lost = worker("c", WorkerState::Lost);
        let mut snapshot = Snapshot { data_wait_share: 0.43, ..training() };
        snapshot.workers.extend([lost.clone(), lost]);
        snapshot.ranks.push(rank(1, true));
        let (level, text) = told(&snapshot, &record(1), 20.0);
        assert_eq!(level, Level::Watch);
        for words in ["1 of the last 20", "worker c and 1 more lost", "wait for rank 1 on b", "43 %"] {
            assert!(text.contains(words), "{words} is not in {text}");
        }
    }

    #[test]
    fn a_stalled_run_and_numbers_that_are_not_finite_are_wrong() {
        let (level, text) = told(&training(), &record(0), 100.0);
        assert_eq!(level, Level::Bad);
        assert!(text.contains("no step for 81 s"), "{text}");
        assert_eq!(told(&training(), &record(3), 20.0).0, Level::Bad);
    }

    #[test]
    fn phases_without_steps_are_told_apart() {
        let of = |phase| told(&Snapshot { phase, ..training() }, &record(0), 20.0).0;
        assert_eq!(Phase::ALL.map(of).to_vec(), {
            use Level::{Bad, Good, Idle, Watch};
            [Idle, Watch, Watch, Good, Watch, Good, Bad, Idle, Idle]
        });
        let waiting = Snapshot { phase: Phase::Waiting, ..training() };
        assert_eq!(told(&waiting, &record(0), 1000.0).0, Level::Bad);
        let held = Snapshot { held: true, ..waiting };
        assert_eq!(told(&held, &record(0), 1000.0), (Level::Idle, "Paused: ".to_owned()));
        assert_eq!(told(&Snapshot::default(), &Record::default(), 0.0).0, Level::Idle);
    }
}
