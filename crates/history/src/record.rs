//! What is remembered of a run: a fold over what happens.
//!
//! Pure: the same happenings give the same record. Everything in it has a bound. Left out: reading the rows of
//! steps before the coordinator's start (`chronicle.rs`), which come in as happenings too.

use crate::evaluation::Evaluation;
use crate::happening::{Draining, Happening, Run, What};
use crate::history::History;
use crate::row::Row;
use serde::Serialize;
use std::collections::VecDeque;

/// Newest generations that are remembered.
const GENERATIONS: usize = 200;
/// Newest checkpoints that are remembered.
const CHECKPOINTS: usize = 200;
/// Newest evaluations that are remembered.
const EVALUATIONS: usize = 500;
/// Newest rows that the pace is taken from, and how old they may be in seconds.
const PACE: (usize, f64) = (200, 120.0);

/// A generation, as a person is told of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Generation {
    /// Its number.
    pub generation: u64,
    /// Its machines.
    pub workers: u32,
    /// Its ranks; none where only its rows are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<u32>,
    /// When it was formed, or its first row was committed.
    pub since: f64,
    /// Its first step, once it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_step: Option<u64>,
    /// Steps that it took and that stand.
    pub steps: u64,
    /// Why it came; none where it came before this coordinator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<f64>,
}

impl Generation {
    /// One of so many machines and ranks, from `since` on.
    fn begun(generation: u64, (workers, ranks): (u32, u32), since: f64, why: String) -> Self {
        Self { generation, workers, ranks: Some(ranks), since, why: Some(why), ..Self::default() }
    }
}

/// A checkpoint that became visible.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checkpoint {
    /// State after so many steps.
    pub step: u64,
    /// When; none where it was there before this coordinator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<f64>,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The run, once there is one.
    pub run: Option<Run>,
    /// Its rows.
    pub history: History,
    /// Changes whenever rows that were handed out no longer stand.
    pub revision: u64,
    /// Steps of it whose update was skipped.
    pub skipped: u64,
    /// Generations that ended by a failure since this coordinator began.
    pub failures: u64,
    generations: VecDeque<Generation>,
    forgotten: u64,
    checkpoints: VecDeque<Checkpoint>,
    evaluations: VecDeque<Evaluation>,
    /// Why the next generation comes.
    next_why: Option<String>,
    /// Steps that stood when the run began here.
    committed: u64,
}

impl Record {
    /// Takes one in.
    pub fn take(&mut self, happening: Happening) {
        let time = happening.time;
        match happening.what {
            What::Began { run, committed, checkpoint, .. } => self.begin(*run, committed, checkpoint),
            What::Committed(row) => self.row(&row),
            What::RolledBack { to } => self.roll_back(to),
            What::Formed { generation, workers, ranks } => {
                let why = self.next_why.take().unwrap_or_else(|| self.unnamed_reason());
                self.form(Generation::begun(generation, (workers, ranks), time, why));
            }
            What::Continued { generation, workers, ranks, term } => {
                let why = format!("it went on under a new coordinator (term {term})");
                match self.generations.back_mut().filter(|g| g.generation == generation) {
                    Some(known) => (known.ranks, known.why) = (Some(ranks), Some(why)),
                    None => self.form(Generation::begun(generation, (workers, ranks), time, why)),
                }
            }
            What::Ended { generation, cause } => self.end(generation, cause, time),
            What::Draining(why) => {
                self.next_why = Some(
                    match why {
                        Draining::Stop => "the job was continued after a drain",
                        Draining::Hold => "the job went on after a pause",
                        Draining::Departure => "the last worker had left",
                        Draining::Regroup => "the workers changed",
                    }
                    .to_owned(),
                );
            }
            What::Checkpoint { step } => self.checkpoint(step, Some(time)),
            What::CheckpointsFound(steps) => self.found(&steps),
            What::Evaluated { run, evaluation } => {
                // Another run's may have taken until after this one began.
                if self.run.as_ref().is_some_and(|own| own.name == run) {
                    self.evaluated(*evaluation);
                }
            }
        }
    }

