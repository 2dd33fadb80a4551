//! Multinomial logistic regression with an L2 penalty: full batch, in f64, strictly convex in its weights.

use super::lbfgs::{self, Stop};
use anyhow::{Result, bail};
use tch::{Device, Kind, Tensor};

/// A linear classifier.
#[derive(Debug)]
pub(super) struct Classifier {
    /// [D + 1, C], the bias last.
    weights: Tensor,
    /// Largest entry of the gradient where fitting stopped.
    pub(super) gradient: f64,
    /// Steps until then.
    pub(super) steps: usize,
}

/// Mean cross entropy over the rows plus `penalty` / 2 times the squared weights, the bias left out. Over n rows that is
/// the usual penalty of n times as much on the sum.
pub(super) struct Problem<'a> {
    /// [n, D] in f64.
    rows: &'a Tensor,
    /// [n, 1], each in 0..C.
    labels: Tensor,
    classes: i64,
    penalty: f64,
}

impl<'a> Problem<'a> {
    pub(super) fn new(rows: &'a Tensor, labels: &Tensor, classes: i64, penalty: f64) -> Result<Self> {
        let (n, _) = rows.size2()?;
        if n == 0 || labels.size() != [n] {
            bail!("{n} rows with {:?} labels: expected some, and one label each", labels.size());
        }
        Ok(Self { rows, labels: labels.f_unsqueeze(1)?, classes, penalty })
    }

    /// The classifier at the minimum, or where `stop` says.
    pub(super) fn fit(&self, stop: Stop) -> Result<Classifier> {
        let (_, columns) = self.rows.size2()?;
        let start = Tensor::f_zeros([(columns + 1) * self.classes], (Kind::Double, Device::Cpu))?;
        let found = lbfgs::minimise(start, stop, |flat| self.evaluate(flat))?;
        let weights = found.at.f_reshape([columns + 1, self.classes])?;
        Ok(Classifier { weights, gradient: found.gradient, steps: found.steps })
    }

    /// Value and gradient at weights laid out flat.
    fn evaluate(&self, flat: &Tensor) -> Result<(f64, Tensor)> {
        let (n, columns) = self.rows.size2()?;
        let weights = flat.f_reshape([columns + 1, self.classes])?;
        let slopes = weights.f_narrow(0, 0, columns)?;
        let log = logits(self.rows, &weights)?.f_log_softmax(1, None)?;
        let loss = log.f_gather(1, &self.labels, false)?.f_mean(Kind::Double)?.f_neg()?;
        let squares = slopes.f_square()?.f_sum(Kind::Double)?;
        let value = loss.f_double_value(&[])? + self.penalty / 2.0 * squares.f_double_value(&[])?;
        #[expect(clippy::cast_precision_loss, reason = "a number of rows")]
        let share = 1.0 / n as f64;
        let ones = Tensor::f_full([n, 1], -share, (Kind::Double, Device::Cpu))?;
        let residual = log.f_exp()?.f_mul_scalar(share)?.f_scatter_add(1, &self.labels, &ones)?;
        let by_slope = self.rows.f_transpose(0, 1)?.f_matmul(&residual)?;
        let by_slope = by_slope.f_add(&slopes.f_mul_scalar(self.penalty)?)?;
        let by_bias = residual.f_sum_dim_intlist([0_i64].as_slice(), true, Kind::Double)?;
        Ok((value, Tensor::f_cat(&[by_slope, by_bias], 0)?.f_flatten(0, 1)?))
    }
}

impl Classifier {
    /// [n, D] -> [n, C].
    pub(super) fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        logits(rows, &self.weights)
    }

    /// Share of rows whose class has the largest logit.
    pub(super) fn accuracy(&self, rows: &Tensor, labels: &Tensor) -> Result<f64> {
        let winner = self.logits(rows)?.f_argmax(1, false)?;
        let right = winner.f_eq_tensor(labels)?;
        Ok(right.f_to_kind(Kind::Double)?.f_mean(Kind::Double)?.f_double_value(&[])?)
    }
}

