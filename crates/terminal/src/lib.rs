//! What is printed, and what the place where output goes can show.
//!
//! Role: results go to standard output by [`say!`], what is said besides to standard error by [`tell!`] or as a log line.
//! Invariants: whoever reads may have had enough (`mcl ... | head`), which neither ends the process nor makes it fail;
//! whether log lines are JSON is one choice for the process, made before its first line. Left out: bars and whole screens.
#![forbid(unsafe_code)]

use std::fmt::Arguments;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

static JSON_LOG: OnceLock<bool> = OnceLock::new();

/// A line on standard output, as `println!` makes it: `say!("{n} pictures")?`.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::line(::std::format_args!($($text)*)) };
}

/// A line on standard error, which nobody need be able to read.
#[macro_export]
macro_rules! tell {
    ($($text:tt)*) => { $crate::aside(::std::format_args!($($text)*)) };
}

/// How log lines look and where they go.
#[derive(Debug, Clone, Copy)]
pub struct Log<'a> {
    /// One JSON object a line.
    pub json: bool,
    /// A whole screen is on the terminal, which lines would tear: there are none on it.
    pub full_screen: bool,
    /// With the time.
    pub times: bool,
    /// What is logged where `RUST_LOG` does not say.
    pub filter: &'a str,
}

impl Log<'_> {
    /// Begins to log.
    pub fn init(self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(self.filter));
        let terminal = io::stderr().is_terminal();
        let hidden = terminal && self.full_screen;
        // What is said last is for people then.
        let _ = JSON_LOG.set(self.json && !hidden);
        let writer = if hidden { BoxMakeWriter::new(io::sink) } else { BoxMakeWriter::new(io::stderr) };
        // An error of the writer is not written: there is nowhere to.
        let lines = tracing_subscriber::fmt()
            .with_writer(writer)
            .with_env_filter(filter)
            .with_ansi(has_colour(terminal))
            .log_internal_errors(false);
        match (self.json, self.times) {
            (true, _) => lines.json().init(),
            (false, true) => lines.init(),
            (false, false) => lines.without_time().init(),
        }
    }
}

/// Whether every line on standard error is to be a JSON object.
pub fn has_json_log() -> bool {
    JSON_LOG.get().copied().unwrap_or(false)
}

/// Whether a stream is to have colours: only on a terminal that knows them, and not where `NO_COLOR` says no.
pub fn has_colour(is_terminal: bool) -> bool {
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && !is_dumb()
}

/// Whether standard error can show a bar that moves.
pub fn has_bars() -> bool {
    io::stderr().is_terminal() && !is_dumb() && !has_json_log()
}

/// Whether standard output can show a whole screen, and standard input gives keys.
pub fn has_screen() -> bool {
    io::stdout().is_terminal() && io::stdin().is_terminal() && !is_dumb()
}

fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|t| t == "dumb")
}

/// Prints to standard output.
///
/// # Errors
/// When it cannot be written for another reason than that nobody reads it any more.
pub fn print(text: &str) -> io::Result<()> {
    unless_closed(write(&mut io::stdout().lock(), format_args!("{text}")))
}

/// See [`say!`].
///
/// # Errors
/// Those of [`print()`].
pub fn line(text: Arguments<'_>) -> io::Result<()> {
    unless_closed(write(&mut io::stdout().lock(), format_args!("{text}\n")))
}

/// See [`tell!`].
pub fn aside(text: Arguments<'_>) {
    let _ = write(&mut io::stderr().lock(), format_args!("{text}\n"));
}

fn write(out: &mut impl Write, text: Arguments<'_>) -> io::Result<()> {
    // In one piece: parts of others' lines do not come between.
    out.write_all(text.to_string().as_bytes())?;
    out.flush()
}

fn unless_closed(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
