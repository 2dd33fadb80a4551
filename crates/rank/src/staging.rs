//! A step's pictures as tensors, made while the step before is trained.
//!
//! One thread takes finished batches from the loader, lays their bytes into tensors (for a GPU into page-locked memory,
//! which it copies from by itself) and stays a step ahead. So the training thread never copies pictures itself.

use crate::feed::Fed;
use crate::records::notes;
use anyhow::{Context, Result, anyhow, bail};
use mcl_data::montage::Side;
use mcl_data::{Dataset, FedSample, LaneBatch, Loader, LoaderStopper, MontageLayout};
use mcl_model::LaneSide;
use mcl_plan::Schedule;
use mcl_train::LaneInput;
use mcl_types::{Seed, Step};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use tch::{Device, Tensor};

/// Steps that lie ready while one is trained, besides one that waits to be laid there: each costs its pictures' bytes, and
/// more gain nothing.
const AHEAD: usize = 1;

/// How batches become tensors.
pub(crate) struct Layout {
    pub(crate) lanes: Range<u32>,
    pub(crate) schedule: Schedule,
    pub(crate) montages: MontageLayout,
    pub(crate) seed: Seed,
    pub(crate) images: i64,
    pub(crate) device: Device,
    /// Who knows the pictures' labels, where the objective has any.
    pub(crate) labels: Option<Arc<Dataset>>,
}

/// The thread and what it has made.
pub(crate) struct Staging {
    steps: Receiver<Result<Fed>>,
    stopper: LoaderStopper,
}

impl Staging {
    /// Makes the steps from `first` on, as long as the loader gives batches.
    pub(crate) fn start(loader: Loader, layout: Layout, first: Step) -> Result<Self> {
        let stopper = loader.stopper();
        let (send, steps) = sync_channel(AHEAD);
        std::thread::Builder::new()
            .name("mcl-staging".to_owned())
            .spawn(move || stage(loader, &layout, first, &send))
            .context("cannot start a thread that stages pictures")?;
        Ok(Self { steps, stopper })
    }

    /// The next step's pictures; `None` where they are not there by then.
    pub(crate) fn next_within(&self, time: Duration) -> Option<Result<Fed>> {
        match self.steps.recv_timeout(time) {
            Ok(made) => Some(made),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(anyhow!("the thread that stages pictures has ended")))
            }
        }
    }
}

impl Drop for Staging {
    /// Its threads end by themselves, as do the loader's: one may be in the middle of a request to a store that is away.
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

fn stage(mut loader: Loader, layout: &Layout, first: Step, send: &SyncSender<Result<Fed>>) {
    let mut step = first;
    loop {
        let made = layout.step(&mut loader, step);
        let ended = made.is_err();
        // Nobody takes it any more: the feed is gone.
        if send.send(made).is_err() || ended {
            return;
        }
        step = step.next();
    }
}

impl Layout {
    fn step(&self, loader: &mut Loader, step: Step) -> Result<Fed> {
        let mut fed = Fed { lanes: Vec::new(), samples: Vec::new() };
        for lane in self.lanes.clone() {
            let batch = loader.next()?.with_context(|| format!("the loader ended before {step}"))?;
            if batch.step != step || batch.lane.get() != lane {
                bail!("the loader fed {} {}, expected {step} lane {lane}", batch.step, batch.lane);
            }
            fed.lanes.push(self.lane_input(step, &batch)?);
            loader.recycle(batch.views);
            fed.samples.push((batch.lane.get(), batch.fed));
        }
        Ok(fed)
    }

    fn lane_input(&self, step: Step, batch: &LaneBatch) -> Result<LaneInput> {
        let levels = self.montages.levels();
        let epoch = self.schedule.locate(step).epoch;
        let side = |side: Side, first: usize| -> Result<LaneSide> {
            let views = batch.views.iter().skip(first).take(levels);
            let views = views.map(|v| self.view(v)).collect::<Result<Vec<_>>>()?;
            let permutations = (1..levels)
                .map(|level| {
                    let drawn = self.montages.permutation(self.seed, (epoch, step, batch.lane), level, side);
                    drawn.into_iter().map(|p| Ok(i64::try_from(p)?)).collect::<Result<Vec<_>>>()
                })
                .collect::<Result<Vec<_>>>()?;
            Ok(LaneSide { views, permutations })
        };
        let (q, k) = (side(Side::Q, 0)?, side(Side::K, levels)?);
        Ok(LaneInput { q, k, notes: notes(&batch.fed), classes: self.classes(&batch.fed)? })
    }

    /// Labels of what was really fed.
    fn classes(&self, fed: &[FedSample]) -> Result<Vec<i64>> {
        let Some(dataset) = &self.labels else { return Ok(Vec::new()) };
        let label = |s: &FedSample| {
            let label = dataset.label(s.index).with_context(|| format!("`{}` has no label", s.id))?;
            Ok(i64::from(label))
        };
        fed.iter().map(label).collect()
    }

    /// [N, 3, s, s] bytes in host memory.
    fn view(&self, bytes: &[u8]) -> Result<Tensor> {
        let flat = match self.device {
            Device::Cpu => Tensor::f_from_slice(bytes)?,
            _ => mcl_collective::pinned(bytes).context("page-locked memory for pictures")?,
        };
        Ok(flat.f_reshape([self.images, 3, self.edge(bytes.len())?, -1])?)
    }

    fn edge(&self, bytes: usize) -> Result<i64> {
        let pixels = i64::try_from(bytes)? / (3 * self.images.max(1));
        let edge = pixels.isqrt();
        if edge * edge * 3 * self.images != i64::try_from(bytes)? {
            bail!("a view of {bytes} bytes is no square of three channels for {} pictures", self.images);
        }
        Ok(edge)
    }
}
