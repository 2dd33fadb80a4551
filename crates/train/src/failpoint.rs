//! Places where a test can kill or stop this very process, so that a death falls where it is wanted.
//!
//! `MCL_FAILPOINT=<name>[:nth][:action]` arms one place: at its `nth` passing (1 by default) the process sends
//! itself SIGKILL (`kill`, the default) or SIGSTOP (`stop`). Unset, a passing costs one atomic load.

use nix::sys::signal::{Signal, raise};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable.
const VARIABLE: &str = "MCL_FAILPOINT";

/// Where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    /// Between connecting to the store and forming the group.
    Rendezvous,
    /// Between two parts of a state on its way to other ranks.
    StateTransfer,
    /// Before a step's forward pass.
    Forward,
    /// In the backward pass, half of the gradients there.
    MidBackward,
    /// All gradients reduced, nothing updated.
    BeforeUpdate,
    /// Online weights updated, momentum encoder and buffers not.
    MidUpdate,
    /// The step is applied and nobody was told.
    AfterUpdateBeforeReport,
}

const NAMES: [(&str, Failpoint); 7] = [
    ("rendezvous", Failpoint::Rendezvous),
    ("state-transfer", Failpoint::StateTransfer),
    ("forward", Failpoint::Forward),
    ("mid-backward", Failpoint::MidBackward),
    ("before-update", Failpoint::BeforeUpdate),
    ("mid-update", Failpoint::MidUpdate),
    ("after-update-before-report", Failpoint::AfterUpdateBeforeReport),
];

/// What the variable says and this build does not know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE}={found}: expected <name>[:nth][:kill|:stop] with a name of {}", names())]
pub struct FailpointError {
    found: String,
}

fn names() -> String {
    NAMES.map(|(name, _)| name).join(", ")
}

#[derive(Debug)]
struct Armed {
    at: Failpoint,
    nth: u64,
    signal: Signal,
    passed: AtomicU64,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Reads the environment, once, at the start of the process.
///
/// # Errors
/// When it names something unknown.
pub fn arm_from_environment() -> Result<(), FailpointError> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
    let armed = parse(&text).ok_or(FailpointError { found: text })?;
    // A second call in one process finds it armed already.
    let _ = ARMED.set(armed);
    Ok(())
}

fn parse(text: &str) -> Option<Armed> {
    let mut parts = text.split(':');
    let name = parts.next()?;
    let (_, at) = NAMES.iter().find(|(n, _)| *n == name)?;
    let mut armed = Armed { at: *at, nth: 1, signal: Signal::SIGKILL, passed: AtomicU64::new(0) };
    for part in parts {
        match part {
            "kill" => armed.signal = Signal::SIGKILL,
            "stop" => armed.signal = Signal::SIGSTOP,
            number => armed.nth = number.parse().ok().filter(|n| *n > 0)?,
        }
    }
    Some(armed)
}

/// Whether this place is armed, where being ready for it costs something.
pub fn is_armed(at: Failpoint) -> bool {
    ARMED.get().is_some_and(|a| a.at == at)
}

/// Passes a place.
pub fn pass(at: Failpoint) {
    let Some(armed) = ARMED.get() else { return };
    if armed.at == at
        && armed.passed.fetch_add(1, Ordering::Relaxed) + 1 == armed.nth
        && let Err(error) = raise(armed.signal)
    {
        tracing::error!(%error, "failpoint");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_checked() {
        let armed = parse("mid-backward:3:stop").unwrap();
        assert_eq!((armed.at, armed.nth, armed.signal), (Failpoint::MidBackward, 3, Signal::SIGSTOP));
        let armed = parse("forward").unwrap();
        assert_eq!((armed.nth, armed.signal), (1, Signal::SIGKILL));
        for bad in ["", "backward", "forward:0", "forward:kil"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        let text = FailpointError { found: "x".to_owned() }.to_string();
        assert!(text.contains("after-update-before-report"), "{text}");
    }
}
