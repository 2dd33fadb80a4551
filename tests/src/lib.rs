//! A sandbox for whole-system scenarios: a folder, generated pictures, a small job, and the real `mcl`.
//!
//! Left out: anything in-process. What these tests see is what a person sees: files, exit codes, output.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

pub mod browser;
pub mod chaos;
pub mod cluster;
pub mod documents;
pub mod hostile;
pub mod looking_on;
pub mod measure;
pub mod network;
pub mod processes;
pub mod pty;
pub mod siege;
pub mod story;
pub mod watch;

use mcl_checkpoint_core::{CheckpointDir, OwnedTensor};
use mcl_types::Step;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take at most.
const PATIENCE: Duration = Duration::from_secs(120);

/// The built `mcl`, two folders above the test executables.
pub fn mcl() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.ancestors().find(|up| up.join("mcl").is_file());
    folder
        .expect("mcl is not built: `make test` builds it, or cargo build --bins -p mcl-cli -p mcl-rank")
        .join("mcl")
}

/// A folder of its own with 160 generated objects in `objects/`. It goes with the test, unless the test fails: then it
/// stays and its path is said.
#[derive(Debug)]
pub struct Sandbox {
    folder: PathBuf,
    environment: Vec<(&'static str, String)>,
}

/// A small job over the sandbox's pictures; extra lines go to their sections by `--set`.
pub const JOB: &str = r#"
[data]
source = "objects"
[augment]
blur_p_q = 0.0
blur_p_k = 0.0
[model]
depth = 18
width = 8
image_size = 32
fpn_channels = 16
projector_convs = 1
projector_hidden = 32
embedding = 16
predictor_hidden = 32
[method]
compute = "exact"
temperature = 0.2
levels = [1, 2, 4]
level_weights = [0.5, 0.25, 0.25]
base_momentum = 0.9
[batch]
lanes = 2
images_per_lane = 8
[train]
steps = 20
[optimizer]
kind = "adamw"
lr = 2e-3
min_lr = 0.0
warmup_steps = 2
[checkpoint]
every_steps = 10
"#;

/// Settings under which runs on different numbers of workers agree but for rounding: at 32 pixels P5 has one cell and
/// norms see means that are zero but for noise.
pub const SIX_LANES_IN_F64: [&str; 6] = [
    "model.image_size=64",
    "train.precision=f64",
    "batch.lanes=6",
    "batch.images_per_lane=4",
    "optimizer.kind=lars",
    "optimizer.lr=0.1",
];

impl Sandbox {
    /// A new one.
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap().keep(), 160)
    }

    /// One in a folder that is there, with so many pictures.
    pub fn at(folder: PathBuf, pictures: u32) -> Self {
        let sandbox = Self { folder, environment: Vec::new() };
        let count = pictures.to_string();
        sandbox.ok(&["data", "generate", "objects", "--out", "objects", "--count", &count, "--seed", "5"]);
        std::fs::write(sandbox.path("job.toml"), JOB).unwrap();
        sandbox
    }

    /// What every `mcl` in it finds in its environment.
    pub fn with_environment(mut self, environment: Vec<(&'static str, String)>) -> Self {
        self.environment = environment;
        self
    }

    /// Its folder stays when it goes.
    pub fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.folder)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `mcl` with arguments, in the sandbox.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(mcl());
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Runs to the end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs to the end and expects success; standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "mcl {arguments:?}: {}\n{}", output.status, error_of(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs to the end, expects success and one JSON object.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// Runs to the end and expects this exit code and these words in the error.
    pub fn fails(&self, code: i32, words: &[&str], arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(code), "mcl {arguments:?}:\n{error}");
        for word in words {
            assert!(error.contains(word), "mcl {arguments:?}: `{word}` is not in:\n{error}");
        }
        let errors = error.lines().filter(|l| l.starts_with("error:")).count();
        assert_eq!(errors, 1, "expected one clear error:\n{error}");
        error
    }

    /// `mcl run job.toml` into `run_dir` with overrides, to the end; its summary.
    pub fn train(&self, run_dir: &str, workers: u32, overrides: &[&str]) -> Value {
        self.json(&run_arguments(run_dir, &workers.to_string(), overrides))
    }

    /// The same, left running.
    pub fn start(&self, run_dir: &str, workers: u32, overrides: &[&str]) -> Running {
        self.start_with(run_dir, workers, overrides, &[])
    }

    /// The same with further arguments.
    pub fn start_with(&self, run_dir: &str, workers: u32, overrides: &[&str], more: &[&str]) -> Running {
        let workers = workers.to_string();
        let mut arguments = run_arguments(run_dir, &workers, overrides);
        arguments.extend(more);
        let child = self.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running { child, run_dir: self.path(run_dir) }
    }

    /// Digest of the newest good checkpoint.
    pub fn digest(&self, run_dir: &str) -> String {
        self.ok(&["checkpoint", "digest", run_dir]).trim().to_owned()
    }

    /// Every tensor of the newest good checkpoint, or of one step.
    pub fn tensors(&self, run_dir: &str, step: u64) -> BTreeMap<String, OwnedTensor> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = CheckpointDir::open(self.path(run_dir)).unwrap();
        runtime.block_on(dir.tensors(Step::new(step))).unwrap().1
    }

    /// Lines of metrics.jsonl.
    pub fn metrics(&self, run_dir: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(run_dir).join("metrics.jsonl")).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Expects the ledger to be exact; the report.
    pub fn exact_ledger(&self, run_dir: &str) -> Value {
        let report = self.json(&["ledger", "verify", run_dir, "--json"]);
        assert_eq!(report["exact"], true, "{report}");
        report
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.folder.as_os_str().is_empty() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("what is left to look at: {}", self.folder.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

fn run_arguments<'a>(run_dir: &'a str, workers: &'a str, overrides: &[&'a str]) -> Vec<&'a str> {
    let mut arguments =
        vec!["run", "job.toml", "--json", "--devices", "cpu", "--run-dir", run_dir, "--workers", workers];
    for o in overrides {
        arguments.extend(["--set", o]);
    }
    arguments
}

