//! Processes with a deadline: whoever is not done by then is killed.

use super::finding::Finding;
use anyhow::{Context, Result, bail};
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often an end is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// Of what a failed process said, so many last lines are told.
const LAST_LINES: usize = 4;

/// The moment by which a check must be over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// This program again, with what `mcl` puts into a rank's environment: NCCL does not end the process by itself.
pub(crate) fn own() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("this executable's own path")?);
    command.env("TORCH_NCCL_ENABLE_MONITORING", "0").env("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0");
    command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "PASSIVE");
    Ok(command)
}

/// A process whose output is collected; killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    output: Option<JoinHandle<String>>,
    errors: Option<JoinHandle<String>>,
}

/// How a process ended and what it said.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
    pub(crate) errors: String,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let (output, errors) = (collect(child.stdout.take()), collect(child.stderr.take()));
        Ok(Self { child, output, errors })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end.
    pub(crate) fn end(mut self, until: Deadline) -> Result<Ended> {
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if until.left().is_zero() => {
                    let _ = self.child.kill();
                    let said = self.errors.take().and_then(|t| t.join().ok()).unwrap_or_default();
                    bail!("not done in time and killed; its last words: {}", last_lines(&said));
                }
                None => std::thread::sleep(LOOK),
            }
        };
        let text =
            |thread: Option<JoinHandle<String>>| thread.and_then(|t| t.join().ok()).unwrap_or_default();
        let (output, errors) = (text(self.output.take()), text(self.errors.take()));
        Ok(Ended { status, output, errors })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn collect(pipe: Option<impl Read + Send + 'static>) -> Option<JoinHandle<String>> {
    let mut pipe = pipe?;
    Some(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }))
}

/// The end of what a process said, on one line.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let from = lines.len().saturating_sub(LAST_LINES);
    lines.get(from..).unwrap_or_default().join(" | ")
}

/// Waits for a part and reads what it found: the last line of its output.
pub(crate) fn findings(part: Running, until: Deadline) -> Result<Vec<Finding>> {
    let Ended { status, output, errors } = part.end(until)?;
    let line = output.lines().next_back().unwrap_or_default();
    if !status.success() || line.is_empty() {
        bail!("{status}: {}", last_lines(&errors));
    }
    serde_json::from_str(line).with_context(|| format!("a part answered `{line}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::start(command).unwrap()
    }

    #[test]
    fn one_that_is_not_done_in_time_is_killed_and_its_words_are_told() {
        let begun = Instant::now();
        let running = shell("echo trying >&2; exec sleep 60");
        let error = running.end(Deadline::after(Duration::from_millis(300))).err().unwrap().to_string();
        assert!(error.contains("trying") && begun.elapsed() < Duration::from_secs(20), "{error}");
    }

    #[test]
    fn what_a_part_found_is_its_last_line_and_a_failure_tells_its_errors() {
        let long = Deadline::after(Duration::from_secs(20));
        assert!(findings(shell("echo noise; echo '[]'"), long).unwrap().is_empty());
        let error = findings(shell("echo '[]'; echo broken >&2; exit 3"), long).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
    }
}