    /// Generations, newest first; and how many older ones are forgotten.
    pub fn generations(&self) -> (impl Iterator<Item = &Generation>, u64) {
        (self.generations.iter().rev(), self.forgotten)
    }

    /// Checkpoints, newest first.
    pub fn checkpoints(&self) -> impl Iterator<Item = &Checkpoint> {
        self.checkpoints.iter().rev()
    }

    /// Evaluations, newest first.
    pub fn evaluations(&self) -> impl Iterator<Item = &Evaluation> {
        self.evaluations.iter().rev()
    }

    /// Forgets rows, which are about to be read again.
    pub fn forget_rows(&mut self) {
        self.history = History::default();
        self.revision += 1;
        self.skipped = 0;
        for generation in &mut self.generations {
            (generation.steps, generation.first_step) = (0, None);
        }
    }

    /// Steps in a second, over the newest rows of the generation that took the newest one.
    pub fn pace(&self) -> Option<f64> {
        let last = self.history.last()?;
        let of_it = |r: &&Row| r.generation == last.generation && last.time - r.time <= PACE.1;
        let first = self.history.recent().rev().take(PACE.0).take_while(of_it).last()?;
        #[expect(clippy::cast_precision_loss, reason = "rows are few")]
        let steps = last.step.saturating_sub(first.step) as f64;
        let seconds = last.time - first.time;
        (steps > 0.0 && seconds > 0.0).then(|| steps / seconds)
    }

    fn begin(&mut self, run: Run, committed: u64, checkpoint: Option<u64>) {
        let (revision, failures) = (self.revision + 1, self.failures);
        *self = Self { run: Some(run), revision, failures, committed, ..Self::default() };
        if let Some(step) = checkpoint {
            self.checkpoint(step, None);
        }
    }

    fn row(&mut self, row: &Row) {
        if self.history.last().is_some_and(|last| last.step >= row.step) {
            self.roll_back(row.step);
        }
        self.history.push(row);
        self.skipped += u64::from(row.skipped);
        if self.generations.back().is_none_or(|g| g.generation < row.generation) {
            self.form(Generation {
                generation: row.generation,
                workers: row.workers,
                since: row.time,
                ..Generation::default()
            });
        }
        if let Some(known) = self.generations.iter_mut().rev().find(|g| g.generation == row.generation) {
            known.first_step.get_or_insert(row.step);
            known.steps += 1;
        }
    }

    fn roll_back(&mut self, to: u64) {
        let Some(last) = self.history.last().map(|r| r.step).filter(|last| *last >= to) else { return };
        self.skipped = self
            .skipped
            .saturating_sub(self.history.recent().filter(|r| r.step >= to && r.skipped).count() as u64);
        self.history.cut(to);
        self.revision += 1;
        let mut end = last + 1;
        for generation in self.generations.iter_mut().rev() {
            let Some(first) = generation.first_step else { continue };
            let gone = end.saturating_sub(to.max(first)).min(generation.steps);
            generation.steps -= gone;
            end = first;
            if first < to {
                break;
            }
        }
        while self.checkpoints.pop_back_if(|c| c.step > to).is_some() {}
        while self.evaluations.pop_back_if(|e| e.step > to).is_some() {}
    }

    /// In the order of steps; one of a step that is known takes its place.
    fn evaluated(&mut self, evaluation: Evaluation) {
        let at = self.evaluations.partition_point(|e| e.step < evaluation.step);
        match self.evaluations.get_mut(at).filter(|e| e.step == evaluation.step) {
            Some(known) => *known = evaluation,
            None => self.evaluations.insert(at, evaluation),
        }
        if self.evaluations.len() > EVALUATIONS {
            self.evaluations.pop_front();
        }
    }

    fn form(&mut self, generation: Generation) {
        self.close(generation.since);
        self.generations.push_back(generation);
        if self.generations.len() > GENERATIONS {
            self.generations.pop_front();
            self.forgotten += 1;
        }
    }

    fn close(&mut self, time: f64) {
        if let Some(last) = self.generations.back_mut() {
            last.until.get_or_insert(time);
        }
    }

    fn end(&mut self, generation: u64, cause: Option<String>, time: f64) {
        if self.generations.back().is_some_and(|g| g.generation == generation) {
            self.close(time);
        }
        if let Some(cause) = cause {
            self.failures += 1;
            self.next_why = Some(format!("generation {generation} ended: {cause}"));
        }
    }

