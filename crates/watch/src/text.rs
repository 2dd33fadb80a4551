//! Numbers and times as people read them.

/// Seconds as a time that fits a column: `4 s`, `3 m 20 s`, `5 h 12 m`, `3 d 4 h`.
pub fn duration(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
    let whole = seconds.clamp(0.0, 1e9).round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match () {
        () if days > 0 => format!("{days} d {hours} h"),
        () if hours > 0 => format!("{hours} h {minutes} m"),
        () if minutes > 0 => format!("{minutes} m {} s", whole % 60),
        () => format!("{whole} s"),
    }
}

/// How long ago something was; in full seconds, minutes, hours or days.
pub fn age(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
    let whole = seconds.clamp(0.0, 1e9) as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} m", whole / 60),
        3600..172_800 => format!("{} h", whole / 3600),
        _ => format!("{} d", whole / 86_400),
    }
}

/// A number in a few characters, whatever its size.
pub(crate) fn short(value: f64) -> String {
    let size = value.abs();
    match () {
        () if !value.is_finite() => "-".to_owned(),
        () if value == 0.0 => "0".to_owned(),
        () if !(1e-3..1e6).contains(&size) => format!("{value:.2e}"),
        () if size >= 1000.0 => format!("{value:.0}"),
        () if size >= 100.0 => format!("{value:.1}"),
        () if size >= 10.0 => format!("{value:.2}"),
        () => format!("{value:.4}"),
    }
}

/// Seconds as milliseconds.
pub(crate) fn millis(seconds: f64) -> String {
    if seconds.is_finite() { format!("{:.1}", seconds * 1e3) } else { "-".to_owned() }
}

/// Numbers in ascending order as ranges: `0-3, 5`.
pub(crate) fn ranges(numbers: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = numbers;
    while let Some((&first, _)) = rest.split_first() {
        let run = rest
            .iter()
            .zip(u64::from(first)..)
            .take_while(|(found, expected)| u64::from(**found) == *expected)
            .count();
        let last = first.saturating_add(u32::try_from(run.saturating_sub(1)).unwrap_or(0));
        if !text.is_empty() {
            text.push_str(", ");
        }
        text += &if run > 1 { format!("{first}-{last}") } else { first.to_string() };
        rest = rest.get(run.max(1)..).unwrap_or_default();
    }
    text
}

/// What a terminal must not be told: control characters come from peers and files, and could move its cursor.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let all = [(0.4, "0 s"), (59.6, "1 m 0 s"), (3_723.0, "1 h 2 m"), (100_000.0, "1 d 3 h")];
        all.into_iter().for_each(|(seconds, text)| assert_eq!(duration(seconds), text));
        assert_eq!((duration(-1.0), duration(f64::NAN)), ("0 s".to_owned(), "0 s".to_owned()));
        let ages = [(59.9, "59 s"), (60.0, "1 m"), (7_000.0, "1 h"), (200_000.0, "2 d")];
        ages.into_iter().for_each(|(seconds, text)| assert_eq!(age(seconds), text));
    }

    #[test]
    fn numbers_fit_a_column() {
        let all = [
            (0.0, "0"),
            (2.0_f64.sqrt(), "1.4142"),
            (12.345, "12.35"),
            (123.456, "123.5"),
            (1e-5, "1.00e-5"),
        ];
        all.into_iter().for_each(|(value, text)| assert_eq!(short(value), text));
        assert_eq!(
            (short(f64::NAN), short(12_345.6), short(2e7)),
            ("-".into(), "12346".into(), "2.00e7".into())
        );
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
        assert_eq!((ranges(&[]), ranges(&[u32::MAX])), (String::new(), u32::MAX.to_string()));
        assert_eq!(clean("a\x1b[2Jb\n"), "a [2Jb ");
    }
}
