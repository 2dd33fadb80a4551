//! A linear probe: logistic regression on standardised features, its penalty chosen on a held-out fifth of the training
//! pictures. Test rows are looked at once, at the end.

use super::judge::{Rows, Verdict};
use super::lbfgs::Stop;
use super::logistic::{Classifier, Problem};
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use mcl_terminal::tell;
use mcl_types::{Purpose, Seed};
use std::collections::{BTreeMap, BTreeSet};
use tch::{Kind, Tensor};

/// Penalties that are tried, the strongest first: of two that do as well it is taken. On the sum over n rows they are n
/// times as much.
const PENALTIES: [f64; 4] = [1e-1, 1e-2, 1e-3, 1e-4];
/// The penalty where there is nothing to choose it by.
const UNCHOSEN: f64 = 1e-2;
/// Fits of one verdict: one a penalty, and the last on all rows.
pub(super) const FITS: u64 = PENALTIES.len() as u64 + 1;
/// One picture of so many is held out.
const HELD_OUT: usize = 5;
/// Where a fit ends: close enough to its minimum that rounding in the features does not decide how a row is told.
const STOP: Stop = Stop { gradient: 1e-8, steps: 3000 };
/// A column that varies less than this, between rows of length 1, holds nothing but rounding.
const LEAST_DEVIATION: f64 = 1e-6;

pub(super) fn verdict(
    what: &str,
    train: &Rows<'_>,
    test: &Rows<'_>,
    classes: i64,
    seed: Seed,
    bar: &ProgressBar,
) -> Result<Verdict> {
    let penalty = choose(what, train, classes, seed, bar)?;
    let scale = Scale::of(&train.features)?;
    let labels = Tensor::f_from_slice(train.labels)?;
    let rows = scale.apply(&train.features)?;
    let fitted = fit(what, &Problem::new(&rows, &labels, classes, penalty)?, bar)?;
    let accuracy = fitted.accuracy(&scale.apply(&test.features)?, &Tensor::f_from_slice(test.labels)?)?;
    Ok(Verdict { accuracy, penalty: Some(penalty) })
}

/// The classifier at the minimum; who looks on is told where the fit did not get there.
fn fit(what: &str, problem: &Problem<'_>, bar: &ProgressBar) -> Result<Classifier> {
    let fitted = problem.fit(STOP)?;
    bar.inc(1);
    let Classifier { gradient, steps, .. } = fitted;
    if gradient > STOP.gradient {
        let wanted = STOP.gradient;
        bar.suspend(|| {
            tell!("warning: a fit to {what} ended after {steps} steps at a gradient of {gradient:.1e}, expected {wanted:.0e}");
        });
    }
    Ok(fitted)
}

/// The penalty under which rows of held-out pictures are told best by the others.
fn choose(what: &str, train: &Rows<'_>, classes: i64, seed: Seed, bar: &ProgressBar) -> Result<f64> {
    let (kept, held) = split(train.pictures, seed);
    if kept.is_empty() || held.is_empty() {
        bar.inc(PENALTIES.len() as u64);
        return Ok(UNCHOSEN);
    }
    let labels = Tensor::f_from_slice(train.labels)?;
    let part = |rows: &[i64]| -> Result<(Tensor, Tensor)> {
        let rows = Tensor::f_from_slice(rows)?;
        Ok((train.features.f_index_select(0, &rows)?, labels.f_index_select(0, &rows)?))
    };
    let ((kept, kept_labels), (held, held_labels)) = (part(&kept)?, part(&held)?);
    let scale = Scale::of(&kept)?;
    let (kept, held) = (scale.apply(&kept)?, scale.apply(&held)?);
    let mut best = None;
    for penalty in PENALTIES {
        let fitted = fit(what, &Problem::new(&kept, &kept_labels, classes, penalty)?, bar)?;
        let accuracy = fitted.accuracy(&held, &held_labels)?;
        if best.is_none_or(|(most, _)| accuracy > most) {
            best = Some((accuracy, penalty));
        }
    }
    Ok(best.context("no penalty was tried")?.1)
}

/// Rows to learn from and rows held out: all rows of a picture are on one side.
fn split(pictures: &[usize], seed: Seed) -> (Vec<i64>, Vec<i64>) {
    let mut order: Vec<usize> = pictures.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    seed.stream(Purpose::Evaluate, &[]).shuffle(&mut order);
    let count = order.len().div_ceil(HELD_OUT);
    let held: BTreeMap<usize, bool> = order.into_iter().zip((0..).map(|place| place < count)).collect();
    let (out, kept): (Vec<_>, Vec<_>) =
        (0_i64..).zip(pictures).partition(|(_, picture)| held.get(picture).copied().unwrap_or(false));
    let strip = |side: Vec<(i64, &usize)>| side.into_iter().map(|(row, _)| row).collect();
    (strip(kept), strip(out))
}

