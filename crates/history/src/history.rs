//! A run's rows in a memory of fixed size: the whole run in buckets that double in width, and the newest rows
//! one by one.
//!
//! Invariants: at most [`BUCKETS`] buckets and [`RECENT`] rows are kept however long the run is; a bucket of
//! width w holds the rows of steps `[k w, (k + 1) w)`; least and greatest of a bucket are those of its rows
//! exactly. Steps that no longer stand go with the bucket that they end in: what is lost is less than a bucket.

use crate::row::Row;
use std::collections::VecDeque;

/// Buckets kept for the whole run. More than any chart has pixels for.
pub const BUCKETS: usize = 2048;
/// Newest rows kept as they are.
pub const RECENT: usize = 2048;
/// Levels of the loss that are kept; more than any job has.
pub const MOST_LEVELS: usize = 16;
/// What is kept of every row besides the levels, in this order.
pub const SERIES: [&str; 7] =
    ["loss", "lr", "momentum", "grad_norm", "images_per_s", "data_wait_s", "step_s"];

/// Least, greatest and mean of the finite values of a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    sum: f64,
    count: u64,
}

impl Span {
    const EMPTY: Self = Self { min: f64::INFINITY, max: f64::NEG_INFINITY, sum: 0.0, count: 0 };

    fn take(&mut self, value: Option<f64>) {
        let Some(value) = value.filter(|v| v.is_finite()) else { return };
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sum += value;
        self.count += 1;
    }

    fn join(&mut self, other: &Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum += other.sum;
        self.count += other.count;
    }

    /// None where no value was finite.
    #[expect(clippy::cast_precision_loss, reason = "rows are fewer than 2^53")]
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// Rows that follow each other, as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// The first step in it.
    pub first: u64,
    /// The last step in it.
    pub last: u64,
    /// Rows in it.
    pub rows: u64,
    /// Rows whose update was skipped.
    pub skipped: u64,
    /// When its last step was committed.
    pub time: f64,
    /// The generation of its last step.
    pub generation: u64,
    /// One a name of [`SERIES`], then one a level.
    pub spans: Vec<Span>,
}

impl Bucket {
    /// Of one row.
    pub fn of(row: &Row) -> Self {
        let levels = row.loss_per_level.iter().take(MOST_LEVELS).copied().map(Some);
        let series = [
            row.loss,
            Some(row.lr),
            Some(row.momentum),
            row.grad_norm,
            Some(row.images_per_s),
            Some(row.data_wait_s),
            Some(row.step_s),
        ];
        let spans = series.into_iter().chain(levels).map(|value| {
            let mut span = Span::EMPTY;
            span.take(value);
            span
        });
        Self {
            first: row.step,
            last: row.step,
            rows: 1,
            skipped: u64::from(row.skipped),
            time: row.time,
            generation: row.generation,
            spans: spans.collect(),
        }
    }

