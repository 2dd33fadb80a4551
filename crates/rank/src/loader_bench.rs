//! `mcl bench loader`: what a picture costs until its views lie in a batch: read, hashed, decoded, augmented.

use crate::turns::{self, Pace};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use mcl_data::augment::ViewMode;
use mcl_data::{BatchRequest, Dataset, Loader, LoaderSpec, RemoteSpec};
use mcl_types::{Epoch, Lane, SampleIndex, Step, StoreLocation};
use std::sync::Arc;

/// Pictures of one batch.
const BATCH: u64 = 10;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Views {
    Exact,
    Level,
}

#[derive(Debug, Args)]
pub(crate) struct LoaderBenchArguments {
    /// Folder of pictures, tar shard, folder of tar shards, or shards in an object store.
    source: StoreLocation,
    #[arg(long, value_enum, default_value_t = Views::Exact)]
    views: Views,
    /// Side of a full view in pixels.
    #[arg(long, default_value_t = 224)]
    image_size: u32,
    /// Threads that decode and augment.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Pictures of one turn; whole batches of ten.
    #[arg(long, default_value_t = 200)]
    count: u32,
    /// Turns to take.
    #[arg(long, default_value_t = 7)]
    turns: u32,
    /// A turn for each line on standard input instead.
    #[arg(long)]
    paced: bool,
}

/// Measures and prints.
pub(crate) fn run(a: &LoaderBenchArguments) -> Result<()> {
    let dataset = Arc::new(Dataset::open_at(&a.source, &RemoteSpec::default())?);
    let spec = LoaderSpec {
        image_size: a.image_size,
        mode: match a.views {
            Views::Exact => ViewMode::Exact,
            Views::Level => ViewMode::Level,
        },
        threads: a.threads,
        ..LoaderSpec::default()
    };
    // A turn asks for its batches itself, so that nothing is made ahead of it or left over.
    let (ask, requests) = std::sync::mpsc::channel();
    let never = Arc::new(|_, _, _, _, _| SampleIndex::new(0));
    let mut loader = Loader::start(Arc::clone(&dataset), spec, requests, never)?;
    let (mut next, batches) = (0_u64, u64::from(a.count).div_ceil(BATCH).max(1));
    let mut go = |batches: u64| -> Result<()> {
        for _ in 0..batches {
            let samples = (0..BATCH).map(|i| SampleIndex::new((next * BATCH + i) % dataset.len())).collect();
            let request =
                BatchRequest { epoch: Epoch::new(0), step: Step::new(next), lane: Lane::new(0), samples };
            ask.send(request).context("the loader has ended")?;
            next += 1;
        }
        for _ in 0..batches {
            // As training does when it has laid a batch into tensors.
            let batch = loader.next()?.context("the loader has ended")?;
            loader.recycle(batch.views);
        }
        Ok(())
    };
    go(1)?;
    let pace = if a.paced { Pace::Lines } else { Pace::Count(a.turns) };
    let units = u32::try_from(batches * BATCH).unwrap_or(u32::MAX);
    turns::take(pace, units, tch::Device::Cpu, || go(batches))
}
