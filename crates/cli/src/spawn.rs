//! Daemons as child processes: their address, their log, their end.

use crate::exit::LAST_WORD;
use anyhow::{Context, Result, bail};
use mcl_terminal::has_json_log;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

/// What a daemon prints before its URL once it serves.
pub(crate) const LISTENING: &str = "listening ";
/// What a coordinator prints when its job's last step is committed: one that was merely told to leave does not.
pub(crate) const DONE: &str = "job done";
/// How long a daemon may take to come up.
const START: Duration = Duration::from_secs(60);
/// How long it may take to go after its input closed.
const LEAVE: Duration = Duration::from_secs(5);

/// How long its last words may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A line for the terminal.
pub(crate) type Show = Arc<dyn Fn(&str) + Send + Sync>;

/// A daemon that this process started. It stops when its standard input closes, so none outlives us.
pub(crate) struct Daemon {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    /// Kept open: a daemon must never meet a closed pipe when it speaks.
    output: Option<Lines<BufReader<ChildStdout>>>,
    errors: Arc<Mutex<Vec<String>>>,
    /// Reads what it says; ends with it.
    reader: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Starts `mcl <arguments>` in a process group of its own (a Ctrl-C on the terminal reaches only us), its
    /// log in `folder/<name>.log`; warnings and errors are shown besides.
    pub(crate) fn start(
        name: &str,
        arguments: &[std::ffi::OsString],
        folder: &Path,
        show: Show,
    ) -> Result<Self> {
        let own = std::env::current_exe().context("this executable's own path")?;
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let path = folder.join(format!("{name}.log"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let format: &[&str] = if has_json_log() { &["--log", "json"] } else { &[] };
        let mut child = Command::new(own)
            .args(format)
            .args(arguments)
            // Each is told by its arguments who it is.
            .env_remove(mcl_transport::VARIABLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().map(|o| BufReader::new(o).lines());
        let errors = Arc::new(Mutex::new(Vec::new()));
        let reader = child
            .stderr
            .take()
            .map(|stderr| tokio::spawn(forward(stderr, log, name.to_owned(), Arc::clone(&errors), show)));
        Ok(Self { name: name.to_owned(), child, input, output, errors, reader })
    }

    /// Waits until it says where it listens.
    pub(crate) async fn url(&mut self) -> Result<String> {
        let lines = self.output.as_mut().context("its output is not ours")?;
        let line = tokio::time::timeout(START, lines.next_line()).await;
        if let Ok(Ok(Some(line))) = &line
            && let Some(url) = line.strip_prefix(LISTENING)
        {
            return Ok(url.to_owned());
        }
        let _ = tokio::time::timeout(LEAVE, self.child.wait()).await;
        bail!("{}", self.last_error().await);
    }

    /// The rest of its next line, where that begins with `word`.
    pub(crate) async fn says(&mut self, word: &str) -> Option<String> {
        let line = tokio::time::timeout(START, self.output.as_mut()?.next_line()).await;
        line.ok()?.ok()??.strip_prefix(word).map(str::to_owned)
    }

    /// Whether it said so before it ended.
    pub(crate) async fn said(&mut self, line: &str) -> bool {
        let Some(lines) = self.output.as_mut() else { return false };
        while let Ok(Some(found)) = lines.next_line().await {
            if found == line {
                return true;
            }
        }
        false
    }

    /// Why it ended, in its own words.
    pub(crate) async fn last_error(&mut self) -> String {
        // Its end is seen before its last words are read.
        if let Some(reader) = self.reader.take() {
            let _ = tokio::time::timeout(LAST_WORDS, reader).await;
        }
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors.last().cloned().unwrap_or_else(|| format!("{} ended without a word", self.name))
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Closes its input, which asks it to leave.
    pub(crate) fn let_go(&mut self) {
        drop(self.input.take());
    }

    /// Closes its input and waits; what does not leave is killed.
    pub(crate) async fn stop(mut self) {
        self.let_go();
        if tokio::time::timeout(LEAVE, self.child.wait()).await.is_err() {
            tracing::warn!(daemon = self.name, "did not leave, killed");
            let _ = self.child.kill().await;
        }
    }
}

async fn forward(
    stderr: tokio::process::ChildStderr,
    mut log: File,
    name: String,
    errors: Arc<Mutex<Vec<String>>>,
    show: Show,
) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let _ = writeln!(log, "{line}");
        match heard(&name, &line) {
            Heard::LastWord(error) => errors.lock().unwrap_or_else(PoisonError::into_inner).push(error),
            Heard::Notable(line) => show(&line),
            Heard::Other => {}
        }
    }
}

/// What a daemon's line is to whoever started it.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// Why it ends.
    LastWord(String),
    /// A warning or an error, ready to be shown.
    Notable(String),
    Other,
}

fn heard(name: &str, line: &str) -> Heard {
    if let Some(error) = line.strip_prefix("error: ") {
        return Heard::LastWord(error.to_owned());
    }
    if let Ok(mut object) = serde_json::from_str::<Map<String, Value>>(line) {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        if text(object.get("target")) == LAST_WORD {
            return Heard::LastWord(text(object.get("fields").and_then(|f| f.get("message"))));
        }
        if !matches!(text(object.get("level")).as_str(), "WARN" | "ERROR") {
            return Heard::Other;
        }
        object.insert("process".to_owned(), name.into());
        return Heard::Notable(Value::Object(object).to_string());
    }
    if line.contains(" WARN ") || line.contains(" ERROR ") {
        return Heard::Notable(format!("{name}: {line}"));
    }
    Heard::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_shown_and_last_words_kept_in_both_formats() {
        let notable = |line: &str| Heard::Notable(line.to_owned());
        assert_eq!(heard("w", "error: no disk"), Heard::LastWord("no disk".to_owned()));
        assert_eq!(heard("w", "10:00  WARN mcl: full"), notable("w: 10:00  WARN mcl: full"));
        assert_eq!(heard("w", "10:00  INFO mcl: fine"), Heard::Other);
        let json = |level: &str, target: &str| {
            format!(r#"{{"level":"{level}","fields":{{"message":"no disk"}},"target":"{target}"}}"#)
        };
        assert_eq!(heard("w", &json("ERROR", LAST_WORD)), Heard::LastWord("no disk".to_owned()));
        assert_eq!(heard("w", &json("INFO", "mcl")), Heard::Other);
        let Heard::Notable(shown) = heard("w", &json("WARN", "mcl")) else { panic!("not shown") };
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!((&shown["process"], &shown["level"]), (&"w".into(), &"WARN".into()));
    }
}
