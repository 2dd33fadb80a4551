//! Places where a test can kill or stop this very process, so that a death falls where it is wanted: at every edge
//! between making something durable and telling somebody, and within a training step.
//!
//! `MCL_FAILPOINT=<name>[:nth][:action]` arms one place: at its `nth` passing (1 by default) the process sends
//! itself SIGKILL (`kill`, the default) or SIGSTOP (`stop`). The variable is handed down to children, so every process
//! checks the name and only the one that it belongs to is armed. Unset, a passing costs one atomic load.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod points;

pub use points::{Failpoint, Process};

use nix::sys::signal::{Signal, raise};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable.
pub const VARIABLE: &str = "MCL_FAILPOINT";

/// What the variable says and this build does not know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailpointError {
    /// No such place.
    #[error(
        "{VARIABLE}={found}: there is no failpoint `{name}`, did you mean `{nearest}`? there are {}",
        names()
    )]
    Name {
        /// What the variable holds.
        found: String,
        /// The name in it.
        name: String,
        /// The one most like it.
        nearest: &'static str,
    },
    /// Neither a count nor an action.
    #[error(
        "{VARIABLE}={found}: `{part}` is neither a count from 1 nor `kill` nor `stop`: expected <name>[:nth][:kill|:stop]"
    )]
    Part {
        /// What the variable holds.
        found: String,
        /// What of it is wrong.
        part: String,
    },
}

fn names() -> String {
    Failpoint::ALL.iter().map(|point| point.name()).collect::<Vec<_>>().join(", ")
}

#[derive(Debug)]
struct Armed {
    at: Failpoint,
    nth: u64,
    signal: Signal,
    passed: AtomicU64,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Reads the environment, once, at the start of a process.
///
/// # Errors
/// When it names something unknown.
pub fn arm_from_environment(process: Process) -> Result<(), FailpointError> {
    if let Some(armed) = from_environment()?.filter(|armed| armed.at.process() == process) {
        // A second call in one process finds it armed already.
        let _ = ARMED.set(armed);
    }
    Ok(())
}

/// For a process without failpoints whose children have some.
///
/// # Errors
/// When the environment names something unknown.
pub fn check_environment() -> Result<(), FailpointError> {
    from_environment().map(drop)
}

fn from_environment() -> Result<Option<Armed>, FailpointError> {
    std::env::var_os(VARIABLE).map(|text| parse(&text.to_string_lossy())).transpose()
}

fn parse(text: &str) -> Result<Armed, FailpointError> {
    let found = || text.to_owned();
    let (name, rest) = text.split_once(':').unwrap_or((text, ""));
    let Some(at) = Failpoint::named(name) else {
        let known = Failpoint::ALL.iter().map(|point| point.name());
        let nearest = known.min_by_key(|known| strsim::damerau_levenshtein(known, name)).unwrap_or_default();
        return Err(FailpointError::Name { found: found(), name: name.to_owned(), nearest });
    };
    let mut armed = Armed { at, nth: 1, signal: Signal::SIGKILL, passed: AtomicU64::new(0) };
    for part in rest.split(':').filter(|_| name.len() < text.len()) {
        let number = part.parse().ok().filter(|n| *n > 0);
        match (part, number) {
            ("kill", _) => armed.signal = Signal::SIGKILL,
            ("stop", _) => armed.signal = Signal::SIGSTOP,
            (_, Some(number)) => armed.nth = number,
            (_, None) => return Err(FailpointError::Part { found: found(), part: part.to_owned() }),
        }
    }
    Ok(armed)
}

/// Whether this place is armed, where being ready for it costs something.
pub fn is_armed(at: Failpoint) -> bool {
    ARMED.get().is_some_and(|a| a.at == at)
}

/// Passes a place.
#[inline]
pub fn pass(at: Failpoint) {
    if let Some(armed) = ARMED.get()
        && armed.at == at
    {
        armed.strike();
    }
}

impl Armed {
    #[cold]
    fn strike(&self) {
        if self.passed.fetch_add(1, Ordering::Relaxed) + 1 != self.nth {
            return;
        }
        tracing::warn!(name = self.at.name(), nth = self.nth, signal = %self.signal, "failpoint reached");
        if let Err(error) = raise(self.signal) {
            tracing::error!(%error, "failpoint");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_variable_is_checked() {
        let armed = parse("rank/mid-backward:3:stop").unwrap();
        assert_eq!((armed.at, armed.nth, armed.signal), (Failpoint::MidBackward, 3, Signal::SIGSTOP));
        let armed = parse("coordinator/ledger-synced").unwrap();
        assert_eq!((armed.at, armed.nth, armed.signal), (Failpoint::LedgerSynced, 1, Signal::SIGKILL));
        for bad in ["rank/forward:0", "rank/forward:kil", "rank/forward:", "rank/forward:2:"] {
            let error = parse(bad).unwrap_err();
            assert!(matches!(error, FailpointError::Part { .. }), "{bad}: {error}");
        }
        assert!(parse("").is_err());
        let text = parse("rank/forwards:2").unwrap_err().to_string();
        assert!(text.contains("`rank/forwards`") && text.contains("did you mean `rank/forward`"), "{text}");
        assert!(text.contains("checkpoint/before-manifest"), "{text}");
    }

    #[test]
    fn names_are_kebab_case_under_their_process_and_no_two_are_the_same() {
        let mut seen = BTreeSet::new();
        for point in Failpoint::ALL {
            let (name, process) = (point.name(), format!("{:?}/", point.process()).to_lowercase());
            let rest = name.strip_prefix(&process).unwrap_or_default();
            let kebab = rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') && !rest.is_empty();
            assert!(kebab && seen.insert(name), "{name}");
        }
    }
}
