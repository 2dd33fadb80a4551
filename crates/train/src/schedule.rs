//! Learning rate and momentum as pure functions of the step (MCL_SPEC section 4).

use std::f64::consts::PI;

/// Cosine from `base` to `min`, under a linear warm-up that multiplies the running cosine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// After warm-up, at step 0 of the cosine.
    pub base: f64,
    /// At the end.
    pub min: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Share of the cosine's value at step 0.
    pub warmup_ratio: f64,
    /// Steps of the whole schedule.
    pub total: u64,
}

#[expect(clippy::cast_precision_loss, reason = "steps stay far below 2^53")]
fn share(step: u64, total: u64) -> f64 {
    if total == 0 { 1.0 } else { (step as f64 / total as f64).min(1.0) }
}

impl LearningRate {
    /// The learning rate of step t.
    pub fn at(&self, step: u64) -> f64 {
        let regular =
            (0.5 * (self.base - self.min)).mul_add((PI * share(step, self.total)).cos() + 1.0, self.min);
        if step < self.warmup_steps {
            let missing = (1.0 - share(step, self.warmup_steps)) * (1.0 - self.warmup_ratio);
            regular * (1.0 - missing)
        } else {
            regular
        }
    }
}

/// Momentum of the momentum encoder: cosine from `base` to `end`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Momentum {
    /// At step 0.
    pub base: f64,
    /// At the end.
    pub end: f64,
    /// Steps of the whole schedule.
    pub total: u64,
}

impl Momentum {
    /// The momentum of step t.
    pub fn at(&self, step: u64) -> f64 {
        self.end - (self.end - self.base) * ((PI * share(step, self.total)).cos() + 1.0) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that the official hooks gave (golden cases d and a).
    #[test]
    fn schedules_give_the_official_values() {
        let lr = LearningRate { base: 2.0, min: 1e-4, warmup_steps: 2, warmup_ratio: 1e-4, total: 20 };
        let official = [
            (0, 0.000_199_999_999_999_977_97),
            (1, 0.993_943_862_536_862_8),
            (2, 1.951_058_963_469_339),
            (5, 1.707_121_425_847_488),
        ];
        for (step, value) in official {
            assert!((lr.at(step) - value).abs() < 1e-14, "lr of step {step}: {}", lr.at(step));
        }
        let m = Momentum { base: 0.99, end: 1.0, total: 20 };
        let official = [
            (0, 0.99),
            (1, 0.990_061_558_297_024_2),
            (2, 0.990_244_717_418_524_3),
            (5, 0.991_464_466_094_067_2),
        ];
        for (step, value) in official {
            assert!((m.at(step) - value).abs() < 1e-15, "momentum of step {step}: {}", m.at(step));
        }
    }

    #[test]
    fn schedules_end_where_they_should_and_stay_there() {
        let lr = LearningRate { base: 1.0, min: 0.25, warmup_steps: 0, warmup_ratio: 1.0, total: 10 };
        assert!((lr.at(10) - 0.25).abs() < 1e-15 && (lr.at(1000) - 0.25).abs() < 1e-15);
        assert!((Momentum { base: 0.9, end: 1.0, total: 10 }.at(10) - 1.0).abs() < 1e-15);
    }
}
