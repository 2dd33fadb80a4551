//! Jobs handed in: one is run, others wait for their turn, first in, first out.
//!
//! Only a coordinator with a folder of runs has a queue. Invariants: whoever was told that a job waits finds it in
//! the journal; a job leaves the queue in the transaction that makes it the one that is run. Left out: whether
//! a run may be continued (`mcl-coordinator-core`).

use crate::clock::since_1970;
use crate::config::JobFacts;
use crate::error::{CoordinatorError, JobOutcome};
use crate::journal::RunRecord;
use crate::rim::{Offer, Rim};
use crate::run_dir::RunDir;
use crate::service::{Input, Rejected};
use mcl_coordinator_core::{Event, PastRun, Phase};
use mcl_proto::v1;
use mcl_types::{Digest, RunId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::oneshot;

/// A job that waits for its turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Queued {
    pub(crate) run_id: RunId,
    pub(crate) job_toml: String,
    pub(crate) initial: Option<Digest>,
    /// Seconds since 1970.
    pub(crate) since: u64,
}

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) run_id: RunId,
    pub(crate) facts: JobFacts,
    pub(crate) initial: Option<Digest>,
}

/// A job that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Submitted {
    /// Steps that stand already.
    pub(crate) committed: u64,
    /// Jobs that come before it; 0: it is the one that is run.
    pub(crate) jobs_before: u32,
}

pub(crate) type Answer = oneshot::Sender<Result<Submitted, Rejected>>;

impl Rim {
    /// A job is handed in: it is run now, or waits.
    pub(crate) fn submit(
        &mut self,
        submission: Submission,
        answer: Answer,
    ) -> Result<Option<JobOutcome>, CoordinatorError> {
        let current = self.state.run_id().filter(|_| self.is_busy());
        let others = current.is_some_and(|c| *c != submission.run_id);
        let in_line = current.is_none() && (!self.queue.is_empty() || self.offer.is_some());
        if self.state.many_runs() && (others || in_line) {
            let result = self.enqueue(submission)?;
            let _ = answer.send(result);
            return Ok(None);
        }
        self.offer(submission, Some(answer))
    }

    /// Whether a job is run.
    fn is_busy(&self) -> bool {
        self.state.outcome().is_none() && self.running.is_some()
    }

    fn enqueue(&mut self, submission: Submission) -> Result<Result<Submitted, Rejected>, CoordinatorError> {
        let Submission { run_id, facts, initial } = submission;
        let past = match self.past(&run_id) {
            Ok(past) => past,
            Err(error) => return Ok(Err(Rejected::Job(error.to_string()))),
        };
        let committed = past.as_ref().map_or(0, |(_, p)| p.committed);
        let known = self.queue.iter().position(|w| w.run_id == run_id);
        let place = match known.and_then(|at| Some((at, self.queue.get(at)?))) {
            Some((at, same)) if same.job_toml == facts.job_toml && same.initial == initial => at,
            Some(_) => return Ok(Err(Rejected::Waiting { run_id })),
            None => {
                let spec = facts.spec(run_id.clone(), initial).map_err(Rejected::Job);
                let fits = spec.and_then(|s| past.map_or(Ok(()), |(_, p)| Ok(p.judge(&s)?)));
                if let Err(refused) = fits {
                    return Ok(Err(refused));
                }
                let waiting =
                    Queued { run_id, job_toml: facts.job_toml, initial, since: since_1970().as_secs() };
                self.journal.enqueue(&waiting)?;
                tracing::info!(run = %waiting.run_id, "job waits for its turn");
                self.queue.push_back(waiting);
                self.queue.len() - 1
            }
        };
        let jobs_before = u32::try_from(place).unwrap_or(u32::MAX).saturating_add(u32::from(self.is_busy()));
        Ok(Ok(Submitted { committed, jobs_before }))
    }

    /// Puts a job before the core.
    fn offer(
        &mut self,
        submission: Submission,
        answer: Option<Answer>,
    ) -> Result<Option<JobOutcome>, CoordinatorError> {
        let Submission { run_id, facts, initial } = submission;
        let spec = match facts.spec(run_id.clone(), initial) {
            Ok(spec) => spec,
            Err(reason) => {
                self.refuse(&run_id, answer, Rejected::Job(reason));
                return Ok(None);
            }
        };
        let (run_dir, past) = match self.past(&run_id) {
            Ok(Some((run_dir, past))) => (Some(run_dir), Some(past)),
            Ok(None) => (None, None),
            Err(error) => {
                self.refuse(&run_id, answer, Rejected::Job(error.to_string()));
                return Ok(None);
            }
        };
        self.requests += 1;
        let request = self.requests;
        self.offer = Some(Offer { request, run_id, facts, run_dir, answer });
        self.apply(Event::Submit { request, spec, past: past.map(Box::new) })
    }

