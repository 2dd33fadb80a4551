//! What must outlive the coordinator, in one redb file that is also the lock of the run directory.
//!
//! Each write is one durable transaction. Invariant: a coordinator that opens the journal reigns in a term
//! of its own, higher than all before.

use crate::CoordinatorError;
use crate::clock::since_1970;
use crate::queue::Queued;
use mcl_coordinator_core::{DrainFor, GenerationRecord, JobSpec, Outcome, Persisted, Started};
use mcl_failpoint::{Failpoint, pass};
use mcl_types::{Generation, RunId, Term};
use redb::{Database, DatabaseError, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Current values by name, as JSON.
const VALUES: TableDefinition<&str, &[u8]> = TableDefinition::new("values");
/// Every generation there ever was, as JSON: for whoever wants to know what happened.
const GENERATIONS: TableDefinition<u64, &[u8]> = TableDefinition::new("generations");
/// Jobs that wait for their turn, in the order in which they came, as JSON.
const QUEUE: TableDefinition<u64, &[u8]> = TableDefinition::new("queue");
/// Runs that made room for another one, by name, as JSON.
const RUNS: TableDefinition<&str, &[u8]> = TableDefinition::new("runs");

const TERM: &str = "term";
/// What tells this directory's runs from others of their names.
const INCARNATION: &str = "incarnation";
const JOB: &str = "job";
/// The last generation, live or not.
const GENERATION: &str = "generation";
/// The last generation that was told to train.
const STARTED: &str = "started";
/// Its number while it trains; absent when it is over.
const LIVE: &str = "live";
const DRAIN: &str = "drain";
const HELD: &str = "held";
const CHECKPOINT: &str = "checkpoint";
const OUTCOME: &str = "outcome";
/// Whether the directory is a folder of runs.
const MANY_RUNS: &str = "many_runs";

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    database: Database,
    incarnation: u64,
}

/// What it holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Found {
    pub(crate) job: Option<JobSpec>,
    /// The last generation, live or not.
    pub(crate) generation: Option<GenerationRecord>,
    /// The last one that was told to train.
    pub(crate) started: Option<Started>,
    /// It was training.
    pub(crate) live: bool,
    pub(crate) drain: Option<DrainFor>,
    pub(crate) held: bool,
    pub(crate) checkpoint: Option<u64>,
    pub(crate) outcome: Option<Outcome>,
    /// First in, first out.
    pub(crate) queue: Vec<Queued>,
    /// Runs before this one.
    pub(crate) runs: Vec<RunRecord>,
}

/// What stays of a run that made room for another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub(crate) spec: JobSpec,
    pub(crate) started: Option<Started>,
    pub(crate) checkpoint: Option<u64>,
    pub(crate) outcome: Option<Outcome>,
    /// Seconds since 1970.
    pub(crate) until: u64,
}

impl Found {
    /// The highest generation ever formed.
    pub(crate) fn last_generation(&self) -> Generation {
        self.generation.as_ref().map_or(Generation::new(0), |g| g.generation)
    }
}

/// Whether no coordinator has this run directory now: for a standby, which opens it then.
///
/// # Errors
/// When its journal cannot be read.
pub fn is_free(run_dir: &Path) -> Result<bool, CoordinatorError> {
    let path = run_dir.join("coordinator.redb");
    match Database::open(&path) {
        Ok(_) => Ok(true),
        Err(DatabaseError::DatabaseAlreadyOpen) => Ok(false),
        // Nobody was here yet, or not for long enough to write anything.
        Err(_) if !path.exists() || never_finished(&path) => Ok(true),
        Err(other) => Err(journal_error(&path, other)),
    }
}

/// Whether a coordinator died while it made the file: the database's first bytes are written last, so nothing is in it.
fn never_finished(path: &Path) -> bool {
    let mut first = [1];
    File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == [0]
}

