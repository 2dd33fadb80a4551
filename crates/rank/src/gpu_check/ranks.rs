//! Ranks as processes over the real collective: steps together, and what becomes of the rest when one dies or stops.

use super::finding::Finding;
use super::process::Deadline;
use crate::{engine, trial};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use mcl_collective::{Group, Lifeline, Membership, ReduceOp, Store, exit_at_once};
use mcl_model::{ComputeMode, ModelConfig, ModelSpec};
use mcl_terminal::say;
use mcl_train::Trainer;
use mcl_types::{FencingToken, LaneLayout, Rank, Step};
use nix::sys::signal::{Signal, raise};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How long a collective may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A step that takes longer is ended by the control thread, as a coordinator's word would end it.
const SILENCE: Duration = Duration::from_secs(8);
/// Within so long after its beginning a step with a lost peer must be an error.
const PATIENCE: Duration = Duration::from_secs(20);
/// Steps before the peer is lost.
const STEPS: u64 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Act {
    /// Takes steps and compares digests.
    Steps,
    /// The last rank dies before a step.
    Dies,
    /// The last rank stops before a step and keeps its connections.
    Stops,
}

#[derive(Debug, Args)]
pub(super) struct RankArguments {
    #[arg(long)]
    rank: u32,
    #[arg(long)]
    world: u32,
    /// Where they meet.
    #[arg(long)]
    store: String,
    #[arg(long, value_enum)]
    act: Act,
}

/// A store that outlives whatever the ranks do.
pub(super) fn host(until: Deadline) -> Result<Store> {
    Ok(Store::host("127.0.0.1", None, until.left().max(Duration::from_secs(1)))?)
}

/// One rank's part; the others' findings are not read.
pub(super) fn part(a: &RankArguments, device: Device) -> Result<Finding> {
    let lifeline = Lifeline::new(&[])?;
    let store = lifeline.connect(&a.store, TIMEOUT)?;
    all_there(&store, a)?;
    let membership = Membership { token: FencingToken::default(), rank: Rank::new(a.rank), world: a.world };
    let nccl = if device == Device::Cpu { None } else { Some(engine::nccl()?) };
    let group = lifeline.form(&store, membership, TIMEOUT, "127.0.0.1", nccl)?;
    let sum = all_reduce(&group, device)?;
    if (sum - f64::from(a.world)).abs() > 1e-9 {
        bail!("an all-reduce of ones over {} ranks gave {sum}", a.world);
    }
    let mut trainer =
        trial::trainer(small_model()?, device, trial::settings(ComputeMode::Exact, (a.world, 8)))?;
    trainer.join(LaneLayout::new(a.world, a.world)?, Rank::new(a.rank), Some(group))?;
    let begun = Instant::now();
    let mut loss = f64::NAN;
    for step in 0..STEPS {
        loss = trial::step(&mut trainer, step)?.lane_losses.iter().flatten().sum();
    }
    let a_step = begun.elapsed().as_secs_f64() / STEPS as f64;
    let finding = match a.act {
        Act::Steps => together(a, &trainer, loss)?,
        Act::Dies | Act::Stops => broken(a, &mut trainer, &lifeline)?,
    };
    lifeline.close();
    // NCCL's threads may hold a process up whose peer is gone.
    say!("{}", serde_json::to_string(&[finding.with("step_ms", 1e3 * a_step)])?)?;
    exit_at_once(0)
}

/// Loading CUDA takes some processes seconds longer than others; forming a group allows for no such wait.
fn all_there(store: &Store, a: &RankArguments) -> Result<()> {
    store.set(&format!("there/{}", a.rank), b"1")?;
    for rank in 0..a.world {
        store.get(&format!("there/{rank}"))?;
    }
    Ok(())
}

fn small_model() -> Result<ModelSpec> {
    Ok(ModelSpec::new(ModelConfig {
        depth: 18,
        width: 16,
        image_size: 64,
        fpn_channels: 32,
        projector_convs: 1,
        projector_hidden: 64,
        embedding: 32,
        predictor_hidden: 64,
        ..ModelConfig::default()
    })?)
}

fn all_reduce(group: &Group, device: Device) -> Result<f64> {
    let ones = Tensor::f_ones([1024], (Kind::Float, device))?;
    group.all_reduce(&ones, ReduceOp::Sum)?;
    Ok(ones.f_mean(Kind::Double)?.f_double_value(&[])?)
}

/// The control thread's part: a step that is not over in time has every wait ended. Drop what is returned when it is over.
fn watch(lifeline: Lifeline) -> Result<Sender<()>> {
    let (over, watched) = channel();
    let wait = move || {
        if watched.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) {
            lifeline.abort();
        }
    };
    std::thread::Builder::new().name("mcl-watch".to_owned()).spawn(wait).context("a thread that watches")?;
    Ok(over)
}

fn together(a: &RankArguments, trainer: &Trainer, loss: f64) -> Result<Finding> {
    trainer.check_agreement(Step::new(STEPS))?;
    let name = format!("ranks, world of {}", a.world);
    let detail = format!("{STEPS} steps, loss {loss:.4}, equal digests");
    Ok(Finding::of(&name, loss.is_finite(), detail).with("loss", loss))
}

/// The last rank goes; the others' step must end as a lost peer, with the state as it was.
fn broken(a: &RankArguments, trainer: &mut Trainer, lifeline: &Lifeline) -> Result<Finding> {
    let before = trainer.digest()?;
    let last = a.rank + 1 == a.world;
    if last && a.act == Act::Dies {
        exit_at_once(1);
    }
    if last {
        raise(Signal::SIGSTOP)?;
    }
    let name = if a.act == Act::Dies { "a peer that dies" } else { "a peer that stops" };
    let begun = Instant::now();
    let over = watch(lifeline.clone())?;
    let Err(error) = trial::step(trainer, STEPS) else {
        return Ok(Finding::failed(name, "the step went on without it"));
    };
    let seconds = begun.elapsed();
    drop(over);
    let as_lost =
        error.downcast_ref::<mcl_train::TrainError>().is_some_and(mcl_train::TrainError::is_peer_loss);
    let whole = trainer.digest()? == before;
    let passed = as_lost && whole && seconds <= PATIENCE;
    let state = if whole { "the state is whole" } else { "the state is NOT what it was" };
    let detail = format!("error after {:.1} s, {state}: {error:#}", seconds.as_secs_f64());
    let finding = Finding::of(name, passed, detail).with("error_after_s", seconds.as_secs_f64());
    Ok(finding.with("told_as_lost_peer", f64::from(u8::from(as_lost))))
}
