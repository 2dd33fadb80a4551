//! `make gpu-check`: golden cases, collectives, training, resuming, failing and speed on the GPUs of this machine.
//!
//! Role: the driver. Every check runs in processes of its own ([`part`], `mcl run`, the benchmark, its Python peer), so that
//! one that hangs or breaks its CUDA context takes nothing else along and can be killed when its time is up. The same checks
//! run at a small scale on a CPU (`--device cpu`), which is how they are tested. Left out: a verdict on speed.

mod bench;
mod finding;
mod goldens;
mod part;
mod process;
mod ranks;
mod resume;
mod scale;
mod training;

pub(crate) use goldens::{GoldenArguments, golden};
pub(crate) use part::{PartArguments, run as run_part};

use crate::engine;
use anyhow::{Context, Result, bail};
use clap::Args;
use finding::{Finding, Outcome};
use mcl_collective::CudaError;
use mcl_terminal::say;
use process::Deadline;
use scale::Scale;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(crate) struct GpuCheckArguments {
    /// Folders that hold golden cases; default: those of `MCL_GOLDENS`.
    folders: Vec<PathBuf>,
    /// Where to write the result.
    #[arg(long, default_value = "gpu-check.json")]
    out: PathBuf,
    /// cuda, or cpu: the same checks at a small scale, to try the check itself.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Seconds for everything; what does not fit any more is listed as skipped.
    #[arg(long, default_value_t = 480)]
    budget: u64,
    /// The Python program that is measured against.
    #[arg(long, default_value = "bench/peers/step.py")]
    peer: PathBuf,
    /// The Python that runs it; without torch in it speed is measured without a peer.
    #[arg(long, env = "MCL_PYTHON", default_value = "python3")]
    python: PathBuf,
    /// Only checks whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

/// What all checks share.
struct Stage<'a> {
    arguments: &'a GpuCheckArguments,
    scale: Scale,
    /// cpu or cuda:N, one for each rank that this machine can hold.
    devices: Vec<String>,
    folder: &'a std::path::Path,
}

/// The table as it grows.
struct Table<'a> {
    only: Option<&'a str>,
    started: Instant,
    budget: Duration,
    outcome: Outcome,
}

impl Table<'_> {
    /// Runs a check that needs at least `needs` seconds and may take `most`.
    fn check(
        &mut self,
        name: &str,
        (needs, most): (u64, u64),
        work: impl FnOnce(Deadline) -> Result<Vec<Finding>>,
    ) {
        if self.only.is_some_and(|only| !name.contains(only)) {
            return;
        }
        let left = self.budget.saturating_sub(self.started.elapsed());
        if left < Duration::from_secs(needs) {
            let why = format!("{} s of the budget are left, it needs {needs} s", left.as_secs());
            return self.add(Finding::skipped(name, why));
        }
        let begun = Instant::now();
        let deadline = Deadline::after(left.min(Duration::from_secs(most)));
        let found = work(deadline).unwrap_or_else(|error| vec![Finding::failed(name, format!("{error:#}"))]);
        let single = found.len() == 1;
        for mut finding in found {
            if single || finding.seconds == 0.0 {
                finding.seconds = begun.elapsed().as_secs_f64();
            }
            self.add(finding);
        }
    }

    fn add(&mut self, finding: Finding) {
        // The file has them all, whoever reads this.
        let _ = say!("{finding}");
        self.outcome.checks.push(finding);
    }
}

/// Runs every check; without a GPU says so and succeeds.
pub(crate) fn run(a: &GpuCheckArguments, cuda: &Result<(), CudaError>) -> Result<()> {
    let gpus = u32::try_from(tch::Cuda::device_count()).unwrap_or(0);
    let on_cpu = a.device == "cpu";
    if !on_cpu && a.device != "cuda" {
        bail!("--device {}: expected cuda or cpu", a.device);
    }
    let started = Instant::now();
    let mut outcome = Outcome::new(gpus, engine::libtorch_version(), a.budget);
    if !on_cpu && gpus == 0 {
        let why = cuda.as_ref().err().map_or_else(|| "libtorch finds no GPU".to_owned(), ToString::to_string);
        say!("gpu-check skipped: {why}")?;
        outcome.skipped = Some(why);
        return outcome.write(&a.out);
    }
    let folder = tempfile::tempdir().context("a folder for the check's runs")?;
    let devices = if on_cpu {
        vec!["cpu".to_owned(); 2]
    } else {
        (0..gpus.min(8)).map(|n| format!("cuda:{n}")).collect()
    };
    let mut context = Stage { arguments: a, scale: Scale::small(), devices, folder: folder.path() };
    let budget = Duration::from_secs(a.budget);
    let mut table = Table { only: a.only.as_deref(), started, budget, outcome };
    if !on_cpu {
        let memory = context.first_look(&mut table);
        context.scale = Scale::of_gpu(memory);
    }
    context.all(&mut table);
    let mut outcome = table.outcome;
    outcome.seconds = started.elapsed().as_secs_f64();
    let [passed, failed, skipped] = outcome.counts();
    say!("{passed} passed, {failed} failed, {skipped} skipped in {:.0} s", outcome.seconds)?;
    outcome.write(&a.out)?;
    if failed > 0 { bail!("{failed} checks failed; {} has all figures", a.out.display()) } else { Ok(()) }
}

