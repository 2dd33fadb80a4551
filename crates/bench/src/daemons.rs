//! The daemons that are measured: children that end with us.

use crate::BenchError;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// What a daemon prints before its URL once it serves.
const LISTENING: &str = "listening ";
/// How long it may take to come up.
const START: Duration = Duration::from_secs(30);
/// How long it may take to go after its input closed.
const LEAVE: Duration = Duration::from_secs(5);

/// All agents come from one address, and there may be more than a real coordinator would take.
const MANY: &str = "65536";

/// Coordinator and checkpoint service.
#[derive(Debug)]
pub(crate) struct Daemons {
    coordinator: Daemon,
    checkpoints: Daemon,
    pub(crate) url: String,
}

impl Daemons {
    /// In `folder`, which holds their logs and all that they write.
    pub(crate) async fn start(program: &Path, folder: &Path) -> Result<Self, BenchError> {
        let root = folder.join("checkpoints");
        let arguments = ["checkpoint-server".into(), "--root".into(), root.into_os_string()];
        let mut checkpoints = Daemon::start("checkpoint-server", program, &arguments, folder)?;
        let service = checkpoints.url().await?;
        let run_dir = folder.join("run");
        let arguments = [
            "coordinator".into(),
            "--run-dir".into(),
            run_dir.into_os_string(),
            "--checkpoint".into(),
            service.into(),
            "--max-connections".into(),
            MANY.into(),
            "--max-connections-per-address".into(),
            MANY.into(),
        ];
        let mut coordinator = Daemon::start("coordinator", program, &arguments, folder)?;
        let url = coordinator.url().await?;
        Ok(Self { coordinator, checkpoints, url })
    }

    /// The coordinator's.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.coordinator.child.id()
    }

    /// Why the coordinator is gone, where it is.
    pub(crate) fn coordinator_ended(&mut self) -> Option<String> {
        let status = self.coordinator.child.try_wait().ok().flatten()?;
        Some(format!("{status}: {}", self.coordinator.last_words()))
    }

    /// Ends both.
    pub(crate) async fn stop(self) {
        self.coordinator.stop().await;
        self.checkpoints.stop().await;
    }
}

#[derive(Debug)]
struct Daemon {
    name: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    /// Kept open: a daemon must never meet a closed pipe when it speaks.
    output: Option<Lines<BufReader<ChildStdout>>>,
    log: PathBuf,
}

impl Daemon {
    fn start(
        name: &'static str,
        program: &Path,
        arguments: &[std::ffi::OsString],
        folder: &Path,
    ) -> Result<Self, BenchError> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).map_err(BenchError::file("create", &log))?;
        let mut child = Command::new(program)
            .args(arguments)
            .arg("--stop-with-stdin")
            .env_remove(mcl_transport::VARIABLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            // A Ctrl-C on the terminal reaches only us, and they end with us.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(BenchError::file("start", program))?;
        let input = child.stdin.take();
        let output = child.stdout.take().map(|o| BufReader::new(o).lines());
        Ok(Self { name, child, input, output, log })
    }

    /// Waits until it says where it listens.
    async fn url(&mut self) -> Result<String, BenchError> {
        if let Some(lines) = self.output.as_mut()
            && let Ok(Ok(Some(line))) = tokio::time::timeout(START, lines.next_line()).await
            && let Some(url) = line.strip_prefix(LISTENING)
        {
            return Ok(url.to_owned());
        }
        Err(BenchError::Daemon { daemon: self.name, reason: self.last_words() })
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let said = log.lines().rev().find(|line| !line.trim().is_empty());
        said.map_or_else(|| format!("no word within {} s", START.as_secs()), str::to_owned)
    }

    async fn stop(mut self) {
        drop(self.input.take());
        if tokio::time::timeout(LEAVE, self.child.wait()).await.is_err() {
            tracing::warn!(daemon = self.name, "did not leave, killed");
            let _ = self.child.kill().await;
        }
    }
}
