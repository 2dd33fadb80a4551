//! Checkpoints: made visible once all slices are staged and all steps before them are committed.

use crate::effect::{Effect, Persisted, ToWorker, Warning};
use crate::generation::{DrainFor, Live, Member};
use crate::reason::{EndCause, Outcome};
use crate::state::{Job, Stage, Turn};
use mcl_plan::ledger::{Interrupted, Record};
use mcl_types::{Rank, Step, Tier};

/// What has become of a generation whose ranks may all stand still.
enum Parked {
    /// Something is still on its way.
    NotYet,
    /// Ranks stand at different steps.
    Apart(Rank, u64, u64),
    /// The checkpoint that they wait for will not come.
    Refused(u64, String),
    /// All stand at this step, and it is safe.
    At(u64),
}

impl Turn<'_> {
    /// Asks for the oldest complete checkpoint to be made visible; one at a time.
    pub(crate) fn commit_checkpoint(&mut self) {
        let Some(job) = self.state.job.as_mut() else { return };
        let Stage::Live(live) = &mut job.stage else { return };
        if job.committing.is_some() {
            return;
        }
        let world = live.layout.world() as usize;
        let ready = live
            .staged
            .range(..=job.committed)
            .find(|(_, s)| s.ranks.len() == world)
            .map(|(step, s)| (*step, s.slices, s.tier));
        if let Some((step, slices, tier)) = ready {
            live.staged.retain(|s, _| *s > step);
            job.committing = Some(step);
            job.committing_to = tier;
            let generation = live.generation;
            self.out.push(Effect::CommitCheckpoint { step, generation, slices, tier });
        }
    }

    pub(crate) fn checkpoint_result(&mut self, step: u64, result: Result<String, String>) {
        let Some(job) = self.state.job.as_mut().filter(|j| j.committing == Some(step)) else { return };
        job.committing = None;
        match result {
            Ok(digest) => {
                // What is only in memory is found when it is needed; nothing may rest on it.
                if job.committing_to == Tier::Durable {
                    job.last_checkpoint = job.last_checkpoint.max(Some(step));
                    self.out.push(Effect::Persist(Persisted::Checkpoint(step)));
                }
                if let Some(generation) = self.state.live().map(|l| l.generation) {
                    self.broadcast(&ToWorker::CheckpointCommitted { generation, step, digest });
                }
            }
            Err(reason) => {
                if let Stage::Live(live) = &mut job.stage
                    && job.committing_to == Tier::Durable
                {
                    live.refused.insert(step, reason.clone());
                }
                self.out.push(Effect::Warn(Warning::CheckpointRefused { step, reason }));
            }
        }
    }

    /// Once all ranks stand still at a step whose checkpoint is visible: the job is done, interrupted, or
    /// goes on with more devices.
    pub(crate) fn finish_if_parked(&mut self) {
        let Some(job) = self.state.job.as_ref() else { return };
        let Stage::Live(live) = &job.stage else { return };
        let stop = job.drain || live.drain == Some(DrainFor::Stop);
        // A pause for another membership says nothing of the job: it goes on, and stops later.
        let stop = stop && live.drain != Some(DrainFor::Regroup);
        let total = job.spec.total_steps();
        match parked(job, live) {
            Parked::NotYet => {}
            Parked::Apart(rank, found, expected) => {
                let Some(worker) = live.place(rank).map(|p| p.worker.clone()) else { return };
                let what = format!("it stopped after step {found}, rank 0 after step {expected}");
                self.end_generation(EndCause::OutOfLine { rank, worker, what });
            }
            Parked::Refused(step, reason) => {
                self.end_generation(EndCause::CheckpointRefused { step, reason });
            }
            Parked::At(step) => {
                let safe = job.last_checkpoint == Some(step);
                if step == total && safe {
                    self.close_generation();
                    self.over(Outcome::Done { steps: total });
                } else if stop && safe {
                    self.close_generation();
                    self.interrupt();
                } else {
                    self.regroup();
                }
            }
        }
    }

    /// The job ends here and can be continued.
    pub(crate) fn interrupt(&mut self) {
        let Some(step) = self.state.job.as_ref().map(|j| j.last_checkpoint.unwrap_or(0)) else { return };
        self.out.push(Effect::AppendLedger(Record::Interrupted(Interrupted { step: Step::new(step) })));
        self.over(Outcome::Interrupted { step });
    }
}

fn parked(job: &Job, live: &Live) -> Parked {
    let total = job.spec.total_steps();
    let Some(at) = live.members.first().and_then(|m| m.parked_at(total)) else { return Parked::NotYet };
    for (rank, member) in live.ranks().zip(&live.members) {
        match member.parked_at(total) {
            None => return Parked::NotYet,
            Some(step) if step != at => return Parked::Apart(rank, step, at),
            Some(_) => {}
        }
    }
    if let Some(reason) = live.refused.get(&at) {
        return Parked::Refused(at, reason.clone());
    }
    let safe = job.last_checkpoint == Some(at);
    let kept = live.members.iter().all(|m| matches!(m, Member::Paused(_)));
    if job.committed >= at && (safe || kept) {
        return Parked::At(at);
    }
    Parked::NotYet
}