impl Stage<'_> {
    /// That the GPU computes at all, before anything is scaled by its memory: bytes, 0 where it does not.
    fn first_look(&self, table: &mut Table) -> f64 {
        table.check("device", (5, 120), |until| self.part(&["device"], 0, until));
        let figure = |f: &Finding| f.figures.get("memory_bytes").copied();
        table.outcome.checks.iter().find_map(figure).unwrap_or(0.0)
    }

    /// In the order of what is wanted most, should time run out.
    fn all(&self, table: &mut Table) {
        let world = self.devices.len();
        for (precision, mode) in [("f32", "official"), ("f64", "official"), ("f64", "exact")] {
            table.check(&format!("golden {precision} {mode}"), (10, 100), |until| {
                self.goldens(precision, mode, until)
            });
        }
        table.check("ranks, world of 1", (10, 60), |until| self.ranks(1, "steps", until));
        table.check("training", (30, 110), |until| {
            self.part(&["training", "--images", &self.scale.images.to_string()], 0, until)
        });
        table.check("resume", (30, 100), |until| resume::check(self, until));
        for pair in bench::pairs() {
            table.check(pair.name, (40, 110), |until| bench::check(self, &pair, until));
        }
        for (name, act) in [
            (format!("ranks, world of {world}"), "steps"),
            ("a peer that dies".to_owned(), "dies"),
            ("a peer that stops".to_owned(), "stops"),
        ] {
            if world < 2 {
                let name = if act == "steps" { "ranks, a world of several" } else { &name };
                table.check(name, (0, 1), |_| Ok(vec![Finding::skipped(name, "one GPU")]));
                continue;
            }
            table.check(&name, (20, 90), |until| self.ranks(world, act, until));
        }
    }

    fn goldens(&self, precision: &str, mode: &str, until: Deadline) -> Result<Vec<Finding>> {
        let mut arguments = vec!["goldens", "--precision", precision];
        arguments.extend((mode == "exact").then_some("--exact"));
        let folders: Vec<String> = self.arguments.folders.iter().map(|f| f.display().to_string()).collect();
        arguments.extend(folders.iter().map(String::as_str));
        self.part(&arguments, 0, until)
    }

    /// A part in a process of its own, on the `index`th device.
    fn part(&self, arguments: &[&str], index: usize, until: Deadline) -> Result<Vec<Finding>> {
        process::findings(self.start_part(arguments, index)?, until)
    }

    fn start_part(&self, arguments: &[&str], index: usize) -> Result<process::Running> {
        let device = self.devices.get(index).map_or("cpu", String::as_str);
        let mut command = process::own()?;
        command.args(["gpu-check-part", "--device", device]);
        if self.scale.small {
            command.arg("--small");
        }
        command.args(arguments);
        // Golden numbers are compared without the 10-bit products that GPUs make of f32 where they may.
        if arguments.first() == Some(&"goldens") {
            command.env("NVIDIA_TF32_OVERRIDE", "0");
        }
        process::Running::start(command)
    }

    /// `world` ranks that do as `act` says; what rank 0 found.
    fn ranks(&self, world: usize, act: &str, until: Deadline) -> Result<Vec<Finding>> {
        let store = ranks::host(until)?;
        let (world_text, address) = (world.to_string(), format!("127.0.0.1:{}", store.port()?));
        let mut running = Vec::with_capacity(world);
        for rank in 0..world {
            let number = rank.to_string();
            let arguments =
                ["rank", "--rank", &number, "--world", &world_text, "--store", &address, "--act", act];
            running.push(self.start_part(&arguments, rank)?);
        }
        // Those that are left are killed when they go out of scope.
        let mut running = running.into_iter();
        let first = running.next().context("no rank was started")?;
        process::findings(first, until)
    }
}
