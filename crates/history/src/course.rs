//! A run of any length as a bounded number of points.
//!
//! Each point covers the same number of steps, a power of two, and begins at a multiple of it. Where there would be too
//! many, that number doubles and neighbours become one.

use crate::row::Row;
use std::collections::VecDeque;

/// Points that a course holds at most.
pub const POINTS: usize = 1024;
/// Steps that are kept one by one, the newest.
pub const RECENT: usize = 128;

/// Some steps in a row, as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// The first step.
    pub first: u64,
    /// How many.
    pub steps: u64,
    /// Mean of those that were finite; none where none was.
    pub loss: Option<f64>,
    /// The same by level; empty where none was finite.
    pub loss_per_level: Vec<f64>,
    /// Of the last step.
    pub lr: f64,
    /// Of the last step.
    pub momentum: f64,
    /// Mean of those that were finite.
    pub grad_norm: Option<f64>,
    /// Mean.
    pub images_per_s: f64,
    /// Mean.
    pub data_wait_s: f64,
    /// Mean.
    pub step_s: f64,
    /// Worker machines in the last step.
    pub workers: u32,
    /// Generation of the last step.
    pub generation: u64,
    /// Updates that were skipped.
    pub skipped: u64,
    /// Seconds since 1970 at which the last step was committed.
    pub time: f64,
}