/// Removes a file that was never finished and makes another. Whoever else finds it waits for the folder's lock, looks again,
/// and then finds the new one in use.
fn made_anew(dir: &Path, path: &Path) -> Result<Database, DatabaseError> {
    let io = |e: std::io::Error| DatabaseError::Storage(redb::StorageError::Io(e));
    let folder = File::open(dir).map_err(io)?;
    folder.lock().map_err(io)?;
    match Database::create(path) {
        Err(_) if never_finished(path) => {}
        made => return made,
    }
    tracing::warn!(path = %path.display(), "a coordinator died while it made this journal; it is made anew");
    std::fs::remove_file(path).map_err(io)?;
    Database::create(path)
}

impl Journal {
    /// Opens or makes the journal of a run directory and begins the next term.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Term, Found), CoordinatorError> {
        let path = dir.join("coordinator.redb");
        let database = match Database::create(&path) {
            Err(_) if never_finished(&path) => made_anew(dir, &path),
            made => made,
        };
        let database = database.map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => CoordinatorError::InUse { dir: dir.to_owned() },
            other => journal_error(&path, other),
        })?;
        let mut journal = Self { path, database, incarnation: 0 };
        journal.write(|_| Ok(()))?;
        journal.incarnation = journal.read::<u64>(INCARNATION)?.map_or_else(|| journal.incarnate(), Ok)?;
        let term = Term::new(journal.read::<u64>(TERM)?.unwrap_or(0)).next();
        pass(Failpoint::BeforeJournalTerm);
        journal.put(TERM, &term.get())?;
        pass(Failpoint::AfterJournalTerm);
        let started: Option<Started> = journal.read(STARTED)?;
        let live = journal.read::<Generation>(LIVE)?;
        let found = Found {
            job: journal.read(JOB)?,
            generation: journal.read(GENERATION)?,
            live: live.is_some() && live == started.as_ref().map(|s| s.record.generation),
            started,
            drain: journal.read(DRAIN)?,
            held: journal.read(HELD)?.unwrap_or(false),
            checkpoint: journal.read(CHECKPOINT)?,
            outcome: journal.read(OUTCOME)?,
            queue: journal.all("queue", QUEUE)?,
            runs: journal.runs()?,
        };
        Ok((journal, term, found))
    }

    /// A random number that tells this directory's runs from others of their names; never 0.
    pub(crate) const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    fn incarnate(&self) -> Result<u64, CoordinatorError> {
        let random = getrandom::u64().map_err(|e| CoordinatorError::Random { reason: e.to_string() })?.max(1);
        self.put(INCARNATION, &random)?;
        Ok(random)
    }

    /// Makes one record durable.
    pub(crate) fn persist(&self, persisted: &Persisted) -> Result<(), CoordinatorError> {
        let (before, after) = edges(persisted);
        pass(before);
        self.record(persisted)?;
        pass(after);
        Ok(())
    }

    fn record(&self, persisted: &Persisted) -> Result<(), CoordinatorError> {
        self.write(|Tables { values, generations, queue, runs }| match persisted {
            Persisted::Job(spec) => {
                make_room(values, runs, &spec.run_id)?;
                remove_waiting(queue, &spec.run_id)?;
                values.remove(OUTCOME)?;
                values.remove(DRAIN)?;
                values.remove(HELD)?;
                insert(values, JOB, spec)
            }
            Persisted::Formed(record) => {
                let json = json(record)?;
                generations.insert(record.generation.get(), json.as_slice())?;
                values.remove(LIVE)?;
                values.insert(GENERATION, json.as_slice())?;
                Ok(())
            }
            Persisted::Started(started) => {
                insert(values, STARTED, started)?;
                // One of steps that were rolled back is nothing to miss.
                match started.last_checkpoint {
                    Some(step) => insert(values, CHECKPOINT, &step)?,
                    None => drop(values.remove(CHECKPOINT)?),
                }
                insert(values, LIVE, &started.record.generation)
            }
            Persisted::Ended(_) => {
                values.remove(LIVE)?;
                // A drain for another membership ends with its generation, a drain of the job does not.
                let stop = json(&DrainFor::Stop)?;
                if values.get(DRAIN)?.is_some_and(|d| d.value() != stop) {
                    values.remove(DRAIN)?;
                }
                Ok(())
            }
            // The stop of the job outlives what a generation is drained for besides.
            Persisted::Drain(why) => {
                let stop = json(&DrainFor::Stop)?;
                if values.get(DRAIN)?.is_some_and(|d| d.value() == stop) {
                    Ok(())
                } else {
                    insert(values, DRAIN, why)
                }
            }
            Persisted::Held(held) => insert(values, HELD, held),
            Persisted::Checkpoint(step) => insert(values, CHECKPOINT, step),
            Persisted::Over(outcome) => insert(values, OUTCOME, outcome),
        })
    }

    /// Puts a job at the end of the queue.
    pub(crate) fn enqueue(&self, waiting: &Queued) -> Result<(), CoordinatorError> {
        pass(Failpoint::BeforeJournalQueued);
        self.write(|Tables { queue, .. }| {
            let next = queue.last()?.map_or(0, |(place, _)| place.value() + 1);
            queue.insert(next, json(waiting)?.as_slice())?;
            Ok(())
        })?;
        pass(Failpoint::AfterJournalQueued);
        Ok(())
    }

    /// Takes a job out of the queue.
    pub(crate) fn dequeue(&self, run_id: &RunId) -> Result<(), CoordinatorError> {
        pass(Failpoint::BeforeJournalDequeued);
        self.write(|Tables { queue, .. }| remove_waiting(queue, run_id))?;
        pass(Failpoint::AfterJournalDequeued);
        Ok(())
    }

    /// The runs that made room for others, oldest first.
    pub(crate) fn runs(&self) -> Result<Vec<RunRecord>, CoordinatorError> {
        let mut records: Vec<RunRecord> = self.all("runs", RUNS)?;
        records.sort_by_key(|r| r.until);
        Ok(records)
    }

    /// Every record of a table.
    fn all<K: redb::Key, T: DeserializeOwned>(
        &self,
        name: &'static str,
        table: TableDefinition<'_, K, &'static [u8]>,
    ) -> Result<Vec<T>, CoordinatorError> {
        let attempt = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let transaction = self.database.begin_write()?;
            let table = transaction.open_table(table)?;
            let mut found = Vec::new();
            for entry in table.iter()? {
                found.push(entry?.1.value().to_vec());
            }
            Ok(found)
        };
        let found = attempt().map_err(|e| journal_error(&self.path, e))?;
        found.iter().map(|bytes| self.parse(name, bytes)).collect()
    }

    /// Takes note of whether the directory is one run's or a folder of runs: what is in it means something else then.
    pub(crate) fn claim(&self, dir: &Path, many_runs: bool) -> Result<(), CoordinatorError> {
        match self.read::<bool>(MANY_RUNS)? {
            Some(found) if found != many_runs => {
                let dir = dir.to_owned();
                Err(if found {
                    CoordinatorError::FolderOfRuns { dir }
                } else {
                    CoordinatorError::OneRun { dir }
                })
            }
            Some(_) => Ok(()),
            // Written before there were folders of runs.
            None if many_runs && self.read::<JobSpec>(JOB)?.is_some() => {
                Err(CoordinatorError::OneRun { dir: dir.to_owned() })
            }
            None => self.put(MANY_RUNS, &many_runs),
        }
    }

    fn put(&self, key: &'static str, value: &impl Serialize) -> Result<(), CoordinatorError> {
        self.write(|Tables { values, .. }| insert(values, key, value))
    }

    fn write(
        &self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<(), redb::Error>,
    ) -> Result<(), CoordinatorError> {
        let attempt = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut tables = Tables {
                    values: transaction.open_table(VALUES)?,
                    generations: transaction.open_table(GENERATIONS)?,
                    queue: transaction.open_table(QUEUE)?,
                    runs: transaction.open_table(RUNS)?,
                };
                change(&mut tables)?;
            }
            transaction.commit()?;
            Ok(())
        };
        attempt().map_err(|e| journal_error(&self.path, e))
    }

    fn read<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, CoordinatorError> {
        let attempt = || -> Result<Option<Vec<u8>>, redb::Error> {
            let transaction = self.database.begin_write()?;
            let values = transaction.open_table(VALUES)?;
            let found = values.get(key)?.map(|v| v.value().to_vec());
            Ok(found)
        };
        let bytes = attempt().map_err(|e| journal_error(&self.path, e))?;
        bytes.map(|bytes| self.parse(key, &bytes)).transpose()
    }

    fn parse<T: DeserializeOwned>(&self, key: &'static str, bytes: &[u8]) -> Result<T, CoordinatorError> {
        serde_json::from_slice(bytes).map_err(|e| CoordinatorError::JournalRecord {
            path: self.path.clone(),
            key,
            reason: e.to_string(),
        })
    }
}

