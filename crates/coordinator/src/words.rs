//! Words from elsewhere that people will read: in a log, in a status, on a terminal.
//!
//! Invariant: none of them can steer a terminal or fill a disk. Control characters are not let through.

use mcl_proto::WireError;

/// Longest name: of a worker, a device, an address, a version. As long as a host's may be.
const NAME: usize = 255;
/// Longest text: twenty lines of a process's last words.
const TEXT: usize = 32 << 10;

/// A name, as it came.
pub(crate) fn name(field: &'static str, found: String) -> Result<String, WireError> {
    let malformed = |reason: String| WireError::Malformed { field, reason };
    if found.len() > NAME {
        return Err(malformed(format!("{} bytes, expected at most {NAME}", found.len())));
    }
    if found.contains(char::is_control) {
        return Err(malformed(format!("`{}`: expected no control characters", found.escape_debug())));
    }
    Ok(found)
}

/// A text, without what could steer a terminal, and cut where it is too long.
pub(crate) fn text(found: String) -> String {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if found.len() <= TEXT && found.chars().all(harmless) {
        return found;
    }
    let mut room = TEXT;
    let fits = |c: &char| {
        let taken = room.checked_sub(c.len_utf8());
        room = taken.unwrap_or(0);
        taken.is_some()
    };
    found.chars().take_while(fits).map(|c| if harmless(c) { c } else { '\u{fffd}' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["w1", "Rack 7/unit-3", "\u{fc}ber", ""] {
            assert_eq!(name("worker", good.to_owned()).unwrap(), good);
        }
        for bad in ["a\nb", "\u{1b}[2J", "a\0", "\u{9b}31m", "a\r", &"x".repeat(256)] {
            let said = name("worker", bad.to_owned()).unwrap_err().to_string();
            assert!(said.contains("worker") && !said.contains(char::is_control), "{said}");
        }
    }

    #[test]
    fn texts_keep_their_lines_and_lose_what_steers_terminals() {
        assert_eq!(text("a\tb\nc".to_owned()), "a\tb\nc");
        assert_eq!(text("\u{1b}[31mred\u{7}".to_owned()), "\u{fffd}[31mred\u{fffd}");
        let long = text("\u{fc}".repeat(TEXT));
        assert_eq!((long.len(), long.chars().next()), (TEXT, Some('\u{fc}')));
    }
}