    /// The directory of a run that was run here before the last one, and what is on record of it.
    fn past(&self, run_id: &RunId) -> Result<Option<(RunDir, PastRun)>, CoordinatorError> {
        if !self.state.many_runs() || self.state.run_id() == Some(run_id) {
            return Ok(None);
        }
        let Some(record) = self.runs.iter().find(|r| r.spec.run_id == *run_id).cloned() else {
            let dir = self.home(run_id);
            if dir.exists() && !dir.is_dir() {
                return Err(CoordinatorError::Taken { path: dir });
            }
            // Whose steps those are is in another journal: beginning anew would overwrite them.
            let foreign = RunDir::is_used(&dir)?;
            return if foreign { Err(CoordinatorError::Foreign { dir }) } else { Ok(None) };
        };
        let RunRecord { spec, started, checkpoint, .. } = record;
        let last = started.as_ref().map(|s| (s, spec.schedule));
        let (run_dir, committed) = RunDir::open(&self.home(run_id), last)?;
        Ok(Some((run_dir, PastRun::on_record(spec, committed, checkpoint, started.is_some()))))
    }

    /// Where no job is run and one waits, it is read: away from the loop, since opening a dataset takes its time.
    pub(crate) fn next_in_line(&mut self) {
        if !self.state.many_runs() || self.reading || self.is_busy() || self.offer.is_some() {
            return;
        }
        let Some(next) = self.queue.front().cloned() else { return };
        self.reading = true;
        let (interpret, answers) = (Arc::clone(&self.interpret), self.answers.clone());
        tokio::task::spawn_blocking(move || {
            let facts = interpret(&next.job_toml).map(Box::new);
            let _ = answers.blocking_send(Input::Read { run_id: next.run_id, facts });
        });
    }

    /// The job at the head of the queue was read.
    pub(crate) fn read(
        &mut self,
        run_id: &RunId,
        facts: Result<Box<JobFacts>, String>,
    ) -> Result<Option<JobOutcome>, CoordinatorError> {
        self.reading = false;
        // It may have been cancelled meanwhile.
        let Some(waiting) = self.queue.pop_front_if(|w| w.run_id == *run_id) else { return Ok(None) };
        let over = match facts {
            Ok(facts) => self.offer(
                Submission { run_id: waiting.run_id, facts: *facts, initial: waiting.initial },
                None,
            )?,
            Err(reason) => {
                self.refuse(run_id, None, Rejected::Job(reason));
                None
            }
        };
        // Where it was taken this was done in the same transaction.
        if !self.is_busy() {
            self.journal.dequeue(run_id)?;
        }
        Ok(over)
    }

    /// Says that a job is not taken: to who asked, or in the status where it had waited.
    pub(crate) fn refuse(&mut self, run_id: &RunId, answer: Option<Answer>, refused: Rejected) {
        tracing::warn!(run = %run_id, %refused, "job refused");
        match answer {
            Some(answer) => drop(answer.send(Err(refused))),
            None => {
                let (run_id, outcome) = (run_id.to_string(), format!("could not be run: {refused}"));
                self.refused.retain(|r| r.run_id != run_id);
                let phase = Phase::Failed.to_string();
                self.refused.push(v1::PastRun { run_id, outcome, until: since_1970().as_secs(), phase });
            }
        }
    }

    /// The jobs that wait, in their order.
    pub(crate) fn waiting(&self) -> Vec<v1::QueuedJob> {
        let told = |w: &Queued| v1::QueuedJob { run_id: w.run_id.to_string(), since: w.since };
        self.queue.iter().map(told).collect()
    }

    /// How the jobs before the last one ended, oldest first.
    pub(crate) fn past_runs(&self) -> Vec<v1::PastRun> {
        let told = |r: &RunRecord| v1::PastRun {
            run_id: r.spec.run_id.to_string(),
            outcome: r.outcome.as_ref().map_or_else(|| "left behind".to_owned(), ToString::to_string),
            until: r.until,
            phase: r.outcome.as_ref().map(|o| o.phase().to_string()).unwrap_or_default(),
        };
        let mut all: Vec<v1::PastRun> = self.runs.iter().map(told).chain(self.refused.clone()).collect();
        all.sort_by_key(|p| p.until);
        all
    }

    /// Stops the job that is run, or takes one that waits out of the queue.
    pub(crate) fn cancel(
        &mut self,
        run_id: Option<RunId>,
    ) -> Result<(Result<(), Rejected>, Option<JobOutcome>), CoordinatorError> {
        let is_last = run_id.as_ref().is_none_or(|r| self.state.run_id() == Some(r));
        let Some(run_id) = run_id.filter(|_| !is_last || !self.is_busy()) else {
            return Ok((Ok(()), self.apply(Event::Cancel)?));
        };
        let Some(at) = self.queue.iter().position(|w| w.run_id == run_id) else {
            let phase = is_last.then(|| self.state.phase(self.started.elapsed()).0);
            return Ok((Err(Rejected::NoSuchJob { run_id, phase }), None));
        };
        self.journal.dequeue(&run_id)?;
        self.queue.remove(at);
        Ok((Ok(()), None))
    }
}
