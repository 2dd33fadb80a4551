//! Errors as exit codes and one clear message.

use mcl_terminal::{has_json_log, tell};
use std::process::ExitCode;

/// Target of the log line that says why a process ends.
pub(crate) const LAST_WORD: &str = "mcl::end";

/// Failed while working.
pub(crate) const FAILED: u8 = 1;
/// Usage or bad configuration.
pub(crate) const USAGE: u8 = 2;
/// Interrupted after a clean drain: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// The configuration, a path or an argument is at fault, not the work.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Prints the error once, with what caused it, and answers its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let told = told(error);
    if has_json_log() && tracing::enabled!(target: LAST_WORD, tracing::Level::ERROR) {
        tracing::error!(target: LAST_WORD, "{told}");
    } else {
        tell!("error: {told}");
    }
    ExitCode::from(code_of(error))
}

/// The error and its causes; a cause that the text before it already quotes is not said again.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

fn code_of(error: &anyhow::Error) -> u8 {
    let is_usage = error.chain().any(|cause| {
        cause.is::<Usage>()
            || cause.is::<mcl_config::ConfigError>()
            || cause.is::<mcl_job::JobError>()
            || cause.downcast_ref::<mcl_data::DatasetError>().is_some_and(|e| !e.may_pass())
    });
    if is_usage { USAGE } else { FAILED }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let inner = std::io::Error::other("disk full");
        let error = anyhow::Error::new(inner).context("writing x: disk full").context("checkpoint");
        assert_eq!(told(&error), "checkpoint: writing x: disk full");
    }
}
