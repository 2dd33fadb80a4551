//! What tells how good frozen features are: a classifier that learns from some and is asked about others.

use super::{knn, linear};
use anyhow::{Result, bail};
use indicatif::ProgressBar;
use mcl_types::Seed;
use tch::{Kind, Tensor};

/// Features of objects, their classes, and the picture that each is on.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    /// [n, D]
    pub(super) features: Tensor,
    pub(super) labels: &'a [i64],
    pub(super) pictures: &'a [usize],
}

/// The two classifiers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Judge {
    /// The vote of the `k` nearest rows.
    Knn { k: i64 },
    /// Logistic regression; `seed` says which pictures choose its penalty.
    Linear { seed: Seed },
}

/// What a judge found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verdict {
    /// Share of rows that were told right, 0..1.
    pub(super) accuracy: f64,
    /// The penalty that was chosen, where the judge has one.
    pub(super) penalty: Option<f64>,
}

impl Judge {
    /// As it is called on command lines and in answers.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Knn { .. } => "knn",
            Self::Linear { .. } => "linear",
        }
    }

    /// Fits that a verdict takes.
    pub(super) const fn work(self) -> u64 {
        match self {
            Self::Knn { .. } => 1,
            Self::Linear { .. } => linear::FITS,
        }
    }

    /// How well `test` is told by what `train` shows, neither empty; `what` names the features in messages.
    pub(super) fn verdict(
        self,
        what: &str,
        train: &Rows<'_>,
        test: &Rows<'_>,
        classes: i64,
        bar: &ProgressBar,
    ) -> Result<Verdict> {
        if !is_finite(&train.features)? || !is_finite(&test.features)? {
            bail!("features of {what} are not finite: weights or statistics of norms hold NaN or infinity");
        }
        match self {
            Self::Knn { k } => {
                bar.inc(self.work());
                Ok(Verdict { accuracy: knn::accuracy(train, test, classes, k)?, penalty: None })
            }
            Self::Linear { seed } => linear::verdict(what, train, test, classes, seed, bar),
        }
    }
}

fn is_finite(features: &Tensor) -> Result<bool> {
    // No number beside a finite one: their sum says it without a copy of them.
    Ok(features.f_sum(Kind::Double)?.f_double_value(&[])?.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_are_no_numbers_are_an_error() {
        let bar = ProgressBar::hidden();
        let rows = |value: f32| Rows {
            features: Tensor::from_slice(&[1.0, value]).view([2, 1]),
            labels: &[0, 1],
            pictures: &[0, 1],
        };
        for judge in [Judge::Knn { k: 1 }, Judge::Linear { seed: Seed::new(0) }] {
            for bad in [f32::NAN, f32::INFINITY] {
                let said = judge.verdict("c5", &rows(bad), &rows(0.0), 2, &bar).unwrap_err().to_string();
                assert!(said.contains("c5") && said.contains("not finite"), "{said}");
            }
        }
    }
}
