//! TCP ports to choose from.

use std::fmt;
use std::str::FromStr;

/// One port or a range of them, as in `29500` or `29500-29509`; never port 0, and never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// No ports to choose from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortRangeError {
    /// Not a number, or two with a dash between.
    #[error("found `{0}`, expected a port from 1 to 65535 or a range of them, as in 29500 or 29500-29509")]
    Malformed(String),
    /// It runs backwards.
    #[error("found `{first}-{last}`, expected the lower port first: {last}-{first}")]
    Backwards {
        /// As found.
        first: u16,
        /// As found.
        last: u16,
    },
}

impl PortRange {
    /// The ports, lowest first.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// Whether `port` is one of them.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;
    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let number = |t: &str| t.trim().parse::<u16>().ok().filter(|port| *port != 0);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first > last => Err(PortRangeError::Backwards { first, last }),
            (Some(first), Some(last)) => Ok(Self { first, last }),
            _ => Err(PortRangeError::Malformed(text.to_owned())),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.first == self.last { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_or_a_range_reads_back_and_nonsense_is_named() {
        for text in ["29500", "29500-29509"] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
        }
        let range: PortRange = " 7 - 9 ".parse().unwrap();
        assert_eq!(range.iter().collect::<Vec<_>>(), [7, 8, 9]);
        assert!(range.contains(9) && !range.contains(10));
        for bad in ["", "x", "0", "0-3", "5-", "-5", "65536", "1-2-3", "29500,29501"] {
            let error = bad.parse::<PortRange>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
        let error = "29509-29500".parse::<PortRange>().unwrap_err().to_string();
        assert!(error.contains("29509-29500") && error.contains("expected"), "{error}");
    }
}
