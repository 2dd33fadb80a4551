//! What may be sent to where output goes: colours, bars, a whole screen; and whether log lines are JSON, which is one
//! choice for the process and those that it starts.

use std::io::IsTerminal;
use std::sync::OnceLock;

static JSON_LOG: OnceLock<bool> = OnceLock::new();

/// Log lines are JSON objects, or not; said once, at the start.
pub(crate) fn choose_log(json: bool) {
    let _ = JSON_LOG.set(json);
}

/// Whether every line on standard error is to be a JSON object.
pub(crate) fn has_json_log() -> bool {
    JSON_LOG.get().copied().unwrap_or(false)
}

/// Whether a stream is to have colours: only on a terminal that knows them, and not where NO_COLOR says no.
pub(crate) fn has_colour(is_terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    is_terminal && !set("NO_COLOR") && !is_dumb()
}

/// Whether standard output can show a whole screen, and standard input gives keys.
pub(crate) fn has_screen() -> bool {
    std::io::stdout().is_terminal() && std::io::stdin().is_terminal() && !is_dumb()
}

fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|t| t == "dumb")
}
