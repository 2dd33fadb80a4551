//! `mcl bench step`: what a training step costs, on one rank or on several on this machine.

use crate::parts_bench::Parts;
use crate::turns::{self, Pace};
use crate::{engine, trial};
use anyhow::Result;
use clap::{Args, ValueEnum};
use mcl_collective::{Group, Membership, Store};
use mcl_model::{ComputeMode, ModelConfig, ModelSpec};
use mcl_terminal::say;
use mcl_train::{NormScope, TrainerSettings};
use mcl_types::{FencingToken, LaneLayout, Rank};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// How long ranks wait for each other: a driver may pause between turns.
const TIMEOUT: Duration = Duration::from_secs(600);

/// How much of the official graph is computed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compute {
    Official,
    Exact,
    Selective,
}

impl From<Compute> for ComputeMode {
    fn from(compute: Compute) -> Self {
        match compute {
            Compute::Official => Self::Official,
            Compute::Exact => Self::Exact,
            Compute::Selective => Self::Selective,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct StepBenchArguments {
    /// ResNet of 18, 34, 50 or 101 layers.
    #[arg(long, default_value_t = 50)]
    depth: u32,
    /// Side of a full view in pixels.
    #[arg(long, default_value_t = 96)]
    image_size: i64,
    /// Pictures a lane.
    #[arg(long, default_value_t = 16)]
    images: u32,
    /// Lanes a rank.
    #[arg(long, default_value_t = 1)]
    lanes: u32,
    /// Batch statistics of each lane for itself: norms do not talk to other ranks, one lane after another.
    #[arg(long)]
    lane_norm: bool,
    /// Convolutions and matrix products in bf16.
    #[arg(long)]
    bf16: bool,
    #[arg(long, value_enum, default_value_t = Compute::Exact)]
    compute: Compute,
    /// CPU threads of a rank.
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// This rank, of --world; rank 0 takes the time.
    #[arg(long, default_value_t = 0)]
    rank: u32,
    /// Ranks; each is a process of its own.
    #[arg(long, default_value_t = 1)]
    world: u32,
    /// Where rank 0 hosts the rendezvous, a port of this machine.
    #[arg(long, default_value_t = 29_517)]
    port: u16,
    /// Steps before the first turn.
    #[arg(long, default_value_t = 1)]
    warm_up: u32,
    /// Steps of one turn.
    #[arg(long, default_value_t = 1)]
    steps: u32,
    /// Turns to take.
    #[arg(long, default_value_t = 7)]
    turns: u32,
    /// Instead of turns: what a step says to other ranks and what that costs, as a JSON line of rank 0.
    #[arg(long)]
    parts: bool,
    /// A turn for each line on standard input instead.
    #[arg(long)]
    paced: bool,
}

/// Measures and prints.
pub(crate) fn run(a: &StepBenchArguments) -> Result<()> {
    engine::set_threads(a.threads);
    let device = engine::device(&a.device)?;
    engine::tune(device);
    let config = ModelConfig { depth: a.depth, image_size: a.image_size, ..ModelConfig::default() };
    let spec = ModelSpec::new(config)?;
    let lanes = a.world * a.lanes;
    let settings = TrainerSettings {
        norm: if a.lane_norm { NormScope::Lane } else { NormScope::Job },
        autocast: a.bf16,
        ..trial::settings(a.compute.into(), (lanes, a.images))
    };
    let mut trainer = trial::trainer(spec, device, settings)?;
    let (group, words) = if a.world > 1 { groups(a, device)? } else { (None, None) };
    trainer.join(LaneLayout::new(lanes, a.world)?, Rank::new(a.rank), group)?;
    if a.parts {
        let steps = u64::from(a.warm_up.max(1));
        for step in 0..steps {
            trial::step(&mut trainer, step)?;
        }
        let parts = Parts::measure(&trainer, steps, words.as_ref())?;
        if a.rank == 0 {
            say!("{}", serde_json::to_string(&parts)?)?;
        }
        return Ok(());
    }
    let mut step = 0;
    let mut go = |count: u32| -> Result<()> {
        for _ in 0..count {
            trial::step(&mut trainer, step)?;
            step += 1;
        }
        Ok(())
    };
    go(a.warm_up)?;
    // Rank 0 says before each turn that there is one, and in the end that there is none.
    let word = |more: bool| -> Result<bool> {
        let Some(group) = &words else { return Ok(more) };
        let word = Tensor::f_from_slice(&[i64::from(more)])?.f_to_device(device)?;
        group.broadcast(&word, Rank::new(0))?;
        Ok(word.f_int64_value(&[0])? == 1)
    };
    if a.rank == 0 {
        let pace = if a.paced { Pace::Lines } else { Pace::Count(a.turns) };
        turns::take(pace, a.steps, device, || {
            word(true)?;
            go(a.steps)
        })?;
        word(false)?;
        return Ok(());
    }
    while word(false)? {
        go(a.steps)?;
    }
    Ok(())
}

/// The group that trains, and one for words between turns.
fn groups(a: &StepBenchArguments, device: Device) -> Result<(Option<Group>, Option<Group>)> {
    let store = if a.rank == 0 {
        Store::host("127.0.0.1", Some(a.port.to_string().parse()?), TIMEOUT)?
    } else {
        Store::connect(&format!("127.0.0.1:{}", a.port), TIMEOUT)?
    };
    let nccl = || if device == Device::Cpu { Ok(None) } else { engine::nccl().map(Some) };
    let form = |generation: u64| -> Result<Group> {
        let token =
            FencingToken { generation: mcl_types::Generation::new(generation), ..FencingToken::default() };
        let membership = Membership { token, rank: Rank::new(a.rank), world: a.world };
        Ok(Group::form(&store, membership, TIMEOUT, "127.0.0.1", nccl()?)?)
    };
    let (own, words) = (form(1)?, form(2)?);
    let ready = Tensor::f_zeros([1], (Kind::Int64, device))?;
    let _ = words.all_gather(&ready)?;
    Ok((Some(own), Some(words)))
}
