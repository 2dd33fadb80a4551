//! `mcl bench checkpoint`: what saving costs the training process, and how fast a state is durable.
//!
//! Three comparisons, each side by side in one run, on the state of the paper's model (ResNet-50, LARS, about
//! 0.4 GB): the snapshot call against a plain copy of as many bytes; steps during an upload against steps without
//! one; an upload to a running service against `dd conv=fsync` of the same bytes on the same disk.

use crate::slice_buffer::SliceBuffer;
use crate::{engine, trial};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use mcl_checkpoint::{CheckpointClient, Draft};
use mcl_model::{ComputeMode, ModelConfig, ModelSpec};
use mcl_terminal::say;
use mcl_train::Trainer;
use mcl_types::{FencingToken, LaneLayout, Rank, Retention, RunId, Step, Tier};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::Device;
use tokio::runtime::Runtime;

/// What the steps under test train on: small, so that there are many of them during one upload.
const IMAGE_SIZE: i64 = 64;
const IMAGES: u32 = 8;
/// Steps of one turn without and of one with uploads under way.
const STEPS: usize = 3;

#[derive(Debug, Args)]
pub(crate) struct BenchCheckpointArguments {
    /// A running checkpoint service.
    #[arg(long)]
    service: String,
    /// A folder on the same disk, for the plain copy.
    #[arg(long)]
    folder: PathBuf,
    /// Snapshots to take.
    #[arg(long, default_value_t = 30)]
    snapshots: usize,
    /// Uploads, each beside a plain copy.
    #[arg(long, default_value_t = 7)]
    uploads: usize,
    /// CPU threads of the steps.
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Answer as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Milliseconds of one call or step, over all repetitions.
#[derive(Debug, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    state_bytes: usize,
    tensors: usize,
    /// The snapshot call, and a copy of as many bytes from one filled buffer to another.
    snapshot_ms: Spread,
    plain_copy_ms: Spread,
    /// Snapshot less the plain copy beside it.
    snapshot_above_copy_ms: Spread,
    step_ms: Spread,
    step_during_upload_ms: Spread,
    /// Median step with an upload under way all the time over median step without.
    slow_down: f64,
    upload_mb_per_s: Spread,
    dd_mb_per_s: Spread,
    /// Upload over `dd` beside it.
    upload_over_dd: Spread,
    /// From the first byte until the checkpoint is visible, every byte read back and hashed.
    visible_mb_per_s: Spread,
}

/// Measures and prints.
pub(crate) fn run(a: &BenchCheckpointArguments) -> Result<()> {
    engine::set_threads(a.threads);
    let spec = ModelSpec::new(ModelConfig { image_size: IMAGE_SIZE, ..ModelConfig::default() })?;
    let mut trainer = trial::trainer(spec, Device::Cpu, trial::settings(ComputeMode::Exact, (1, IMAGES)))?;
    trainer.join(LaneLayout::new(1, 1)?, Rank::new(0), None)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let client = {
        let _inside = runtime.enter();
        CheckpointClient::lazy(&a.service, None)?
    };
    let mut bench = Bench { trainer, steps: 0, buffer: SliceBuffer::default(), runtime, client };
    bench.step()?;
    let (snapshots, copies, bytes) = bench.snapshots(a.snapshots)?;
    let (without, during) = bench.steps_beside_uploads(&bytes, a.uploads)?;
    let rates = bench.uploads(&bytes, a)?;
    let above: Vec<f64> = snapshots.iter().zip(&copies).map(|(s, c)| s - c).collect();
    let ratios: Vec<f64> = rates.iter().map(|r| r.upload / r.dd).collect();
    let (step_ms, step_during_upload_ms) = (spread(&without)?, spread(&during)?);
    let report = Report {
        state_bytes: bytes.len(),
        tensors: bench.trainer.state()?.len(),
        snapshot_ms: spread(&snapshots)?,
        plain_copy_ms: spread(&copies)?,
        snapshot_above_copy_ms: spread(&above)?,
        slow_down: step_during_upload_ms.median / step_ms.median,
        step_ms,
        step_during_upload_ms,
        upload_mb_per_s: spread(&rates.iter().map(|r| r.upload).collect::<Vec<_>>())?,
        dd_mb_per_s: spread(&rates.iter().map(|r| r.dd).collect::<Vec<_>>())?,
        upload_over_dd: spread(&ratios)?,
        visible_mb_per_s: spread(&rates.iter().map(|r| r.visible).collect::<Vec<_>>())?,
    };
    if a.json {
        say!("{}", serde_json::to_string(&report)?)?;
    } else {
        report.print()?;
    }
    Ok(())
}

struct Bench {
    trainer: Trainer,
    steps: u64,
    buffer: SliceBuffer,
    runtime: Runtime,
    client: CheckpointClient,
}

/// Megabytes a second.
struct Rates {
    upload: f64,
    visible: f64,
    dd: f64,
}

impl Bench {
    fn step(&mut self) -> Result<f64> {
        let started = Instant::now();
        trial::step(&mut self.trainer, self.steps)?;
        self.steps += 1;
        Ok(millis(started.elapsed()))
    }

