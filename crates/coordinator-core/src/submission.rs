//! A job is handed in: new, the running one again, or one to be continued.

use crate::effect::{Effect, Persisted, ToWorker};
use crate::job::{JobSpec, SubmitError};
use crate::state::{Job, Stage, Turn};

impl Turn<'_> {
    pub(crate) fn submit(&mut self, request: u64, spec: JobSpec) {
        let result = self.judge_submission(&spec);
        if let Ok(committed) = result {
            let running = self.state.job.as_ref().is_some_and(|j| !matches!(j.stage, Stage::Over(_)));
            if !running {
                let before = self.state.job.as_ref();
                let last_checkpoint = before.and_then(|j| j.last_checkpoint);
                let fresh = before.is_none_or(|j| j.fresh);
                self.out.push(Effect::Persist(Persisted::Job(spec.clone())));
                let mut job = Job::new(spec, committed, self.now);
                job.last_checkpoint = last_checkpoint;
                job.fresh = fresh;
                self.state.job = Some(job);
                let sessions: Vec<_> = self.state.workers.values().filter_map(|w| w.session).collect();
                for session in sessions {
                    self.out.push(Effect::Send { session, message: ToWorker::Prepare });
                }
            }
        }
        self.out.push(Effect::SubmitAnswered { request, result });
    }

    /// Steps already committed, or why the job is not taken.
    fn judge_submission(&self, spec: &JobSpec) -> Result<u64, SubmitError> {
        let Some(job) = self.state.job.as_ref() else { return Ok(0) };
        let committed = job.committed;
        let (found, run_id) = (job.spec.run_id.clone(), spec.run_id.clone());
        if !matches!(job.stage, Stage::Over(_)) {
            if found != run_id {
                return Err(SubmitError::Busy { running: found });
            }
            if job.spec.job_digest != spec.job_digest || job.spec.schedule != spec.schedule {
                return Err(SubmitError::Changed { run_id });
            }
            return Ok(committed);
        }
        if found != run_id {
            return Err(SubmitError::OtherRun { found, asked: run_id });
        }
        if committed > 0 && job.spec.plan_digest != spec.plan_digest {
            return Err(SubmitError::OtherPlan { run_id, committed });
        }
        if committed > 0 && job.spec.job_digest != spec.job_digest {
            return Err(SubmitError::OtherJob { run_id, committed });
        }
        if committed > spec.total_steps() {
            return Err(SubmitError::BeyondEnd { run_id, committed, total: spec.total_steps() });
        }
        Ok(committed)
    }
}
