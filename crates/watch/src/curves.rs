//! Numbers over steps as lines of blocks and as a chart's points.

/// Eight heights.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Values in so many columns, each the mean of its share; blank where none is known.
pub(crate) fn spark(values: &[Option<f64>], width: usize) -> String {
    let columns = shares(values, width);
    let known = columns.iter().flatten().copied();
    let (low, high) = known.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let block = |value: &Option<f64>| {
        let Some(value) = value else { return ' ' };
        let height = if high > low { (value - low) / (high - low) } else { 0.5 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
        let at = (height * 7.0).round().clamp(0.0, 7.0) as usize;
        BLOCKS.get(at).copied().unwrap_or(' ')
    };
    columns.iter().map(block).collect()
}

/// As many means as there are columns, or values where these are fewer.
fn shares(values: &[Option<f64>], width: usize) -> Vec<Option<f64>> {
    let columns = width.min(values.len());
    let mean = |column: usize| {
        let share = values.get(column * values.len() / columns..(column + 1) * values.len() / columns);
        let known: Vec<f64> =
            share.unwrap_or_default().iter().flatten().copied().filter(|v| v.is_finite()).collect();
        #[expect(clippy::cast_precision_loss, reason = "few")]
        let count = known.len() as f64;
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / count)
    };
    (0..columns).map(mean).collect()
}

/// The least and the greatest of some numbers, apart from each other so that an axis can be drawn.
pub(crate) fn bounds(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return None;
    }
    let room = if high > low { 0.0 } else { 0.5 * low.abs().max(1e-3) };
    Some([low - room, high + room])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_from_the_lowest_to_the_highest_block() {
        let rising: Vec<_> = (0..8).map(|n| Some(f64::from(n))).collect();
        assert_eq!(spark(&rising, 8), "▁▂▃▄▅▆▇█");
        assert_eq!(spark(&rising, 4), "▁▃▆█");
        assert_eq!(spark(&rising, 100), "▁▂▃▄▅▆▇█");
        assert_eq!(spark(&[Some(1.0), None, Some(f64::NAN), Some(2.0)], 4), "▁  █");
        assert_eq!(
            (spark(&[], 5), spark(&rising, 0), spark(&[Some(3.0)], 5)),
            (String::new(), String::new(), "▅".into())
        );
    }

    #[test]
    fn bounds_are_apart() {
        assert_eq!(bounds([1.0, f64::NAN, 3.0].into_iter()), Some([1.0, 3.0]));
        assert_eq!(bounds([2.0].into_iter()), Some([1.0, 3.0]));
        assert_eq!(bounds([f64::INFINITY].into_iter()), None);
    }
}