/// Mean and deviation of every column.
struct Scale {
    mean: Tensor,
    deviation: Tensor,
}

impl Scale {
    fn of(rows: &Tensor) -> Result<Self> {
        let rows = rows.f_to_kind(Kind::Double)?;
        let mean = rows.f_mean_dim([0_i64].as_slice(), true, Kind::Double)?;
        let deviation = rows.f_std_dim([0_i64].as_slice(), false, true)?;
        let flat = deviation.f_lt(LEAST_DEVIATION)?;
        Ok(Self { mean, deviation: deviation.f_masked_fill(&flat, 1.0)? })
    }

    /// [n, D] -> [n, D] in f64.
    fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        Ok(rows.f_to_kind(Kind::Double)?.f_sub(&self.mean)?.f_div(&self.deviation)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_pictures_is_held_out_with_all_its_rows() {
        let pictures: Vec<usize> = (0..300).map(|row| row / 3).collect();
        let (kept, held) = split(&pictures, Seed::new(1));
        assert_eq!((kept.len(), held.len()), (240, 60));
        let of = |rows: &[i64]| rows.iter().map(|r| pictures[*r as usize]).collect::<BTreeSet<_>>();
        assert!(of(&kept).is_disjoint(&of(&held)));
        assert_eq!(split(&pictures, Seed::new(1)), (kept, held.clone()));
        assert_ne!(split(&pictures, Seed::new(2)).1, held);
        assert_eq!(split(&[7, 7], Seed::new(1)), (vec![], vec![0, 1]));
    }

    #[test]
    fn columns_are_standardised_and_flat_ones_stay_at_zero() {
        let rows = Tensor::from_slice(&[1.0_f32, 5.0, 3.0, 5.0]).view([2, 2]);
        let scaled = Scale::of(&rows).unwrap().apply(&rows).unwrap();
        let expected = Tensor::from_slice(&[-1.0_f64, 0.0, 1.0, 0.0]).view([2, 2]);
        assert!((scaled - expected).abs().max().double_value(&[]) < 1e-12);
    }

    /// Columns that are much alike, as those of a network are: weights that are as good as one another lie far apart.
    #[test]
    fn features_that_differ_by_rounding_are_told_alike() {
        let (n, columns) = (400, 24);
        let wave = |from: f64, count: i64| {
            ((Tensor::arange(count, (Kind::Double, tch::Device::Cpu)) + from) * 12.9898).sin() * 43.75
        };
        let noise = |from, size: [i64; 2]| wave(from, size[0] * size[1]).sin().view(size);
        let shared = noise(0.5, [n, 1]);
        let features = &shared + noise(1.5, [n, columns]) * 0.05;
        let labels = ((noise(2.5, [n, 1]) + &shared).squeeze_dim(1) * 2.0)
            .round()
            .clamp(-1.0, 1.0)
            .to_kind(Kind::Int64)
            + 1;
        let fit = |features: &Tensor| {
            let rows = Scale::of(features).unwrap().apply(features).unwrap();
            let fitted = Problem::new(&rows, &labels, 3, PENALTIES[3]).unwrap().fit(STOP).unwrap();
            (fitted.logits(&rows).unwrap(), fitted.gradient)
        };
        let (steady, gradient) = fit(&features);
        let (moved, _) = fit(&(&features + noise(3.5, [n, columns]) * 1e-9));
        let largest = (&steady - moved).abs().max().double_value(&[]);
        assert!(gradient <= STOP.gradient);
        assert!(
            largest < 1e-5,
            "logits of at most {} differ by {largest}",
            steady.abs().max().double_value(&[])
        );
    }

    /// A class in one column, noise in twenty: a strong penalty is no worse and wins; and one picture has no choice.
    #[test]
    fn the_probe_tells_classes_that_one_column_shows() {
        let n = 100;
        let labels: Vec<i64> = (0..n).map(|i| i64::from(i % 2 == 0)).collect();
        let noise = (Tensor::arange(n * 20, (Kind::Float, tch::Device::Cpu)) * 12.9898).sin().view([n, 20]);
        let shown = Tensor::from_slice(&labels).to_kind(Kind::Float).view([n, 1]);
        let features = Tensor::cat(&[shown, noise], 1);
        let pictures: Vec<usize> = (0..100).collect();
        let rows = |pictures| Rows { features: features.shallow_clone(), labels: &labels, pictures };
        let bar = ProgressBar::hidden();
        let found = verdict("", &rows(&pictures), &rows(&pictures), 2, Seed::new(0), &bar).unwrap();
        assert!((found.accuracy - 1.0).abs() < 1e-12);
        assert_eq!((found.penalty, bar.position()), (Some(1e-1), FITS));
        let single = verdict("", &rows(&[0; 100]), &rows(&pictures), 2, Seed::new(0), &bar).unwrap();
        assert_eq!((single.penalty, bar.position()), (Some(UNCHOSEN), 2 * FITS));
    }
}