    /// Why a generation came of which nothing was said.
    fn unnamed_reason(&self) -> String {
        let first = self.generations.is_empty() && self.committed == 0;
        if first { "the job began" } else { "the job was continued" }.to_owned()
    }

    /// What is there, in any order: those that are not known are older than the coordinator.
    fn found(&mut self, steps: &[u64]) {
        let unknown = steps.iter().filter(|step| self.checkpoints.iter().all(|c| c.step != **step));
        let unknown: Vec<Checkpoint> = unknown.map(|step| Checkpoint { step: *step, time: None }).collect();
        self.checkpoints.extend(unknown);
        self.checkpoints.make_contiguous().sort_by_key(|c| c.step);
        while self.checkpoints.len() > CHECKPOINTS {
            self.checkpoints.pop_front();
        }
    }

    fn checkpoint(&mut self, step: u64, time: Option<f64>) {
        // The same one may be committed again, and after a roll back an earlier one.
        while self.checkpoints.pop_back_if(|c| c.step >= step).is_some() {}
        self.checkpoints.push_back(Checkpoint { step, time });
        if self.checkpoints.len() > CHECKPOINTS {
            self.checkpoints.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::tests::evaluation;
    use crate::history::tests::row;

    fn at(time: f64, what: What) -> Happening {
        Happening { time, what }
    }

    fn began(committed: u64, checkpoint: Option<u64>) -> Happening {
        let run = Box::new(Run { name: "r".to_owned(), ..Run::default() });
        at(0.0, What::Began { run, metrics: "metrics.jsonl".into(), committed, checkpoint })
    }

    fn told(happenings: impl IntoIterator<Item = Happening>) -> Record {
        let mut record = Record::default();
        happenings.into_iter().for_each(|h| record.take(h));
        record
    }

    fn step(step: u64, generation: u64) -> Happening {
        let row = Row { generation, time: 100.0 + step as f64 / 4.0, ..row(step) };
        at(row.time, What::Committed(Box::new(row)))
    }

    fn whys(record: &Record) -> Vec<(u64, u64, Option<&str>)> {
        record.generations().0.map(|g| (g.generation, g.steps, g.why.as_deref())).collect()
    }

    #[test]
    fn every_generation_says_why_it_came() {
        let formed = |generation| at(1.0, What::Formed { generation, workers: 2, ranks: 2 });
        let cause = Some("rank 1 on b ended with signal 9".to_owned());
        let record = told([
            began(0, None),
            formed(1),
            step(0, 1),
            step(1, 1),
            at(2.0, What::Ended { generation: 1, cause }),
            formed(2),
            at(3.0, What::Draining(Draining::Regroup)),
            at(3.0, What::Ended { generation: 2, cause: None }),
            formed(3),
            step(2, 3),
            at(4.0, What::Draining(Draining::Hold)),
            formed(4),
        ]);
        let expected = [
            (4, 0, Some("the job went on after a pause")),
            (3, 1, Some("the workers changed")),
            (2, 0, Some("generation 1 ended: rank 1 on b ended with signal 9")),
            (1, 2, Some("the job began")),
        ];
        assert_eq!(whys(&record), expected);
        assert_eq!(record.failures, 1);
        assert!(record.generations().0.skip(1).all(|g| g.until.is_some()));
    }

    #[test]
    fn generations_before_this_coordinator_are_known_by_their_rows_alone() {
        let continued = at(9.0, What::Continued { generation: 2, workers: 2, ranks: 4, term: 5 });
        let record = told([began(3, Some(2)), step(0, 1), step(1, 1), step(2, 2), continued, step(3, 2)]);
        let expected = [(2, 2, Some("it went on under a new coordinator (term 5)")), (1, 2, None)];
        assert_eq!(whys(&record), expected);
        assert_eq!(record.checkpoints().map(|c| (c.step, c.time)).collect::<Vec<_>>(), [(2, None)]);
        let formed = at(10.0, What::Formed { generation: 3, workers: 1, ranks: 1 });
        assert_eq!(whys(&told([began(3, None), formed]))[0].2, Some("the job was continued"));
    }

    #[test]
    fn evaluations_are_kept_in_the_order_of_steps_once_each_and_of_the_own_run_alone() {
        let told_of = |run: &str, step, trained| {
            let evaluation = Box::new(evaluation(step, trained));
            at(1.0, What::Evaluated { run: run.to_owned(), evaluation })
        };
        let known = |record: &Record| -> Vec<_> {
            record.evaluations().map(|e| (e.step, e.accuracies[0].trained)).collect()
        };
        let mut record = told([began(0, None)]);
        (0..10).for_each(|s| record.take(step(s, 1)));
        for (run, step, trained) in
            [("r", 8, 0.5), ("r", 4, 0.25), ("r", 8, 0.75), ("another", 6, 1.0), ("r", 9, 0.8)]
        {
            record.take(told_of(run, step, trained));
        }
        assert_eq!(known(&record), [(9, 0.8), (8, 0.75), (4, 0.25)]);
        record.take(at(2.0, What::RolledBack { to: 8 }));
        assert_eq!(known(&record), [(8, 0.75), (4, 0.25)]);
        record.take(began(8, None));
        assert!(known(&record).is_empty(), "they are read again");
        (0..2 * EVALUATIONS as u64).for_each(|s| record.take(told_of("r", s, 0.5)));
        assert_eq!(known(&record).len(), EVALUATIONS);
    }

    #[test]
    fn what_is_rolled_back_is_gone_everywhere() {
        let checkpoint = |step| at(1.0, What::Checkpoint { step });
        let mut record = told([began(0, None)]);
        (0..10).for_each(|s| record.take(step(s, 1)));
        record.take(checkpoint(4));
        record.take(checkpoint(9));
        let before = record.revision;
        record.take(at(2.0, What::RolledBack { to: 4 }));
        assert_eq!(record.history.last().map(|r| r.step), Some(3));
        assert_eq!(whys(&record), [(1, 4, None)]);
        assert_eq!(record.skipped, 1, "step 3 stands and was skipped");
        assert_eq!(record.checkpoints().map(|c| c.step).collect::<Vec<_>>(), [4]);
        assert!(record.revision > before);
        record.take(step(4, 2));
        assert_eq!(whys(&record), [(2, 1, None), (1, 4, None)]);
        record.take(at(3.0, What::RolledBack { to: 2 }));
        assert_eq!(whys(&record), [(2, 0, None), (1, 2, None)]);
    }

    #[test]
    fn checkpoints_are_in_order_and_each_once() {
        let mut record = told([began(8, Some(8)), at(1.0, What::CheckpointsFound(vec![8, 2, 6]))]);
        record.take(at(2.0, What::Checkpoint { step: 10 }));
        record.take(at(3.0, What::Checkpoint { step: 10 }));
        let all: Vec<_> = record.checkpoints().map(|c| (c.step, c.time)).collect();
        assert_eq!(all, [(10, Some(3.0)), (8, None), (6, None), (2, None)]);
    }

    #[test]
    fn nothing_grows_without_bound_and_another_run_begins_anew() {
        let mut record = told([began(0, None)]);
        for n in 0..1000 {
            record.take(at(1.0, What::Formed { generation: n, workers: 1, ranks: 1 }));
            record.take(at(1.0, What::Checkpoint { step: n }));
        }
        assert_eq!((record.generations().0.count(), record.generations().1), (GENERATIONS, 800));
        assert_eq!(record.checkpoints().count(), CHECKPOINTS);
        let before = record.revision;
        record.take(began(0, None));
        assert_eq!((record.generations().0.count(), record.checkpoints().count()), (0, 0));
        assert!(record.revision > before && record.history.last().is_none());
    }

    #[test]
    fn the_pace_is_that_of_the_newest_generation() {
        assert_eq!(told([began(0, None), step(0, 1)]).pace(), None);
        let mut record = told([began(0, None)]);
        (0..300).for_each(|s| record.take(step(s, 1)));
        assert_eq!(record.pace(), Some(4.0));
        record.take(step(300, 2));
        assert_eq!(record.pace(), None);
    }
}