/// [n, D] and [D + 1, C] -> [n, C].
fn logits(rows: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let columns = rows.size2()?.1;
    Ok(rows.f_matmul(&weights.f_narrow(0, 0, columns)?)?.f_add(&weights.f_narrow(0, columns, 1)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const F64: (Kind, Device) = (Kind::Double, Device::Cpu);
    const TIGHT: Stop = Stop { gradient: 1e-9, steps: 1000 };

    /// Points of four classes, one a quarter of the plane.
    fn quarters(n: i64) -> (Tensor, Tensor) {
        let turn = Tensor::arange(n, F64) * 2.399_963;
        let radius = (Tensor::arange(n, F64) + 1.0) / n as f64 + 0.5;
        let rows = Tensor::stack(&[turn.cos() * &radius, turn.sin() * radius], 1);
        let labels = rows.select(1, 0).gt(0.0).to_kind(Kind::Int64) * 2
            + rows.select(1, 1).gt(0.0).to_kind(Kind::Int64);
        (rows, labels)
    }

    #[test]
    fn the_gradient_is_that_of_the_value() {
        let (rows, labels) = quarters(40);
        let problem = Problem::new(&rows, &labels, 4, 0.3).unwrap();
        let at = (Tensor::arange(12, F64) * 1.7).sin();
        let (_, gradient) = problem.evaluate(&at).unwrap();
        for i in 0..12 {
            let value = |by: f64| {
                let moved = at.copy();
                let _ = moved.get(i).fill_(at.double_value(&[i]) + by);
                problem.evaluate(&moved).unwrap().0
            };
            let measured = (value(1e-5) - value(-1e-5)) / 2e-5;
            assert!((measured - gradient.double_value(&[i])).abs() < 1e-8, "entry {i}");
        }
    }

    #[test]
    fn points_that_lines_divide_are_told_apart() {
        let (rows, labels) = quarters(200);
        let fitted = Problem::new(&rows, &labels, 4, 1e-4).unwrap().fit(TIGHT).unwrap();
        assert!((fitted.accuracy(&rows, &labels).unwrap() - 1.0).abs() < 1e-12);
    }

    /// One column that is 1 for class 1 and -1 for class 0, as many of each: by symmetry the bias is 0 and both weights
    /// are w and -w, and the derivative of log(1 + exp(-2 w)) + penalty w^2 vanishes.
    #[test]
    fn two_classes_meet_the_condition_that_is_derived_by_hand() {
        let rows = Tensor::from_slice(&[1.0, -1.0, 1.0, -1.0_f64]).view([4, 1]);
        let labels = Tensor::from_slice(&[1_i64, 0, 1, 0]);
        let penalty = 0.05;
        let fitted = Problem::new(&rows, &labels, 2, penalty).unwrap().fit(TIGHT).unwrap();
        assert!(fitted.gradient <= 1e-6);
        let w = fitted.weights.double_value(&[0, 1]);
        assert!(w > 0.1 && (fitted.weights.double_value(&[0, 0]) + w).abs() < 1e-9);
        assert!((-2.0 / (1.0 + (2.0 * w).exp()) + 2.0 * penalty * w).abs() < 1e-6);
        assert!(fitted.weights.double_value(&[1, 0]).abs() < 1e-9);
    }

    /// Without columns that tell, only the bias is left: its softmax is the classes' shares.
    #[test]
    fn a_bias_alone_learns_how_often_classes_are() {
        let rows = Tensor::zeros([10, 1], F64);
        let labels = Tensor::from_slice(&[0_i64, 0, 0, 0, 0, 1, 1, 1, 2, 2]);
        let fitted = Problem::new(&rows, &labels, 3, 1e-2).unwrap().fit(TIGHT).unwrap();
        let shares = fitted.weights.get(1).softmax(0, Kind::Double);
        for (class, share) in [0.5, 0.3, 0.2].into_iter().enumerate() {
            assert!((shares.double_value(&[class as i64]) - share).abs() < 1e-6);
        }
    }

    #[test]
    fn fits_are_the_same_each_time_and_no_rows_are_an_error() {
        let (rows, labels) = quarters(50);
        let fit = || Problem::new(&rows, &labels, 4, 1e-3).unwrap().fit(TIGHT).unwrap().weights;
        assert!(fit().equal(&fit()));
        assert!(Problem::new(&Tensor::zeros([0, 2], F64), &Tensor::from_slice::<i64>(&[]), 2, 0.1).is_err());
        assert!(Problem::new(&rows, &Tensor::from_slice(&[1_i64]), 2, 0.1).is_err());
    }
}