/// A sum and of how many.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    fn of(value: Option<f64>) -> Self {
        value.filter(|v| v.is_finite()).map_or_else(Self::default, |sum| Self { sum, count: 1 })
    }

    fn add(&mut self, other: Self) {
        self.sum += other.sum;
        self.count += other.count;
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of steps")]
    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// What a point is made of.
#[derive(Debug, Clone, PartialEq)]
struct Bucket {
    first: u64,
    loss: Mean,
    levels: Vec<Mean>,
    grad_norm: Mean,
    images_per_s: Mean,
    data_wait_s: Mean,
    step_s: Mean,
    steps: u64,
    skipped: u64,
    lr: f64,
    momentum: f64,
    workers: u32,
    generation: u64,
    time: f64,
}

impl Bucket {
    fn of(row: &Row) -> Self {
        Self {
            first: row.step,
            loss: Mean::of(row.loss),
            levels: row.loss_per_level.iter().map(|l| Mean::of(Some(*l))).collect(),
            grad_norm: Mean::of(row.grad_norm),
            images_per_s: Mean::of(Some(row.images_per_s)),
            data_wait_s: Mean::of(Some(row.data_wait_s)),
            step_s: Mean::of(Some(row.step_s)),
            steps: 1,
            skipped: u64::from(row.skipped),
            lr: row.lr,
            momentum: row.momentum,
            workers: row.workers,
            generation: row.generation,
            time: row.time,
        }
    }

    /// Takes in what follows.
    fn add(&mut self, next: Self) {
        self.loss.add(next.loss);
        if self.levels.len() < next.levels.len() {
            self.levels.resize(next.levels.len(), Mean::default());
        }
        for (own, other) in self.levels.iter_mut().zip(&next.levels) {
            own.add(*other);
        }
        self.grad_norm.add(next.grad_norm);
        self.images_per_s.add(next.images_per_s);
        self.data_wait_s.add(next.data_wait_s);
        self.step_s.add(next.step_s);
        self.steps += next.steps;
        self.skipped += next.skipped;
        let Self { lr, momentum, workers, generation, time, .. } = next;
        (self.lr, self.momentum, self.workers) = (lr, momentum, workers);
        (self.generation, self.time) = (generation, time);
    }

    fn point(&self) -> Point {
        let levels: Option<Vec<f64>> = self.levels.iter().map(|l| l.value()).collect();
        Point {
            first: self.first,
            steps: self.steps,
            loss: self.loss.value(),
            loss_per_level: levels.unwrap_or_default(),
            lr: self.lr,
            momentum: self.momentum,
            grad_norm: self.grad_norm.value(),
            images_per_s: self.images_per_s.value().unwrap_or(0.0),
            data_wait_s: self.data_wait_s.value().unwrap_or(0.0),
            step_s: self.step_s.value().unwrap_or(0.0),
            workers: self.workers,
            generation: self.generation,
            skipped: self.skipped,
            time: self.time,
        }
    }
}

impl From<&Row> for Point {
    fn from(row: &Row) -> Self {
        Bucket::of(row).point()
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Course {
    /// Steps a point.
    stride: u64,
    buckets: Vec<Bucket>,
    recent: VecDeque<Row>,
}

impl Default for Course {
    fn default() -> Self {
        Self { stride: 1, buckets: Vec::new(), recent: VecDeque::new() }
    }
}

impl Course {
    /// Takes the next step in. One that is there already, or that comes before one that is, is passed over.
    pub fn push(&mut self, row: Row) {
        if self.recent.back().is_some_and(|last| row.step <= last.step) {
            return;
        }
        self.merge(Bucket::of(&row));
        if self.buckets.len() > POINTS {
            self.stride *= 2;
            for bucket in std::mem::take(&mut self.buckets) {
                self.merge(bucket);
            }
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(row);
    }

    fn merge(&mut self, bucket: Bucket) {
        match self.buckets.last_mut() {
            Some(last) if last.first / self.stride == bucket.first / self.stride => last.add(bucket),
            _ => self.buckets.push(bucket),
        }
    }

    /// The whole run in at most `most` points, oldest first; 0 is taken for as many as there are.
    pub fn points(&self, most: usize) -> Vec<Point> {
        let most = if most == 0 { POINTS } else { most.min(POINTS) };
        let mut coarse = Self { stride: self.stride, ..Self::default() };
        let mut all = self.buckets.clone();
        while all.len() > most {
            coarse.stride *= 2;
            all.into_iter().for_each(|b| coarse.merge(b));
            all = std::mem::take(&mut coarse.buckets);
            if coarse.stride > u64::MAX / 4 {
                break;
            }
        }
        all.iter().map(Bucket::point).collect()
    }

    /// The newest steps one by one, oldest first.
    pub fn recent(&self) -> impl DoubleEndedIterator<Item = &Row> + ExactSizeIterator {
        self.recent.iter()
    }

    /// The newest step.
    pub fn last(&self) -> Option<&Row> {
        self.recent.back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn row(step: u64) -> Row {
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let x = step as f64;
        Row {
            step,
            epoch: 0,
            generation: 1,
            loss: Some(x),
            loss_per_level: vec![x, 2.0 * x],
            lr: x,
            momentum: 0.9,
            grad_norm: Some(1.0),
            images_per_s: 10.0,
            workers: 2,
            data_wait_s: 0.1,
            step_s: 0.5,
            skipped: step % 10 == 3,
            time: 100.0 + x,
        }
    }

    fn course(steps: u64) -> Course {
        let mut course = Course::default();
        (0..steps).for_each(|s| course.push(row(s)));
        course
    }

    #[test]
    fn a_short_run_is_told_step_by_step() {
        let course = course(20);
        let points = course.points(0);
        assert_eq!(points.len(), 20);
        assert_eq!(points[7], Point::from(&row(7)));
        assert_eq!(course.last(), Some(&row(19)));
    }

    #[test]
    fn a_long_run_keeps_its_means_its_ends_and_few_points() {
        let course = course(100_000);
        let points = course.points(0);
        assert!(points.len() <= POINTS && points.len() > POINTS / 4, "{}", points.len());
        let steps: u64 = points.iter().map(|p| p.steps).sum();
        assert_eq!((steps, points[0].first), (100_000, 0));
        for p in points.iter().take(points.len() - 1) {
            let middle = (2 * p.first + p.steps - 1) as f64 / 2.0;
            assert!((p.loss.unwrap() - middle).abs() < 1e-6 && p.steps == points[0].steps);
            assert!((p.loss_per_level[1] - 2.0 * middle).abs() < 1e-6);
        }
        assert_eq!(points.iter().map(|p| p.skipped).sum::<u64>(), 10_000);
        assert_eq!((course.recent().len(), course.recent().next().unwrap().step), (RECENT, 99_872));
        for most in [1, 7, 60, 500] {
            let points = course.points(most);
            assert!(points.len() <= most && points.len() * 4 > most, "{most}: {}", points.len());
            assert_eq!(points.iter().map(|p| p.steps).sum::<u64>(), 100_000);
        }
    }

    #[test]
    fn losses_that_are_not_finite_are_left_out() {
        let mut course = Course::default();
        course.push(Row { loss: None, loss_per_level: Vec::new(), grad_norm: None, ..row(0) });
        course.push(Row { loss: Some(f64::NAN), ..row(1) });
        course.push(row(2));
        let one = course.points(1);
        assert_eq!((one.len(), one[0].loss, one[0].grad_norm), (1, Some(2.0), Some(1.0)));
        let fine = course.points(0);
        assert_eq!((fine[0].loss, fine[0].loss_per_level.len(), fine[1].loss), (None, 0, None));
    }

    #[test]
    fn a_step_that_is_there_already_is_passed_over() {
        let mut course = course(10);
        course.push(row(4));
        course.push(row(9));
        assert_eq!(course.points(0).len(), 10);
    }

    proptest! {
        #[test]
        fn a_course_is_a_function_of_its_rows(first in 0_u64..5000, steps in 0_u64..9000) {
            let mut course = Course::default();
            (first..first + steps).for_each(|s| course.push(row(s)));
            let points = course.points(0);
            prop_assert!(points.len() <= POINTS);
            prop_assert_eq!(points.iter().map(|p| p.steps).sum::<u64>(), steps);
            prop_assert!(points.windows(2).all(|w| w[0].first + w[0].steps == w[1].first));
            let sum: f64 = points.iter().map(|p| p.loss.unwrap() * p.steps as f64).sum();
            let expected: f64 = (first..first + steps).map(|s| s as f64).sum();
            prop_assert!((sum - expected).abs() <= 1e-6 * expected.max(1.0));
        }
    }
}
