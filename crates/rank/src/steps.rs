//! The training loop of one generation.

use crate::feed::{fed_samples, lane_report};
use crate::generation::{Held, Member, Process};
use crate::memory::Peak;
use crate::records::samples_of;
use crate::saving::{Save, Saving};
use anyhow::{Context, Result};
use mcl_config::Job;
use mcl_failpoint::Failpoint;
use mcl_job::Evaluations;
use mcl_plan::Schedule;
use mcl_proto::v1::{self, rank_event::Event};
use mcl_train::{Doing, Halt, LearningRate, Momentum, Rates, StepInput, StepOutcome};
use mcl_types::{Step, Tier};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tch::Device;

/// Ranks compare digests every so many steps.
const DIGEST_EVERY: u64 = 100;
/// A collective may wait so many times the median step.
const STEPS_OF_PATIENCE: u32 = 10;
/// An upload may hold up the step that the next snapshot is due after until it is so old: many times what one takes
/// where all is well, a busy disk and a store's own second try included. Never longer than half a collective may
/// wait: the peers may be in the step already.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(10);
/// Steps that the median is taken of.
const RECENT: usize = 21;

/// Learning rate and momentum of the job.
struct Schedules {
    lr: LearningRate,
    momentum: Momentum,
}

impl Schedules {
    fn new(job: &Job, schedule: Schedule) -> Self {
        let (o, total) = (job.optimizer(), job.schedule_steps(schedule.steps_per_epoch()));
        Self {
            lr: LearningRate {
                base: o.lr,
                min: o.min_lr,
                warmup_steps: o.warmup_steps,
                warmup_ratio: o.warmup_ratio,
                total,
            },
            momentum: Momentum { base: job.method().base_momentum, end: job.method().end_momentum, total },
        }
    }

    fn at(&self, step: Step) -> Rates {
        Rates { lr: self.lr.at(step.get()), momentum: self.momentum.at(step.get()) }
    }
}

/// Durations of the generation's last steps.
#[derive(Default)]
struct Pace(VecDeque<Duration>);

impl Pace {
    fn note(&mut self, step: Duration) {
        if self.0.len() == RECENT {
            self.0.pop_front();
        }
        self.0.push_back(step);
    }

    fn median(&self) -> Duration {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

/// The loop's own parts.
struct Loop<'a> {
    member: &'a Member,
    rates: Schedules,
    pace: Pace,
    timeout: Duration,
    saving: Saving,
    last_staged: Option<u64>,
}

/// What all ranks know alike after a step.
struct Agreed {
    halt: Halt,
    /// Some rank was still uploading when it began the step.
    uploading: bool,
}

impl Process {
    /// Steps from `first` on until the job's last one, or until a halt is agreed upon. `stored` is the
    /// checkpoint that the state was loaded from.
    pub(crate) fn run_steps(&mut self, member: &Member, first: Step, stored: Option<u64>) -> Result<()> {
        let total = self.schedule.total_steps();
        let often = self.job.checkpoint();
        let evaluations = Evaluations::of(&self.job, self.schedule);
        let mut turn = Loop {
            member,
            rates: Schedules::new(&self.job, self.schedule),
            pace: Pace::default(),
            timeout: self.first_timeout(),
            saving: Saving::new(often.every_steps, often.memory_every_steps, evaluations),
            last_staged: stored,
        };
        let mut step = first;
        while step.get() < total {
            let uploading = self.still_uploading(&turn, step.next())?;
            let agreed = self.one(&mut turn, step, uploading)?;
            if step == first {
                // Only now the state has all its tensors: moments come with the first update.
                self.snapshots.prepare(member, &self.trainer.state()?)?;
                Peak::log(self.device);
            }
            step = step.next();
            let last = agreed.halt == Halt::Drain || step.get() == total;
            self.save(&mut turn, step, last, agreed.uploading)?;
            if step.get() < total && agreed.halt != Halt::No {
                return self.halt(member, step, agreed.halt);
            }
        }
        self.activity.set(Doing::Checkpoint, None);
        // Resumed at the very end: the checkpoint that was loaded is the last one.
        if turn.last_staged != Some(total) {
            self.stage(&mut turn, step)?;
        }
        self.snapshots.finish_or_fail(&member.lifeline)?;
        Peak::log(self.device);
        self.trainer.part();
        member.reporter.send(Event::Finished(v1::Finished { step: step.get() }));
        Ok(())
    }

    fn halt(&mut self, member: &Member, step: Step, halt: Halt) -> Result<()> {
        let at = step.get();
        if halt == Halt::Drain {
            self.snapshots.finish_or_fail(&member.lifeline)?;
        }
        self.trainer.part();
        member.reporter.send(match halt {
            Halt::Drain => Event::Drained(v1::Drained { step: at }),
            _ => Event::Paused(v1::Paused { step: at }),
        });
        Ok(())
    }

