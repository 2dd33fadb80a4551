//! One rank process: its pipes, its end.
//!
//! Invariants: the process dies with the task that supervises it, and everything in its process group with
//! it; its end is told after everything that it wrote. It has a process group of its own, so that an
//! interrupt typed at a terminal reaches the worker alone, which then stops its ranks in order. A rank
//! leaves when its stdin closes: that is how it learns that its worker died.

use crate::event::{Event, Exit, ProcessId};
use crate::frame::{FrameError, read_frame, write_frame};
use mcl_proto::v1::{RankCommand, RankEvent};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

/// Commands that may wait for a rank; one that lets more pile up has stopped reading.
pub(crate) const COMMAND_QUEUE: usize = 256;
/// Lines of stderr that are kept for the report of its end.
const LAST_LINES: usize = 20;
/// Bytes of one line of stderr; a longer one is cut into several.
const LINE_BYTES: u64 = 8 << 10;
/// How long a process that is gone may leave its pipes open (a child of its own holds them).
const LINGER: Duration = Duration::from_millis(500);

/// A hold on a running rank.
#[derive(Debug)]
pub(crate) struct RankHandle {
    commands: mpsc::Sender<RankCommand>,
    kill: Arc<Notify>,
}

impl RankHandle {
    /// Queues a command.
    ///
    /// # Errors
    /// With the number of waiting commands, when the rank does not take them.
    pub fn command(&self, command: RankCommand) -> Result<(), usize> {
        match self.commands.try_send(command) {
            // Closed: its stdin broke, so its end is on its way.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(COMMAND_QUEUE),
        }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.kill.notify_one();
    }
}

/// Starts `<program> train` and a task in `tasks` that supervises it.
pub(crate) fn spawn(
    id: ProcessId,
    device: &str,
    program: &Path,
    env: &[(String, String)],
    tasks: &mut JoinSet<()>,
    events: mpsc::Sender<Event>,
) -> io::Result<RankHandle> {
    let child = Command::new(program)
        .arg("train")
        .envs(env.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    tracing::info!(device, process = id.0, pid = child.id(), "rank started");
    let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
    let kill = Arc::new(Notify::new());
    let handle = RankHandle { commands, kill: Arc::clone(&kill) };
    tasks.spawn(supervise(Supervised { child }, id, device.to_owned(), queue, kill, events));
    Ok(handle)
}

/// A child that takes its whole process group along.
struct Supervised {
    child: Child,
}

impl Supervised {
    /// Only while the child is not reaped, so that the number still belongs to it.
    fn kill_group(&mut self) {
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok())
            && let Err(error) = killpg(Pid::from_raw(id), Signal::SIGKILL)
        {
            tracing::warn!(pid = id, %error, "cannot kill the rank's process group");
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.kill_group();
    }
}

async fn supervise(
    mut process: Supervised,
    id: ProcessId,
    device: String,
    queue: mpsc::Receiver<RankCommand>,
    kill: Arc<Notify>,
    events: mpsc::Sender<Event>,
) {
    let (stdin, stdout, stderr) =
        (process.child.stdin.take(), process.child.stdout.take(), process.child.stderr.take());
    let last_words = LastWords::default();
    let writing = feed(stdin, queue);
    let reading = async {
        tokio::join!(listen(stdout, id, &device, &events), relay_lines(stderr, &device, &last_words));
    };
    tokio::pin!(writing, reading);
    let (mut still_writing, mut still_reading) = (true, true);
    let status = loop {
        tokio::select! {
            status = process.child.wait() => break status,
            () = kill.notified() => process.kill_group(),
            () = &mut writing, if still_writing => still_writing = false,
            () = &mut reading, if still_reading => still_reading = false,
        }
    };
    if still_reading && tokio::time::timeout(LINGER, &mut reading).await.is_err() {
        tracing::warn!(device, "the rank is gone, but a child of its own holds its pipes");
    }
    let exit = describe(status, last_words.text());
    // Nobody listens any more where the worker itself is leaving.
    let _ = events.send(Event::Gone { process: id, exit }).await;
}

fn describe(status: io::Result<ExitStatus>, last_words: String) -> Exit {
    let (status, by_signal) = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => (format!("exit status {code}"), false),
            (None, Some(signal)) => (format!("signal {signal}"), true),
            (None, None) => (status.to_string(), false),
        },
        Err(error) => (format!("unknown status: {error}"), false),
    };
    Exit { status, by_signal, last_words }
}

/// Writes commands until there are no more or the pipe breaks; then the pipe is closed.
async fn feed(stdin: Option<ChildStdin>, mut queue: mpsc::Receiver<RankCommand>) {
    let Some(mut stdin) = stdin else { return };
    while let Some(command) = queue.recv().await {
        if let Err(error) = write_frame(&mut stdin, &command).await {
            return tracing::debug!(%error, "a rank's stdin is closed");
        }
    }
}

/// Reads events until the pipe ends. A frame that the rank's end has cut off is nobody's fault.
async fn listen(stdout: Option<ChildStdout>, id: ProcessId, device: &str, events: &mpsc::Sender<Event>) {
    let Some(stdout) = stdout else { return };
    let mut stdout = BufReader::new(stdout);
    loop {
        let event = match read_frame::<RankEvent, _>(&mut stdout).await {
            Ok(Some(event)) => Event::RankSaid { process: id, event },
            Ok(None) => return,
            Err(error @ (FrameError::Io(_) | FrameError::Truncated { .. })) => {
                return tracing::debug!(device, %error, "the rank's stdout ended");
            }
            Err(error) => Event::RankGarbled { process: id, what: error.to_string() },
        };
        let garbled = matches!(event, Event::RankGarbled { .. });
        if events.send(event).await.is_err() || garbled {
            return;
        }
    }
}

/// Forwards each line of stderr to the log and keeps the last ones.
async fn relay_lines(stderr: Option<impl AsyncRead + Unpin>, device: &str, last_words: &LastWords) {
    let Some(stderr) = stderr else { return };
    let mut stderr = BufReader::new(stderr);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match (&mut stderr).take(LINE_BYTES).read_until(b'\n', &mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_end();
        tracing::info!(target: "rank", device, line);
        last_words.push(line);
    }
}

#[derive(Default)]
struct LastWords(Mutex<VecDeque<String>>);

impl LastWords {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    fn text(&self) -> String {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.make_contiguous().join("\n")
    }
}
