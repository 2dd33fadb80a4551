//! Effects, performed.

use crate::border::Plans;
use crate::checkpoints::{Ask, Checkpoints, Speaker};
use crate::config::{JobFacts, home};
use crate::error::{CoordinatorError, JobOutcome};
use crate::queue::Submitted;
use crate::rim::{Rim, Running};
use crate::run_dir::RunDir;
use crate::wire::Context;
use mcl_coordinator_core::{Effect, Persisted, SessionId, ToWorker, Warning};
use mcl_failpoint::{Failpoint, pass};
use mcl_plan::Schedule;
use mcl_plan::ledger::Record;
use mcl_types::{Epoch, FencingToken, Retention, RunId};
use std::path::PathBuf;

impl Rim {
    /// Does one thing, of this time; says how the job ended, where this ends it.
    pub(crate) fn perform(
        &mut self,
        effect: Effect,
        time: f64,
    ) -> Result<Option<JobOutcome>, CoordinatorError> {
        match effect {
            Effect::Persist(persisted) => self.persist(&persisted)?,
            Effect::Send { session, message } => self.send(session, message),
            Effect::SendOnceDurable { session, message } => self.send_once_durable(session, message),
            Effect::Close { session } => drop(self.sessions.remove(&session)),
            Effect::Commit { record, metrics } => {
                let recounted = record.generation != self.state.generation();
                let (run_dir, schedule) = self.current()?;
                run_dir.commit(record, &metrics, time, schedule)?;
                pass(if recounted { Failpoint::RecountAppended } else { Failpoint::LedgerAppended });
                self.sync_soon();
            }
            Effect::AppendLedger(record) => {
                let (run_dir, schedule) = self.current()?;
                run_dir.append(&record, schedule)?;
                match record {
                    Record::Resumed(_) => pass(Failpoint::ResumedAppended),
                    Record::Interrupted(_) => pass(Failpoint::InterruptedAppended),
                    Record::Committed(_) | Record::RolledBack(_) => {}
                }
                self.sync_soon();
            }
            Effect::RollBack { to, record } => {
                let (run_dir, schedule) = self.current()?;
                run_dir.roll_back(to, &record, schedule)?;
            }
            Effect::FindCheckpoints { at_most } => self.ask(Ask::Find { at_most }),
            Effect::CheckReign => self.ask(Ask::CheckReign),
            Effect::CommitCheckpoint { step, generation, slices, tier } => {
                self.sync()?;
                let token = FencingToken { term: self.state.term(), generation };
                let (meta_json, retention) = self.meta(step, token);
                pass(Failpoint::BeforeCommitAsked);
                self.ask(Ask::Commit { step, token, slices, meta_json, retention, tier });
            }
            Effect::SubmitAnswered { request, result } => {
                let Some(offer) = self.offer.take_if(|o| o.request == request) else { return Ok(None) };
                pass(Failpoint::BeforeSubmitAnswer);
                match (result, offer.answer) {
                    (Ok(committed), Some(answer)) => {
                        let _ = answer.send(Ok(Submitted { committed, jobs_before: 0 }));
                    }
                    (Ok(_), None) => {}
                    (Err(refused), answer) => self.refuse(&offer.run_id, answer, refused.into()),
                }
            }
            Effect::Warn(warning) => warn(&warning),
            Effect::Over(outcome) => {
                tracing::info!(%outcome, "job over");
                if self.state.many_runs() {
                    self.sync()?;
                } else {
                    return Ok(Some(JobOutcome::from(&outcome)));
                }
            }
        }
        Ok(None)
    }

    fn persist(&mut self, persisted: &Persisted) -> Result<(), CoordinatorError> {
        if let Persisted::Job(_) = persisted {
            self.take_up()?;
        }
        // A generation's first step counts on the ledger before it, and its ranks forget what they are told is
        // committed.
        if let Persisted::Over(_) | Persisted::Formed(_) | Persisted::Started(_) = persisted {
            self.sync()?;
        }
        self.journal.persist(persisted)?;
        if let Persisted::Job(_) = persisted {
            self.runs = self.journal.runs()?;
        }
        Ok(())
    }

