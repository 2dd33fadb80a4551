//! `mcl-rank`, beside this executable, with libtorch in its library path.

use crate::arguments::{
    Encoder, EvalCommand, FrozenArguments, JudgedArguments, NeighboursArguments, ProbeArguments,
};
use crate::exit::Usage;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Settings of glibc's allocator for a rank: freed tensors stay with the process (up to 8 GiB at once, where they would go
/// back to the system from 128 KiB on) and lie on huge pages. Measured: a step costs 5 to 8 % less. The heap grows by 8 MiB at a
/// time: in steps of 128 KiB it lies on small pages, which the kernel replaces by huge ones for minutes, and what a rank holds
/// grows with that (1,000 steps over 50, R18 at 64 px: 1.024 before, 1.007 with it, 10 MB more from the start).
const ALLOCATOR: &str = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592:\
                         glibc.malloc.hugetlb=1:glibc.malloc.top_pad=8388608";

/// The program and what must stand in its environment.
#[derive(Debug, Clone)]
pub(crate) struct RankProgram {
    pub(crate) path: PathBuf,
    pub(crate) environment: Vec<(String, String)>,
}

impl RankProgram {
    /// Finds `mcl-rank` beside this executable and libtorch in `MCL_LIBTORCH` or the nearest `.libtorch` up
    /// from the executable and from the current folder.
    pub(crate) fn find(threads: u32) -> Result<Self> {
        let own = std::env::current_exe().context("this executable's own path")?;
        let folder = own.parent().unwrap_or(Path::new("."));
        let path = folder.join("mcl-rank");
        if !path.is_file() {
            anyhow::bail!(Usage(format!(
                "{} is not there: build it with `cargo build -p mcl-rank`, or put it beside mcl",
                path.display()
            )));
        }
        let lib = libtorch(folder)?;
        let mut search = lib.display().to_string();
        if let Ok(old) = std::env::var("LD_LIBRARY_PATH") {
            search = format!("{search}:{old}");
        }
        let fixed = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        Ok(Self {
            path,
            environment: vec![
                ("LD_LIBRARY_PATH".to_owned(), search),
                // Part of what decides the bits: the number of threads never adapts to the load.
                ("OMP_NUM_THREADS".to_owned(), threads.to_string()),
                fixed("OMP_DYNAMIC", "FALSE"),
                fixed("MKL_DYNAMIC", "FALSE"),
                // Idle threads of one rank must not spin on the cores of another.
                fixed("OMP_WAIT_POLICY", "PASSIVE"),
                // A step allocates and frees the same large tensors again and again: they are kept, on huge pages.
                (
                    "GLIBC_TUNABLES".to_owned(),
                    std::env::var("GLIBC_TUNABLES").unwrap_or_else(|_| ALLOCATOR.to_owned()),
                ),
                fixed("TORCH_NCCL_ENABLE_MONITORING", "0"),
                fixed("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"),
                fixed("TORCH_CPP_LOG_LEVEL", "ERROR"),
            ],
        })
    }