    /// Takes in one that follows.
    pub fn join(&mut self, next: &Self) {
        self.first = self.first.min(next.first);
        self.last = self.last.max(next.last);
        self.rows += next.rows;
        self.skipped += next.skipped;
        self.time = next.time;
        self.generation = next.generation;
        for (at, span) in next.spans.iter().enumerate() {
            match self.spans.get_mut(at) {
                Some(own) => own.join(span),
                None => self.spans.push(*span),
            }
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct History {
    width: u64,
    buckets: VecDeque<Bucket>,
    recent: VecDeque<Row>,
}

impl Default for History {
    fn default() -> Self {
        Self { width: 1, buckets: VecDeque::new(), recent: VecDeque::new() }
    }
}

impl History {
    /// Takes the next row in. A row of an earlier step than the last one takes the place of what came after it.
    pub fn push(&mut self, row: &Row) {
        if self.last().is_some_and(|last| last.step >= row.step) {
            self.cut(row.step);
        }
        self.recent.push_back(row.clone());
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        let new = Bucket::of(row);
        if let Some(last) = self.buckets.back_mut()
            && last.first / self.width == row.step / self.width
        {
            last.join(&new);
            return;
        }
        self.buckets.push_back(new);
        while self.buckets.len() > BUCKETS {
            self.widen();
        }
    }

    /// Steps from `to` on no longer stand.
    pub fn cut(&mut self, to: u64) {
        while self.buckets.pop_back_if(|b| b.last >= to).is_some() {}
        while self.recent.pop_back_if(|r| r.step >= to).is_some() {}
    }

    /// The newest row.
    pub fn last(&self) -> Option<&Row> {
        self.recent.back()
    }

    /// The newest rows, oldest first.
    pub fn recent(&self) -> impl DoubleEndedIterator<Item = &Row> + ExactSizeIterator {
        self.recent.iter()
    }

    /// Steps that a bucket covers.
    #[cfg(test)]
    pub const fn width(&self) -> u64 {
        self.width
    }

    /// The whole run in at most `points` buckets.
    pub fn whole(&self, points: usize) -> Vec<Bucket> {
        thin(self.buckets.iter().cloned(), self.buckets.len(), points)
    }

    /// The newest `steps` rows, as far as they are kept, in at most `points` buckets.
    pub fn newest(&self, steps: usize, points: usize) -> Vec<Bucket> {
        let rows = self.recent.len().min(steps);
        let from = self.recent.len() - rows;
        thin(self.recent.iter().skip(from).map(Bucket::of), rows, points)
    }

    fn widen(&mut self) {
        self.width = self.width.saturating_mul(2);
        let mut wide: VecDeque<Bucket> = VecDeque::with_capacity(BUCKETS + 1);
        for bucket in self.buckets.drain(..) {
            match wide.back_mut() {
                Some(last) if last.first / self.width == bucket.first / self.width => last.join(&bucket),
                _ => wide.push_back(bucket),
            }
        }
        self.buckets = wide;
    }
}

/// So many buckets as fewer of about equal length.
fn thin(buckets: impl Iterator<Item = Bucket>, count: usize, points: usize) -> Vec<Bucket> {
    let group = count.div_ceil(points.max(1)).max(1);
    let mut thin: Vec<Bucket> = Vec::with_capacity(count.div_ceil(group));
    for (at, bucket) in buckets.enumerate() {
        match thin.last_mut() {
            Some(last) if at % group != 0 => last.join(&bucket),
            _ => thin.push(bucket),
        }
    }
    thin
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A row whose numbers are functions of its step.
    pub(crate) fn row(step: u64) -> Row {
        let x = step as f64;
        Row {
            step,
            epoch: step / 100,
            generation: 1 + step / 1000,
            loss: Some(10.0 / (1.0 + x)),
            loss_per_level: vec![x, -x],
            lr: 0.1,
            momentum: 0.99,
            grad_norm: (step % 7 != 3).then_some(x % 5.0),
            images_per_s: 100.0 + x % 3.0,
            workers: 2,
            data_wait_s: 0.01,
            step_s: 0.5,
            skipped: step % 7 == 3,
            time: 1000.0 + x,
        }
    }

    fn filled(steps: u64) -> History {
        let mut history = History::default();
        (0..steps).for_each(|s| history.push(&row(s)));
        history
    }

    #[test]
    fn a_million_steps_fit_the_same_memory_and_keep_their_extremes() {
        let mut history = filled(1_000_000);
        assert!(history.buckets.len() <= BUCKETS && history.recent.len() == RECENT);
        assert_eq!(history.width(), 512);
        let all = history.whole(600);
        assert!(all.len() <= 600 && all.len() > 300, "{}", all.len());
        assert_eq!(all.iter().map(|b| b.rows).sum::<u64>(), 1_000_000);
        assert_eq!(
            all.iter().map(|b| b.skipped).sum::<u64>(),
            (0..1_000_000).filter(|s| s % 7 == 3).count() as u64
        );
        let loss = |b: &Bucket| b.spans[0];
        assert_eq!(all.iter().map(|b| loss(b).max).fold(0.0, f64::max), 10.0);
        assert_eq!(all.last().map(|b| loss(b).min), Some(10.0 / 1_000_000.0));
        assert_eq!((all[0].first, all.last().map(|b| b.last)), (0, Some(999_999)));
        // A spike of one step is still seen.
        history.push(&Row { loss: Some(1e6), ..row(1_000_000) });
        assert_eq!(history.whole(100).last().map(|b| loss(b).max), Some(1e6));
    }

    #[test]
    fn the_newest_rows_are_kept_one_by_one() {
        let history = filled(10_000);
        let newest = history.newest(500, 1000);
        assert_eq!(newest.len(), 500);
        assert_eq!(newest.iter().map(|b| b.first).collect::<Vec<_>>(), (9_500..10_000).collect::<Vec<_>>());
        assert_eq!(newest[0], Bucket::of(&row(9_500)));
        assert_eq!(history.newest(500, 100).len(), 100);
        assert_eq!(history.newest(1_000_000, usize::MAX).len(), RECENT);
    }

    #[test]
    fn means_leave_out_what_is_not_finite() {
        let mut bucket = Bucket::of(&Row { loss: None, ..row(0) });
        assert_eq!(bucket.spans[0].mean(), None);
        bucket.join(&Bucket::of(&Row { loss: Some(2.0), ..row(1) }));
        bucket.join(&Bucket::of(&Row { loss: Some(4.0), ..row(2) }));
        bucket.join(&Bucket::of(&Row { loss: Some(f64::NAN), loss_per_level: Vec::new(), ..row(3) }));
        assert_eq!((bucket.spans[0].mean(), bucket.rows), (Some(3.0), 4));
        assert_eq!(bucket.spans.len(), SERIES.len() + 2);
    }

    #[test]
    fn rolled_back_steps_go_and_their_successors_take_their_place() {
        let mut history = filled(5_000);
        history.cut(4_000);
        assert!(history.whole(usize::MAX).iter().all(|b| b.last < 4_000));
        assert_eq!(history.last().map(|r| r.step), Some(3_999));
        // Unasked, too: a row of a step that is there already.
        history.push(&row(3_000));
        assert_eq!(history.last().map(|r| r.step), Some(3_000));
        let rows: u64 = history.whole(usize::MAX).iter().map(|b| b.rows).sum();
        // Less than two buckets are missing.
        assert!(rows > 3_000 - 2 * history.width() && rows <= 3_001, "{rows}");
        history.cut(0);
        assert!(history.whole(10).is_empty() && history.last().is_none());
    }

    #[test]
    fn an_empty_history_has_no_points() {
        assert!(History::default().whole(0).is_empty());
        assert!(History::default().newest(10, 10).is_empty());
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_is_lost_and_order_holds(steps in 0_u64..6_000, points in 1_usize..3_000) {
            let history = filled(steps);
            let all = history.whole(points);
            prop_assert!(all.len() <= points.max(1));
            prop_assert_eq!(all.iter().map(|b| b.rows).sum::<u64>(), steps);
            prop_assert!(all.is_sorted_by(|a, b| a.last < b.first));
            let sum: f64 = all.iter().filter_map(|b| Some(b.spans[0].mean()? * b.rows as f64)).sum();
            let expected: f64 = (0..steps).filter_map(|s| row(s).loss).sum();
            prop_assert!((sum - expected).abs() < 1e-6);
        }
    }
}