type Named<'a> = redb::Table<'a, &'static str, &'static [u8]>;
type Numbered<'a> = redb::Table<'a, u64, &'static [u8]>;

/// Everything there is, in one transaction.
struct Tables<'a> {
    values: Named<'a>,
    generations: Numbered<'a>,
    queue: Numbered<'a>,
    runs: Named<'a>,
}

/// The values become those of another run: its own of earlier, or none.
fn make_room(values: &mut Named<'_>, runs: &mut Named<'_>, next: &RunId) -> Result<(), redb::Error> {
    let Some(spec) = get::<JobSpec>(values, JOB)?.filter(|s| s.run_id != *next) else { return Ok(()) };
    let record = RunRecord {
        started: get(values, STARTED)?,
        checkpoint: get(values, CHECKPOINT)?,
        outcome: get(values, OUTCOME)?,
        until: since_1970().as_secs(),
        spec,
    };
    runs.insert(record.spec.run_id.as_str(), json(&record)?.as_slice())?;
    let earlier: Option<RunRecord> = get(runs, next.as_str())?;
    runs.remove(next.as_str())?;
    for key in [LIVE, STARTED, CHECKPOINT] {
        values.remove(key)?;
    }
    if let Some(started) = earlier.as_ref().and_then(|e| e.started.as_ref()) {
        insert(values, STARTED, started)?;
    }
    if let Some(checkpoint) = earlier.and_then(|e| e.checkpoint) {
        insert(values, CHECKPOINT, &checkpoint)?;
    }
    Ok(())
}

