//! What happens to a worker, and what it wants done.

use crate::Farewell;
use mcl_proto::v1::{Configure, Hello, RankCommand, RankEvent, SessionRequest, SessionResponse};
use mcl_types::FencingToken;
use std::time::Duration;

/// One rank process; never used twice for a worker's name, also not by a later life of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessId(pub u64);

/// One attempt at a stream to the coordinator; what an older one still says is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Attempt(pub u64);

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The coordinator said something.
    Said { attempt: Attempt, message: SessionResponse },
    /// The stream could not be opened, broke or ended.
    Down { attempt: Attempt, reason: String },
    /// A rank said something.
    RankSaid { process: ProcessId, event: RankEvent },
    /// A rank wrote something else than frames.
    RankGarbled { process: ProcessId, what: String },
    /// A rank has not taken its commands for too long.
    RankDeaf { process: ProcessId, waiting: usize },
    /// A rank's process runs, its configuration is on its way.
    Started { process: ProcessId },
    /// A rank could not be started.
    NotStarted { process: ProcessId, reason: String },
    /// A rank's process is gone, everything it wrote was read.
    Gone { process: ProcessId, exit: Exit },
    /// Time passed.
    Tick,
    /// The worker is asked to leave.
    Farewell(Farewell),
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    /// "exit status 1", "signal 9".
    pub status: String,
    pub by_signal: bool,
    /// The end of its stderr.
    pub last_words: String,
}

/// One thing to do; performed in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// Make the token durable before anything else is done.
    Persist(FencingToken),
    /// Drop the present stream, wait, open another one with this greeting.
    Connect { attempt: Attempt, hello: Hello, after: Duration },
    /// Say something to the coordinator.
    Send(SessionRequest),
    /// Start a rank process; the configuration is its first command. Answered with `Started` or `NotStarted`.
    Spawn { process: ProcessId, configure: Box<Configure> },
    /// Give a rank a command.
    Command { process: ProcessId, command: RankCommand },
    /// SIGKILL.
    Kill(ProcessId),
    /// Nothing runs any more: end.
    Leave(Ending),
}

/// Why a worker ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    Dismissed(String),
    Shutdown,
    Refused(String),
    Unreachable { waited: Duration, last: String },
}
