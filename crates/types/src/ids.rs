//! The integers and names of the design, one type each.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Wraps a bare number.
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }
            /// The bare number.
            pub const fn get(self) -> $inner {
                self.0
            }
            /// The next one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number!(
    /// A device's place in one generation, 0..world size.
    Rank, u32, "rank "
);
number!(
    /// A logical rank: what the method calls "rank". The job fixes how many there are.
    Lane, u32, "lane "
);
number!(
    /// A picture's place inside a lane's batch, 0..N.
    Slot, u32, "slot "
);
number!(
    /// Count of optimiser steps over the whole run: step t is the t-th, from 0.
    Step, u64, "step "
);
number!(
    /// One pass over the data.
    Epoch, u64, "epoch "
);
number!(
    /// One membership; grows with every change of who takes part.
    Generation, u64, "generation "
);
number!(
    /// One reign of a coordinator; grows with every start of one.
    Term, u64, "term "
);
number!(
    /// A picture's place in the dataset's sorted index.
    SampleIndex, u64, "sample "
);

/// Name of a worker daemon, unique in its cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerName(String);

impl WorkerName {
    /// Any name will do; uniqueness is the coordinator's business.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }
    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a run: also a folder name, so it is limited to `[A-Za-z0-9._-]`, 1 to 64 characters, not
/// starting with a dot. That makes path traversal through it impossible.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

/// A run name that cannot be a folder name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "run name `{found}` is not usable: expected 1 to 64 characters of A-Z a-z 0-9 . _ - and no leading dot"
)]
pub struct RunIdError {
    found: String,
}

impl RunId {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// When the name holds anything but `[A-Za-z0-9._-]`, is empty, too long, or starts with a dot.
    pub fn new(name: impl Into<String>) -> Result<Self, RunIdError> {
        let name = name.into();
        let fits = (1..=64).contains(&name.len())
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if fits { Ok(Self(name)) } else { Err(RunIdError { found: shown(&name) }) }
    }
    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Enough of a bad name to know it by, and nothing that steers a terminal.
fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if name.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Characters of a bad name that an error repeats.
const SHOWN: usize = 80;

impl TryFrom<String> for RunId {
    type Error = RunIdError;
    fn try_from(value: String) -> Result<Self, Self::Error> {
        Self::new(value)
    }
}

impl From<RunId> for String {
    fn from(value: RunId) -> Self {
        value.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_names_cannot_leave_their_folder() {
        // Among them what looks like a dot, a slash or an `a` and is none.
        let alike =
            ["\u{2024}\u{2024}", "\u{ff0e}\u{ff0e}", "a\u{2215}b", "a\u{ff0f}b", "\u{430}", "a\u{200b}b"];
        let plain =
            ["", ".", "..", ".hidden", "a/b", "/a", "a\\b", "a b", "a\0b", "a\nb", "a:b", "\u{fc}", "a/../b"];
        for bad in plain.into_iter().chain(alike).chain([&*"x".repeat(65), &*"x".repeat(1 << 20)]) {
            assert!(RunId::new(bad).is_err(), "{bad:?} was accepted");
            let said = RunId::new(bad).unwrap_err().to_string();
            assert!(said.len() < 1000 && !said.contains(char::is_control), "{said}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<RunId>(&json).is_err(), "{bad:?} was accepted from a file");
        }
        for good in ["demo", "r50-imagenet_2.1", "0"] {
            assert!(RunId::new(good).is_ok(), "{good:?} was refused");
        }
    }
}