fn remove_waiting(queue: &mut Numbered<'_>, run_id: &RunId) -> Result<(), redb::Error> {
    let is_it = |bytes: &[u8]| serde_json::from_slice::<Queued>(bytes).is_ok_and(|w| w.run_id == *run_id);
    queue.retain(|_, bytes| !is_it(bytes))?;
    Ok(())
}

fn get<T: DeserializeOwned>(table: &Named<'_>, key: &str) -> Result<Option<T>, redb::Error> {
    let found = table.get(key)?;
    let parse = |bytes: &[u8]| serde_json::from_slice(bytes).map_err(|e| redb::Error::Io(e.into()));
    found.map(|v| parse(v.value())).transpose()
}

/// Before a record is written, and once it is durable.
const fn edges(persisted: &Persisted) -> (Failpoint, Failpoint) {
    match persisted {
        Persisted::Job(_) => (Failpoint::BeforeJournalJob, Failpoint::AfterJournalJob),
        Persisted::Formed(_) => (Failpoint::BeforeJournalFormed, Failpoint::AfterJournalFormed),
        Persisted::Started(_) => (Failpoint::BeforeJournalStarted, Failpoint::AfterJournalStarted),
        Persisted::Ended(_) => (Failpoint::BeforeJournalEnded, Failpoint::AfterJournalEnded),
        Persisted::Drain(_) => (Failpoint::BeforeJournalDrain, Failpoint::AfterJournalDrain),
        Persisted::Held(_) => (Failpoint::BeforeJournalHeld, Failpoint::AfterJournalHeld),
        Persisted::Checkpoint(_) => (Failpoint::BeforeJournalCheckpoint, Failpoint::AfterJournalCheckpoint),
        Persisted::Over(_) => (Failpoint::BeforeJournalOver, Failpoint::AfterJournalOver),
    }
}

fn insert(values: &mut Named<'_>, key: &'static str, value: &impl Serialize) -> Result<(), redb::Error> {
    values.insert(key, json(value)?.as_slice())?;
    Ok(())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|e| redb::Error::Io(e.into()))
}

