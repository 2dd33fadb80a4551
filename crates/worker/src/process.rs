//! One rank process: its pipes, its end.
//!
//! Invariants: the process dies with the task that supervises it, and everything in its process group with
//! it; its end is told after everything that it wrote. It has a process group of its own, so that an
//! interrupt typed at a terminal reaches the worker alone, which then stops its ranks in order. A rank
//! leaves when its stdin closes: that is how it learns that its worker died.

use crate::event::{Event, Exit, ProcessId};
use crate::frame::{FrameError, read_frame, write_frame};
use mcl_proto::v1::rank_command::Command as Order;
use mcl_proto::v1::{RankCommand, RankEvent};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tracing::Level;

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
    name: Arc<Name>,
}

/// What a process is called in the log.
#[derive(Debug)]
struct Name {
    worker: String,
    device: String,
    /// Its rank in the generation that it joined last, and one more; 0 before it was one.
    rank: AtomicU64,
}

impl Name {
    fn rank(&self) -> Option<u64> {
        self.rank.load(Ordering::Relaxed).checked_sub(1)
    }
}

impl RankHandle {
    /// Queues a command.
    ///
    /// # Errors
    /// With the number of waiting commands, when the rank does not take them.
    pub fn command(&self, command: RankCommand) -> Result<(), usize> {
        if let Some(Order::Join(join)) = &command.command {
            self.name.rank.store(u64::from(join.rank) + 1, Ordering::Relaxed);
        }
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
    worker: &str,
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
    let (worker, device) = (worker.to_owned(), device.to_owned());
    let name = Arc::new(Name { worker, device, rank: AtomicU64::new(0) });
    let handle = RankHandle { commands, kill: Arc::clone(&kill), name: Arc::clone(&name) };
    tasks.spawn(supervise(Supervised { child }, id, name, queue, kill, events));
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
    name: Arc<Name>,
    queue: mpsc::Receiver<RankCommand>,
    kill: Arc<Notify>,
    events: mpsc::Sender<Event>,
) {
    let (stdin, stdout, stderr) =
        (process.child.stdin.take(), process.child.stdout.take(), process.child.stderr.take());
    let last_words = LastWords::default();
    let writing = feed(stdin, queue);
    let reading = async {
        tokio::join!(listen(stdout, id, &name.device, &events), relay_lines(stderr, &name, &last_words));
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
        tracing::warn!(device = name.device, "the rank is gone, but a child of its own holds its pipes");
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

/// Forwards each line of stderr to the log, at its own level, and keeps the last ones.
async fn relay_lines(stderr: Option<impl AsyncRead + Unpin>, name: &Name, last_words: &LastWords) {
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
        relay(name, line);
        last_words.push(line);
    }
}

/// A line of a rank, with its worker and rank named.
fn relay(name: &Name, line: &str) {
    let (level, said) = level_of(line);
    let (worker, device, rank) = (name.worker.as_str(), name.device.as_str(), name.rank());
    match level {
        Level::ERROR => tracing::error!(target: "rank", worker, rank, device, "{said}"),
        Level::WARN => tracing::warn!(target: "rank", worker, rank, device, "{said}"),
        Level::DEBUG => tracing::debug!(target: "rank", worker, rank, device, "{said}"),
        Level::TRACE => tracing::trace!(target: "rank", worker, rank, device, "{said}"),
        _ => tracing::info!(target: "rank", worker, rank, device, "{said}"),
    }
}

/// The level that a rank's line begins with, and the rest; other lines are from libraries.
fn level_of(line: &str) -> (Level, &str) {
    let line = line.trim_start();
    let known = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
    let found = known.into_iter().find_map(|l| Some((l, line.strip_prefix(l.as_str())?.strip_prefix(' ')?)));
    found.unwrap_or((Level::INFO, line))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tracing_subscriber::fmt::MakeWriter;

    /// A log in memory.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn lines_of_a_rank_keep_their_level_and_say_whose_they_are() {
        let name = Name { worker: "w1".to_owned(), device: "cpu".to_owned(), rank: AtomicU64::new(0) };
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().json().with_writer(log.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            relay(&name, " INFO mcl_rank::train: loading");
            name.rank.store(4, Ordering::Relaxed);
            relay(&name, " WARN mcl_rank::snapshot: skipped step=3");
            relay(&name, "[W socket.cpp:1] WARN of a library");
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let told = |at: usize| {
            let fields = &lines[at]["fields"];
            (
                lines[at]["level"].as_str().unwrap(),
                fields["message"].as_str().unwrap(),
                fields["rank"].as_u64(),
            )
        };
        assert_eq!(told(0), ("INFO", "mcl_rank::train: loading", None));
        assert_eq!(told(1), ("WARN", "mcl_rank::snapshot: skipped step=3", Some(3)));
        assert_eq!(told(2), ("INFO", "[W socket.cpp:1] WARN of a library", Some(3)));
        assert!(lines.iter().all(|l| l["fields"]["worker"] == "w1" && l["target"] == "rank"));
    }
}
