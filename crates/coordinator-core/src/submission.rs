//! A job is handed in: new, the running one again, or one to be continued.

use crate::effect::{Effect, Persisted, ToWorker};
use crate::job::{JobSpec, PastRun, SubmitError};
use crate::state::{Job, Stage, Turn};

impl Turn<'_> {
    /// `past` is what is on record of a run that is not the last one.
    pub(crate) fn submit(&mut self, request: u64, spec: JobSpec, past: Option<PastRun>) {
        let result = match self.state.job.as_ref() {
            Some(job) if !matches!(job.stage, Stage::Over(_)) => is_running(job, &spec),
            last => match self.past_of(last, &spec, past) {
                Ok(past) => Ok(self.begin(spec, past)),
                Err(refused) => Err(refused),
            },
        };
        self.out.push(Effect::SubmitAnswered { request, result });
    }

    /// The run's past, where it has one; or why the job is not taken.
    fn past_of(
        &self,
        last: Option<&Job>,
        spec: &JobSpec,
        past: Option<PastRun>,
    ) -> Result<Option<PastRun>, SubmitError> {
        let past = match last.map(past_run) {
            Some(last) if last.spec.run_id == spec.run_id => Some(last),
            Some(last) if !self.state.settings.many_runs => {
                let (found, asked) = (last.spec.run_id, spec.run_id.clone());
                return Err(SubmitError::OtherRun { found, asked });
            }
            _ => past,
        };
        past.as_ref().map_or(Ok(()), |p| p.judge(spec))?;
        Ok(past)
    }

    /// Steps that stand already.
    fn begin(&mut self, mut spec: JobSpec, past: Option<PastRun>) -> u64 {
        if let Some(past) = &past {
            spec.initial = past.spec.initial;
        }
        self.out.push(Effect::Persist(Persisted::Job(spec.clone())));
        let past = past.unwrap_or_else(|| PastRun::on_record(spec.clone(), 0, None, false));
        let committed = past.committed;
        self.state.job = Some(Job::continued(PastRun { spec, ..past }, self.now));
        let sessions: Vec<_> = self.state.workers.values().filter_map(|w| w.session).collect();
        for session in sessions {
            self.out.push(Effect::Send { session, message: ToWorker::Prepare });
        }
        committed
    }
}

fn past_run(job: &Job) -> PastRun {
    PastRun {
        spec: job.spec.clone(),
        committed: job.committed,
        last_checkpoint: job.last_checkpoint,
        fresh: job.fresh,
    }
}

/// Steps that the running job has committed, where it is this one.
fn is_running(job: &Job, spec: &JobSpec) -> Result<u64, SubmitError> {
    let (found, run_id) = (job.spec.run_id.clone(), spec.run_id.clone());
    if found != run_id {
        return Err(SubmitError::Busy { running: found });
    }
    if job.spec.job_digest != spec.job_digest || job.spec.schedule != spec.schedule {
        return Err(SubmitError::Changed { run_id });
    }
    job.spec.judge_initial(spec)?;
    Ok(job.committed)
}
