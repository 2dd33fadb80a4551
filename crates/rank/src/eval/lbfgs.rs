//! L-BFGS (Liu and Nocedal 1989) for smooth convex functions: the same steps every time, no randomness.

use anyhow::{Result, bail};
use std::collections::VecDeque;
use tch::Tensor;

/// Steps that the curvature is estimated from.
const MEMORY: usize = 10;
/// Share of the promised decrease that a step has to bring (Armijo).
const SUFFICIENT: f64 = 1e-4;
/// Halvings of a step before it is given up: below that a value no longer differs in f64.
const HALVINGS: usize = 40;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stop {
    /// At a gradient whose largest entry is no larger than this.
    pub(super) gradient: f64,
    /// After so many steps.
    pub(super) steps: usize,
}

/// Where it stopped.
#[derive(Debug)]
pub(super) struct Minimum {
    pub(super) at: Tensor,
    /// Largest entry of the gradient there.
    pub(super) gradient: f64,
    /// Steps that were taken.
    pub(super) steps: usize,
}

/// A step taken, by how much the gradient changed, and 1 / (their product).
struct Pair {
    step: Tensor,
    change: Tensor,
    rho: f64,
}

/// Walks downhill from `start`, a vector in f64; `evaluate` answers value and gradient.
pub(super) fn minimise(
    start: Tensor,
    stop: Stop,
    mut evaluate: impl FnMut(&Tensor) -> Result<(f64, Tensor)>,
) -> Result<Minimum> {
    let mut at = start;
    let (mut value, mut slope) = evaluate(&at)?;
    if !value.is_finite() {
        bail!("the loss is {value} at its start, expected a finite number");
    }
    let mut memory: VecDeque<Pair> = VecDeque::new();
    let mut steps = 0;
    while steps < stop.steps {
        if largest(&slope)? <= stop.gradient {
            break;
        }
        let direction = direction(&memory, &slope)?;
        let Some((there, lower, next)) = search(&at, value, &slope, &direction, &mut evaluate)? else {
            // Either the estimate of the curvature is bad, or rounding is all that is left.
            if memory.is_empty() {
                break;
            }
            memory.clear();
            continue;
        };
        let (step, change) = (there.f_sub(&at)?, next.f_sub(&slope)?);
        let curvature = dot(&step, &change)?;
        if curvature > 0.0 {
            memory.push_back(Pair { step, change, rho: 1.0 / curvature });
            if memory.len() > MEMORY {
                memory.pop_front();
            }
        }
        (at, value, slope) = (there, lower, next);
        steps += 1;
    }
    Ok(Minimum { gradient: largest(&slope)?, at, steps })
}

/// The two loops: minus the estimated inverse curvature times the gradient.
fn direction(memory: &VecDeque<Pair>, slope: &Tensor) -> Result<Tensor> {
    let Some(last) = memory.back() else {
        // Nothing is known of the scale: one unit at most.
        let length = dot(slope, slope)?.sqrt().max(1.0);
        return Ok(slope.f_mul_scalar(-1.0 / length)?);
    };
    let mut q = slope.f_neg()?;
    let mut shares = Vec::with_capacity(memory.len());
    for pair in memory.iter().rev() {
        let share = pair.rho * dot(&pair.step, &q)?;
        q = q.f_sub(&pair.change.f_mul_scalar(share)?)?;
        shares.push(share);
    }
    q = q.f_mul_scalar(1.0 / (last.rho * dot(&last.change, &last.change)?))?;
    for (pair, share) in memory.iter().zip(shares.into_iter().rev()) {
        let other = pair.rho * dot(&pair.change, &q)?;
        q = q.f_add(&pair.step.f_mul_scalar(share - other)?)?;
    }
    Ok(q)
}

/// The first of 1, 1/2, 1/4 .. of `direction` that brings enough: where, value and gradient there.
fn search(
    at: &Tensor,
    value: f64,
    slope: &Tensor,
    direction: &Tensor,
    evaluate: &mut impl FnMut(&Tensor) -> Result<(f64, Tensor)>,
) -> Result<Option<(Tensor, f64, Tensor)>> {
    let promised = dot(slope, direction)?;
    if promised >= 0.0 || !promised.is_finite() {
        return Ok(None);
    }
    let mut scale = 1.0;
    for _ in 0..HALVINGS {
        let there = at.f_add(&direction.f_mul_scalar(scale)?)?;
        let (lower, next) = evaluate(&there)?;
        if lower.is_finite() && lower <= value + SUFFICIENT * scale * promised {
            return Ok(Some((there, lower, next)));
        }
        scale /= 2.0;
    }
    Ok(None)
}

fn dot(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(a.f_dot(b)?.f_double_value(&[])?)
}

fn largest(a: &Tensor) -> Result<f64> {
    Ok(a.f_abs()?.f_max()?.f_double_value(&[])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: Stop = Stop { gradient: 1e-10, steps: 200 };

    #[test]
    fn a_bowl_a_thousand_times_longer_than_wide_is_walked_down_to_its_bottom() {
        let stretch = Tensor::from_slice(&[1.0, 30.0, 1000.0_f64]);
        let bottom = Tensor::from_slice(&[3.0, -2.0, 0.5_f64]);
        let bowl = |x: &Tensor| {
            let slope = (x - &bottom) * &stretch;
            Ok(((x - &bottom).dot(&slope).double_value(&[]) / 2.0, slope))
        };
        let found = minimise(Tensor::zeros([3], (tch::Kind::Double, tch::Device::Cpu)), STOP, bowl).unwrap();
        assert!(found.gradient <= 1e-10);
        assert!((found.at - bottom).abs().max().double_value(&[]) < 1e-9);
    }

    #[test]
    fn steps_are_bounded_and_no_number_is_an_error() {
        let start = || Tensor::from_slice(&[1.0_f64]);
        // Falls for ever.
        let slide = |x: &Tensor| Ok((-x.double_value(&[0]), Tensor::from_slice(&[-1.0_f64])));
        let found = minimise(start(), Stop { gradient: 1e-6, steps: 5 }, slide).unwrap();
        assert!((found.gradient - 1.0).abs() < 1e-12 && found.at.double_value(&[0]) > 1.0);
        let nothing = |x: &Tensor| Ok((f64::NAN, x.shallow_clone()));
        assert!(minimise(start(), STOP, nothing).unwrap_err().to_string().contains("NaN"));
    }
}