/// What a process wrote to standard error.
pub fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run under way.
#[derive(Debug)]
pub struct Running {
    child: Child,
    run_dir: PathBuf,
}

impl Running {
    /// Waits until a condition on the run directory holds.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Path) -> bool) {
        let started = Instant::now();
        while !holds(&self.run_dir) {
            assert!(started.elapsed() < PATIENCE, "{what} did not come to pass");
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the run ended ({status}) before {what}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal to `mcl run` itself, as a terminal or a cluster would.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// SIGKILL for every process of this run: the command, its daemons and their ranks.
    pub fn kill_everything(mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }

    /// The command and everything below it, by parent.
    pub fn processes(&self) -> Vec<processes::ProcessId> {
        processes::family(i32::try_from(self.child.id()).unwrap())
    }

    /// Waits for the end.
    pub fn end(self) -> Output {
        self.child.wait_with_output().unwrap()
    }
}

/// Whether the checkpoint of `step` is visible in a run directory.
pub fn checkpoint_visible(run_dir: &Path, step: u64) -> bool {
    run_dir.join(format!("checkpoints/step-{step:010}/manifest.json")).is_file()
}

/// Committed steps in a run directory.
pub fn committed(run_dir: &Path) -> usize {
    std::fs::read_to_string(run_dir.join("metrics.jsonl")).map_or(0, |t| t.lines().count())
}

/// The newest line of a run directory's metrics.
pub fn last_metric(run_dir: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(run_dir.join("metrics.jsonl")).ok()?;
    let whole = &text[..=text.rfind('\n')?];
    serde_json::from_str(whole.lines().last()?).ok()
}

/// Largest difference of two states, tensor by tensor, relative to the tensor's largest entry.
pub fn largest_error(a: &BTreeMap<String, OwnedTensor>, b: &BTreeMap<String, OwnedTensor>) -> f64 {
    let errors = tensor_errors(a, b);
    for (error, name) in errors.iter().take(3) {
        println!("  {error:.1e} {name}");
    }
    errors.first().map_or(0.0, |(error, _)| *error)
}

/// The same for every tensor, largest first.
pub fn tensor_errors(
    a: &BTreeMap<String, OwnedTensor>,
    b: &BTreeMap<String, OwnedTensor>,
) -> Vec<(f64, String)> {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let errors = a.iter().map(|(name, a)| {
        let (a, b) = (values(a), values(&b[name]));
        let floor = if has_no_gradient(name) { 1.0 } else { 1e-6_f64 };
        let scale = b.iter().fold(floor, |m, v| m.max(v.abs()));
        (a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale, name.clone())
    });
    let mut errors: Vec<_> = errors.collect();
    errors.sort_by(|a, b| b.0.total_cmp(&a.0));
    errors
}

/// Biases before a batch norm: their gradient is zero but for rounding noise, so they are compared absolutely.
fn has_no_gradient(name: &str) -> bool {
    name.ends_with(".mlp.0.bias") || name.ends_with(".2.mlp.3.bias")
}

/// 64-bit numbers of a tensor.
fn values(t: &OwnedTensor) -> Vec<f64> {
    let words = t.bytes.as_chunks::<8>().0;
    match t.dtype {
        mcl_checkpoint_core::Dtype::F64 => words.iter().map(|w| f64::from_le_bytes(*w)).collect(),
        #[expect(clippy::cast_precision_loss, reason = "counters")]
        mcl_checkpoint_core::Dtype::I64 => words.iter().map(|w| i64::from_le_bytes(*w) as f64).collect(),
        other => panic!("a tensor of {other:?} in an f64 run"),
    }
}