    /// Snapshots and plain copies in turn; and the last snapshot's file.
    fn snapshots(&mut self, count: usize) -> Result<(Vec<f64>, Vec<f64>, Bytes)> {
        if let Some(work) = self.buffer.prepare(&self.trainer.state()?, 0, 1)? {
            work();
        }
        let mut file = self.buffer.copy(&self.trainer.state()?, 0, 1)?;
        let source = file.to_vec();
        let mut target = source.clone();
        let (mut snapshots, mut copies) = (Vec::new(), Vec::new());
        for _ in 0..count {
            drop(std::mem::take(&mut file));
            let started = Instant::now();
            // As a step boundary does it: the state's tensors are asked for anew.
            file = self.buffer.copy(&self.trainer.state()?, 0, 1)?;
            snapshots.push(millis(started.elapsed()));
            let started = Instant::now();
            std::hint::black_box(&mut target).copy_from_slice(std::hint::black_box(&source));
            copies.push(millis(started.elapsed()));
        }
        Ok((snapshots, copies, file))
    }

    /// Steps without, and steps with one upload and commit after the other under way all the time, in turn. A training run has
    /// an upload under way for a small part of its time: this is what a step costs within that part.
    fn steps_beside_uploads(&mut self, bytes: &Bytes, turns: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let run = RunId::new("beside")?;
        let (mut without, mut during) = (Vec::new(), Vec::new());
        for turn in 0..turns {
            for _ in 0..STEPS {
                without.push(self.step()?);
            }
            let stop = Arc::new(AtomicBool::new(false));
            let (client, run, bytes, until) = (self.client.clone(), run.clone(), bytes.clone(), stop.clone());
            let uploads = self.runtime.spawn(async move {
                for upload in (turn as u64) << 32..u64::MAX {
                    if until.load(Ordering::Relaxed) {
                        break;
                    }
                    let draft = draft(&run, Step::new(upload));
                    client.put_slice(draft, 0, bytes.clone()).await?;
                    client.commit(draft, "", Retention::newest(1)).await?;
                }
                anyhow::Ok(())
            });
            for _ in 0..STEPS {
                during.push(self.step()?);
            }
            stop.store(true, Ordering::Relaxed);
            self.runtime.block_on(uploads)??;
        }
        Ok((without, during))
    }

    /// Uploads, each beside a `dd` of the same bytes.
    fn uploads(&self, bytes: &Bytes, a: &BenchCheckpointArguments) -> Result<Vec<Rates>> {
        let source = a.folder.join("dd-source");
        std::fs::write(&source, bytes).with_context(|| format!("writing {}", source.display()))?;
        let megabytes = bytes.len() as f64 / 1e6;
        let run = RunId::new("alone")?;
        let mut rates = Vec::new();
        for step in 0..a.uploads {
            let dd = megabytes / dd(&source, &a.folder.join("dd-target"))?.as_secs_f64();
            let draft = draft(&run, Step::new(step as u64));
            let started = Instant::now();
            self.runtime.block_on(self.client.put_slice(draft, 0, bytes.clone()))?;
            let upload = megabytes / started.elapsed().as_secs_f64();
            self.runtime.block_on(self.client.commit(draft, "", Retention::newest(1)))?;
            let visible = megabytes / started.elapsed().as_secs_f64();
            rates.push(Rates { upload, visible, dd });
        }
        Ok(rates)
    }
}

/// One slice, durable.
fn draft(run: &RunId, step: Step) -> Draft<'_> {
    Draft { token: FencingToken::default(), run, step, slices: 1, tier: Tier::Durable }
}

/// A plain copy that is on the disk when it returns.
fn dd(source: &Path, target: &Path) -> Result<Duration> {
    let path = |key: &str, path: &Path| format!("{key}={}", path.display());
    let started = Instant::now();
    let output = Command::new("dd")
        .args([path("if", source), path("of", target), "bs=8M".to_owned(), "conv=fsync".to_owned()])
        .output()
        .context("starting dd")?;
    let took = started.elapsed();
    if !output.status.success() {
        bail!("dd failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_file(target).with_context(|| format!("removing {}", target.display()))?;
    Ok(took)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn spread(values: &[f64]) -> Result<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| {
        sorted.get(index).copied().context("nothing was measured: more repetitions are needed")
    };
    let last = sorted.len().saturating_sub(1);
    Ok(Spread { median: at(sorted.len() / 2)?, min: at(0)?, max: at(last)? })
}

impl Report {
    fn print(&self) -> std::io::Result<()> {
        let line = |name: &str, s: &Spread, unit: &str| {
            say!("  {name:<34} {:>8.1} {unit} (from {:.1} to {:.1})", s.median, s.min, s.max)
        };
        say!("state of {:.1} MB in {} tensors", self.state_bytes as f64 / 1e6, self.tensors)?;
        line("snapshot call", &self.snapshot_ms, "ms")?;
        line("plain copy of as many bytes", &self.plain_copy_ms, "ms")?;
        line("snapshot above the copy beside it", &self.snapshot_above_copy_ms, "ms")?;
        line("step", &self.step_ms, "ms")?;
        line("step during an upload", &self.step_during_upload_ms, "ms")?;
        say!("  {:<34} {:>8.2} x", "slow-down during an upload", self.slow_down)?;
        line("upload until durable", &self.upload_mb_per_s, "MB/s")?;
        line("dd conv=fsync of the same bytes", &self.dd_mb_per_s, "MB/s")?;
        line("upload until visible, read back", &self.visible_mb_per_s, "MB/s")?;
        let r = &self.upload_over_dd;
        say!("  {:<34} {:>8.2} x (from {:.2} to {:.2})", "upload over dd", r.median, r.min, r.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_what_was_measured() {
        let s = spread(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((s.min, s.median, s.max), (1.0, 2.0, 3.0));
        assert!(spread(&[]).is_err());
    }

    #[test]
    fn dd_copies_and_says_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&from, vec![1; 1000]).unwrap();
        dd(&from, &to).unwrap();
        let error = dd(&folder.path().join("missing"), &to).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
    }
}