    /// What `mcl-rank` says of its engine.
    pub(crate) fn engine(&self) -> Result<serde_json::Value> {
        let output = Command::new(&self.path)
            .arg("engine")
            .envs(self.environment.iter().cloned())
            .output()
            .with_context(|| format!("starting {}", self.path.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            anyhow::bail!("{} does not start: {}", self.path.display(), said.trim());
        }
        serde_json::from_slice(&output.stdout).context("mcl-rank engine")
    }

    /// Devices that libtorch finds here: every GPU, else one CPU slot.
    pub(crate) fn devices(&self) -> Result<Vec<String>> {
        let engine = self.engine()?;
        let count = engine.get("cuda_devices").and_then(serde_json::Value::as_i64).unwrap_or(0);
        if count > 0 {
            Ok((0..count).map(|n| format!("cuda:{n}")).collect())
        } else {
            Ok(vec!["cpu".to_owned()])
        }
    }
}

/// `auto`, `cpu` or a comma-separated list, as a list of devices.
pub(crate) fn parse_devices(text: &str, program: &RankProgram) -> Result<Vec<String>> {
    if text == "auto" {
        return program.devices();
    }
    let devices: Vec<String> = text.split(',').map(|d| d.trim().to_owned()).collect();
    let known = |d: &String| {
        let (kind, number) = d.split_once(':').unwrap_or((d, "0"));
        (kind == "cuda" && d.contains(':') || kind == "cpu") && number.parse::<u32>().is_ok()
    };
    match devices.iter().find(|d| !known(d)) {
        None => Ok(numbered(devices)),
        Some(bad) => anyhow::bail!(Usage(format!("device `{bad}`: expected auto, cpu or cuda:N"))),
    }
}

/// Each further `cpu` gets a number: devices of a worker are told apart by their names.
fn numbered(devices: Vec<String>) -> Vec<String> {
    let mut cpus = 0;
    let name = |d: String| {
        if d != "cpu" {
            return d;
        }
        cpus += 1;
        if cpus == 1 { d } else { format!("cpu:{}", cpus - 1) }
    };
    devices.into_iter().map(name).collect()
}

fn libtorch(folder: &Path) -> Result<PathBuf> {
    let holds = |root: &Path| {
        [root.join("lib"), root.join("torch/lib"), root.to_owned()]
            .into_iter()
            .find(|lib| lib.join("libtorch_cpu.so").is_file())
    };
    if let Some(root) = std::env::var_os("MCL_LIBTORCH") {
        let root = PathBuf::from(root);
        return holds(&root).ok_or_else(|| {
            Usage(format!("MCL_LIBTORCH = {} holds no lib/libtorch_cpu.so", root.display())).into()
        });
    }
    let current = std::env::current_dir().unwrap_or_default();
    folder.ancestors().chain(current.ancestors()).find_map(|up| holds(&up.join(".libtorch"))).ok_or_else(
        || Usage("libtorch is not found: run `make setup`, or point MCL_LIBTORCH at it".to_owned()).into(),
    )
}

/// How a rank process logs whose standard error is ours.
pub(crate) fn log_arguments() -> &'static [&'static str] {
    if mcl_terminal::has_json_log() { &["--json-log"] } else { &[] }
}

/// `mcl eval` is done by `mcl-rank eval`.
pub(crate) fn eval(command: &EvalCommand) -> Result<ExitCode> {
    let program = RankProgram::find(2)?;
    let mut child = Command::new(&program.path);
    child.args(log_arguments()).arg("eval").args(eval_arguments(command)).envs(program.environment);
    let status = child.status().with_context(|| format!("starting {}", program.path.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::from(crate::exit::FAILED) })
}

fn eval_arguments(command: &EvalCommand) -> Vec<OsString> {
    match command {
        EvalCommand::Knn(a) => [judged("knn", &a.judged), neighbours(&a.neighbours)].concat(),
        EvalCommand::Linear(a) => [judged("linear", &a.judged), probe(&a.probe)].concat(),
        EvalCommand::Both(a) => {
            [judged("both", &a.judged), neighbours(&a.neighbours), probe(&a.probe)].concat()
        }
        EvalCommand::Features(a) => {
            let mut arguments = frozen("features", &a.weights);
            arguments.extend(["--picture".into(), (&a.picture).into(), "--out".into(), (&a.out).into()]);
            arguments.extend(a.json.then(|| "--json".into()));
            arguments
        }
    }
}

fn neighbours(a: &NeighboursArguments) -> Vec<OsString> {
    vec!["--k".into(), a.k.to_string().into()]
}

fn probe(a: &ProbeArguments) -> Vec<OsString> {
    vec!["--seed".into(), a.seed.to_string().into()]
}

fn frozen(name: &str, a: &FrozenArguments) -> Vec<OsString> {
    let encoder = if a.encoder == Encoder::Online { "online" } else { "momentum" };
    let mut arguments: Vec<OsString> =
        vec![name.into(), (&a.path).into(), "--encoder".into(), encoder.into()];
    if let Some(job) = &a.job {
        arguments.extend(["--job".into(), job.into()]);
    }
    arguments
}

fn judged(name: &str, a: &JudgedArguments) -> Vec<OsString> {
    let mut arguments = frozen(name, &a.weights);
    arguments.extend(["--train".into(), (&a.train).into(), "--test".into(), (&a.test).into()]);
    if let Some(scenes) = &a.scenes {
        arguments.extend(["--scenes".into(), scenes.into()]);
    }
    if let Some(short_side) = a.short_side {
        arguments.extend(["--short-side".into(), short_side.to_string().into()]);
    }
    arguments.extend(a.levels.then(|| "--levels".into()));
    arguments.extend(a.json.then(|| "--json".into()));
    arguments
}