fn journal_error(path: &Path, source: impl Into<redb::Error>) -> CoordinatorError {
    CoordinatorError::Journal { path: path.to_owned(), source: Box::new(source.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_coordinator_core::{Origin, Place, ProcessId};
    use mcl_types::WorkerName;

    fn record(generation: u64) -> GenerationRecord {
        let place =
            Place { worker: WorkerName::new("w1"), device: "cpu".to_owned(), process: ProcessId(generation) };
        GenerationRecord { generation: Generation::new(generation), places: vec![place] }
    }

    fn started(generation: u64) -> Started {
        Started {
            record: record(generation),
            store_address: "h:1".to_owned(),
            first: 4,
            origin: Origin::Checkpoint(4),
            rolled_back: None,
            last_checkpoint: Some(4),
        }
    }

    /// Found by chaos under load: a coordinator that was killed in its first milliseconds never started again.
    #[test]
    fn a_journal_whose_maker_died_is_made_anew_and_one_that_is_something_else_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coordinator.redb");
        let mut unfinished = vec![0; 73_728];
        unfinished[12] = 4;
        std::fs::write(&path, &unfinished).unwrap();
        assert!(is_free(dir.path()).unwrap());
        let (journal, term, found) = Journal::open(dir.path()).unwrap();
        assert_eq!((term, found), (Term::new(1), Found::default()));
        assert!(Journal::open(dir.path()).is_err(), "it is in use");
        drop(journal);
        assert_eq!(Journal::open(dir.path()).unwrap().1, Term::new(2));

        std::fs::write(&path, "somebody's notes").unwrap();
        assert!(is_free(dir.path()).is_err() && Journal::open(dir.path()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's notes");
    }

    #[test]
    fn every_opening_is_a_new_term_and_excludes_others() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, term, found) = Journal::open(dir.path()).unwrap();
        assert_eq!((term, found), (Term::new(1), Found::default()));
        let incarnation = journal.incarnation();
        let error = Journal::open(dir.path()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("another run is using {}", dir.path().display())), "{error}");
        drop(journal);
        let (journal, term, _) = Journal::open(dir.path()).unwrap();
        assert_eq!((term, journal.incarnation()), (Term::new(2), incarnation));
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Journal::open(other.path()).unwrap().0.incarnation(), incarnation);
    }

    #[test]
    fn records_outlive_the_coordinator() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _, _) = Journal::open(dir.path()).unwrap();
        journal.persist(&Persisted::Formed(record(3))).unwrap();
        journal.persist(&Persisted::Started(started(3))).unwrap();
        journal.persist(&Persisted::Drain(DrainFor::Regroup)).unwrap();
        journal.persist(&Persisted::Held(true)).unwrap();
        journal.persist(&Persisted::Checkpoint(5)).unwrap();
        drop(journal);
        let (journal, _, found) = Journal::open(dir.path()).unwrap();
        assert_eq!((found.started, found.live, found.held), (Some(started(3)), true, true));
        assert_eq!((found.drain, found.checkpoint), (Some(DrainFor::Regroup), Some(5)));
        journal.persist(&Persisted::Ended(Generation::new(3))).unwrap();
        journal.persist(&Persisted::Formed(record(4))).unwrap();
        drop(journal);
        let (journal, _, found) = Journal::open(dir.path()).unwrap();
        assert_eq!((&found.started, found.live, found.drain), (&Some(started(3)), false, None));
        assert_eq!(found.last_generation(), Generation::new(4));
        journal.persist(&Persisted::Started(started(4))).unwrap();
        journal.persist(&Persisted::Drain(DrainFor::Stop)).unwrap();
        journal.persist(&Persisted::Drain(DrainFor::Regroup)).unwrap();
        journal.persist(&Persisted::Ended(Generation::new(4))).unwrap();
        drop(journal);
        let (_, _, found) = Journal::open(dir.path()).unwrap();
        assert_eq!((found.live, found.drain), (false, Some(DrainFor::Stop)), "the job's own drain stands");
    }

    #[test]
    fn a_file_that_is_no_journal_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("coordinator.redb"), b"something else entirely").unwrap();
        let error = Journal::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("coordinator.redb"), "{error}");
    }
}