    /// What this rank says of its upload in the step that makes it `done` steps.
    fn still_uploading(&mut self, turn: &Loop<'_>, done: Step) -> Result<bool> {
        let due = turn.saving.is_due(done.get());
        let patience = if due { UPLOAD_PATIENCE.min(turn.timeout / 2) } else { Duration::ZERO };
        if due {
            self.activity.set(Doing::Checkpoint, None);
        }
        self.snapshots.still_uploading(&turn.member.lifeline, patience)
    }

    /// After `step` steps: saves what is due. `last`: training stops here.
    fn save(&mut self, turn: &mut Loop<'_>, step: Step, last: bool, uploading: bool) -> Result<()> {
        let save = turn.saving.after(step.get(), last, uploading);
        if save == Save::Durable || step.get().is_multiple_of(DIGEST_EVERY) {
            self.activity.set(Doing::Checkpoint, None);
            self.trainer.check_agreement(step)?;
        }
        if save == Save::Durable && last {
            // Nothing is collective any more: from here on each rank may take as long as its uploads need.
            self.trainer.part();
        }
        match save {
            Save::Nothing => {}
            Save::Skip => self.snapshots.skip(step),
            Save::InMemory => {
                self.activity.set(Doing::Checkpoint, None);
                self.snapshots.stage(turn.member, step, Tier::Memory, &self.trainer.state()?)?;
            }
            Save::Durable => self.stage(turn, step)?,
        }
        Ok(())
    }

    fn stage(&mut self, turn: &mut Loop<'_>, step: Step) -> Result<()> {
        turn.last_staged = Some(step.get());
        self.snapshots.stage(turn.member, step, Tier::Durable, &self.trainer.state()?)
    }

    /// One step; what all ranks agreed on in it.
    fn one(&mut self, turn: &mut Loop<'_>, step: Step, uploading: bool) -> Result<Agreed> {
        let started = Instant::now();
        self.activity.set(Doing::Data, Some(step));
        let feed = self.feed.as_mut().context("no loader")?;
        let fed = feed.take(step, || turn.member.lifeline.is_aborted())?;
        let data_wait = started.elapsed();
        let rates = turn.rates.at(step);
        let halt = self.orders.halt();
        let input = StepInput { step, lanes: &fed.lanes, rates, halt, saving: uploading };
        let outcome = self.trainer.step(&input)?;
        let trained_in = turn.member.token.generation.get();
        self.held = Some(Held { applied: step.next(), trained_in });
        mcl_failpoint::pass(Failpoint::AfterUpdateBeforeReport);
        let epoch = self.schedule.locate(step).epoch;
        if self.orders.granted_epochs() <= epoch.get() {
            // The plan is a pure function, so work goes on; a coordinator that is away grants later.
            tracing::debug!(%epoch, "epoch not yet granted");
        }
        let StepOutcome { lane_losses, notes, grad_norm, skipped, halt, saving, times } = outcome;
        let own = turn.member.layout.lanes_of(turn.member.rank);
        let mut lanes = Vec::with_capacity(lane_losses.len());
        for ((lane, losses), notes) in (0_u32..).zip(&lane_losses).zip(&notes) {
            let mine = fed.samples.iter().find(|(l, _)| *l == lane);
            let samples = mine.map_or_else(|| samples_of(notes, &self.dataset), |(_, s)| fed_samples(s));
            lanes.push(lane_report(lane, losses, samples));
        }
        let record = v1::StepReport {
            step: step.get(),
            epoch: epoch.get(),
            lanes,
            learning_rate: rates.lr,
            momentum: rates.momentum,
            grad_norm,
            skipped,
            step_seconds: started.elapsed().as_secs_f64(),
            data_wait_seconds: data_wait.as_secs_f64(),
            forward_seconds: times.forward.as_secs_f64(),
            backward_seconds: times.backward.as_secs_f64(),
            collective_seconds: times.collective.as_secs_f64(),
        };
        let lanes = record.lanes.iter().filter(|l| own.contains(&l.lane)).cloned().collect();
        let report = v1::StepReport { lanes, ..record };
        self.records.note(trained_in, record);
        turn.member.reporter.send(Event::Step(report));
        feed.applied();
        self.adapt_timeout(turn, started.elapsed())?;
        Ok(Agreed { halt, uploading: saving })
    }

    /// A collective may wait for the slowest rank: three times the silence after which a machine is lost, or ten
    /// median steps, whichever is longer.
    fn adapt_timeout(&mut self, turn: &mut Loop<'_>, step: Duration) -> Result<()> {
        turn.pace.note(step);
        let wanted =
            (self.job.elastic().lost_after * 3).max(turn.pace.median().saturating_mul(STEPS_OF_PATIENCE));
        // With NCCL no wait blocks: its own deadline stays, and the lifeline ends what hangs.
        if self.device == Device::Cpu && wanted.abs_diff(turn.timeout) > turn.timeout / 4 {
            self.trainer.set_timeout(wanted)?;
            turn.timeout = wanted;
        }
        Ok(())
    }
}