    /// The job that is offered becomes the one that is run, in its own directory.
    fn take_up(&mut self) -> Result<(), CoordinatorError> {
        self.sync()?;
        let home = self.offer.as_ref().map(|offer| self.home(&offer.run_id));
        let (Some(offer), Some(home)) = (&mut self.offer, home) else { return Ok(()) };
        if let Some(run_dir) = offer.run_dir.take() {
            self.run_dir = Some(run_dir);
        } else if self.run_dir.as_ref().is_none_or(|d| d.root() != home) {
            self.run_dir = Some(RunDir::open(&home, None)?.0);
        }
        let (run_id, facts) = (offer.run_id.clone(), offer.facts.clone());
        self.refused.retain(|r| r.run_id != run_id.as_str());
        if let Some(run_dir) = &self.run_dir {
            run_dir.write_job(&facts.job_toml, &facts.plan)?;
        }
        self.adopt(run_id, facts);
        Ok(())
    }

    /// Where the directory of a run is.
    pub(crate) fn home(&self, run_id: &RunId) -> PathBuf {
        home(&self.root, self.state.many_runs(), run_id)
    }

    /// Takes a job as the one that is run.
    pub(crate) fn adopt(&mut self, run_id: RunId, facts: JobFacts) {
        let plans = Plans::new(facts.plan.clone(), facts.schedule);
        let term = self.state.term();
        self.adoption += 1;
        let speaker = Speaker { run_id: run_id.clone(), term, incarnation: self.journal.incarnation() };
        let identity = self.identity.clone();
        let checkpoints =
            Checkpoints::start(&self.checkpoint_url, identity, speaker, self.adoption, self.answers.clone());
        self.running = Some(Running { run_id, facts, plans, checkpoints });
        self.tell_adoption();
    }

    fn current(&mut self) -> Result<(&mut RunDir, Schedule), CoordinatorError> {
        let schedule = self.running.as_ref().map(|r| r.facts.schedule);
        self.run_dir.as_mut().zip(schedule).ok_or_else(|| CoordinatorError::Job {
            path: RunDir::job_path(&self.root),
            reason: "a step was committed without a job".to_owned(),
        })
    }

    fn ask(&self, ask: Ask) {
        if let Some(running) = &self.running {
            running.checkpoints.ask(ask);
        }
    }

    /// What a checkpoint says of itself.
    fn meta(&self, step: u64, token: FencingToken) -> (String, Retention) {
        let Some(running) = &self.running else { return ("{}".to_owned(), Retention::ALL) };
        let facts = &running.facts;
        let position = facts.schedule.locate(mcl_types::Step::new(step));
        let meta = serde_json::json!({
            "run_id": running.run_id.as_str(),
            "step": step,
            "epoch": position.epoch,
            "step_in_epoch": position.step_in_epoch,
            "total_steps": facts.schedule.total_steps(),
            "lanes": facts.plan.lanes,
            "images_per_lane": facts.plan.images_per_lane,
            "seed": facts.plan.seed,
            "dataset_digest": facts.plan.dataset_digest,
            "job_digest": facts.job_digest,
            "term": token.term,
            "generation": token.generation,
        });
        (meta.to_string(), facts.retention)
    }

    /// Of several acknowledgements only the last one matters.
    fn send_once_durable(&mut self, session: SessionId, message: ToWorker) {
        if !self.is_dirty() {
            return self.send(session, message);
        }
        if matches!(message, ToWorker::Committed { .. }) {
            self.acknowledging.insert(session, message);
        } else {
            self.once_durable.push((session, message));
        }
        self.sync_soon();
    }

    /// Sends to a stream; one that is gone or that does not read is dropped.
    pub(crate) fn send(&mut self, session: SessionId, message: ToWorker) {
        let Some(to) = self.sessions.get(&session) else { return };
        let plan = match (&message, &mut self.running) {
            (ToWorker::Grant { epoch, .. }, Some(running)) => running.plans.of(Epoch::new(*epoch)).ok(),
            _ => None,
        };
        let context = Context {
            term: self.state.term(),
            heartbeat_interval_ms: millis(self.tempo),
            lost_after_ms: millis(self.state.lost_after()),
            checkpoint_url: &self.checkpoint_url,
            run_id: self.running.as_ref().map_or("", |r| r.run_id.as_str()),
            advertise: &to.advertise,
            facts: self.running.as_ref().map(|r| &r.facts),
            plan: plan.as_deref(),
        };
        if to.outgoing.try_send(Ok(context.response(message))).is_err() {
            tracing::warn!(session = session.0, "a worker does not read what it is sent: stream ended");
            self.sessions.remove(&session);
        }
    }
}

pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn warn(warning: &Warning) {
    match warning {
        Warning::GenerationEnded { generation, cause } => {
            tracing::warn!(generation = generation.get(), %cause, "generation ended");
        }
        other => tracing::warn!(reason = %other, "coordinator"),
    }
}
