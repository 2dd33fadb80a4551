//! Checkpoint and resume through `mcl run` with real processes: a run that was drained and taken up again follows the one
//! that never was.
//!
//! What is compared: every step's loss, in f64, to 1e-6. On a CPU the weights' digests too, bit by bit; on a GPU kernels that
//! add in no fixed order differ in bits, so there equality is a figure and no verdict.

use super::Stage;
use super::finding::Finding;
use super::process::{Deadline, Ended, Running, last_lines};
use anyhow::{Context, Result, bail};
use mcl_data::generate::{GenerateSpec, generate};
use mcl_types::Seed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Steps of a run, so many that an interrupt after a few comes in its middle.
const STEPS: usize = 60;
/// Committed steps after which the run is interrupted.
const INTERRUPT_AT: usize = 5;
/// How `mcl run` ends after a drain.
const INTERRUPTED: i32 = 130;
/// Largest relative difference of a step's losses.
const TOLERANCE: f64 = 1e-6;
/// How often the run is looked at.
const LOOK: Duration = Duration::from_millis(10);

const JOB: &str = r#"
[data]
source = "objects"
views = "level"
[model]
depth = 18
width = 8
image_size = 64
fpn_channels = 16
projector_convs = 1
projector_hidden = 32
embedding = 16
predictor_hidden = 32
[method]
compute = "exact"
levels = [1, 2, 4]
level_weights = [0.5, 0.25, 0.25]
[batch]
lanes = 1
images_per_lane = 8
[train]
steps = 60
precision = "f64"
[optimizer]
kind = "lars"
lr = 0.1
warmup_steps = 2
[checkpoint]
every_steps = 1000
"#;

/// Straight, and drained then resumed.
pub(super) fn check(stage: &Stage, until: Deadline) -> Result<Vec<Finding>> {
    let folder = stage.folder.join("resume");
    generate(&folder.join("objects"), &GenerateSpec::objects(160, Seed::new(5)), &mut |_, _| {})?;
    std::fs::write(folder.join("job.toml"), JOB)?;
    let device = stage.devices.first().map_or("cpu", String::as_str);
    let straight = whole(start(&folder, "straight", device)?, until)?;
    let drained = drain(&folder, device, until)?;
    let resumed = whole(start(&folder, "drained", device)?, until)?;
    let (a, b) = (losses(&folder.join("straight"))?, losses(&folder.join("drained"))?);
    let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs() / a.abs().max(1e-9)).fold(0.0, f64::max);
    let same = straight.get("digest").is_some_and(|d| d.is_string() && Some(d) == resumed.get("digest"));
    let complete = a.len() == STEPS && b.len() == STEPS;
    let passed = complete && apart <= TOLERANCE && (same || device != "cpu");
    let digests = if same { "equal digests" } else { "other bits" };
    let detail = format!(
        "drained after {drained} of {STEPS} steps and resumed: losses of {} and {} steps differ by {apart:.1e} (at most \
         {TOLERANCE:.0e}), {digests}",
        a.len(),
        b.len()
    );
    let finding = Finding::of("resume", passed, detail).with("loss_difference", apart);
    Ok(vec![
        finding.with("digests_equal", f64::from(u8::from(same))).with("drained_after_steps", drained as f64),
    ])
}

/// The program beside this one.
fn mcl() -> Result<PathBuf> {
    let own = std::env::current_exe().context("this executable's own path")?;
    let path = own.with_file_name("mcl");
    if !path.is_file() {
        bail!("{} is not there: put `mcl` beside `mcl-rank`", path.display());
    }
    Ok(path)
}

fn start(folder: &Path, run: &str, device: &str) -> Result<Running> {
    let mut command = Command::new(mcl()?);
    command.args(["run", "job.toml", "--json", "--workers", "1", "--devices", device, "--run-dir", run]);
    command.current_dir(folder);
    Running::start(command)
}

/// To the end: its summary.
fn whole(run: Running, until: Deadline) -> Result<Value> {
    let Ended { status, output, errors } = run.end(until)?;
    if !status.success() {
        bail!("mcl run ended with {status}: {}", last_lines(&errors));
    }
    serde_json::from_str(output.trim()).with_context(|| format!("mcl run answered `{output}`"))
}

/// Interrupts a run after its first steps; how many it had done when it was over.
fn drain(folder: &Path, device: &str, until: Deadline) -> Result<usize> {
    let mut run = start(folder, "drained", device)?;
    let committed = || losses(&folder.join("drained")).map_or(0, |rows| rows.len());
    while committed() < INTERRUPT_AT && !run.has_ended()? && !until.left().is_zero() {
        std::thread::sleep(LOOK);
    }
    kill(Pid::from_raw(i32::try_from(run.id())?), Signal::SIGINT).context("interrupting mcl run")?;
    let Ended { status, errors, .. } = run.end(until)?;
    let done = committed();
    if status.code() != Some(INTERRUPTED) || done >= STEPS {
        bail!("mcl run, interrupted, ended with {status} after {done} steps: {}", last_lines(&errors));
    }
    Ok(done)
}

/// The losses of a run's committed steps, in order.
fn losses(run: &Path) -> Result<Vec<f64>> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let row = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("loss")?.as_f64();
    // A row that is being written has no end yet.
    Ok(text.lines().map_while(row).collect())
}
