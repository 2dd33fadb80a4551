//! This rank's slice of the state, to the checkpoint service and back.

use crate::control::Reporter;
use crate::weights;
use anyhow::{Context, Result};
use bytes::Bytes;
use mcl_checkpoint::CheckpointClient;
use mcl_checkpoint_core::{SliceView, TensorInfo, assign, write_slice};
use mcl_proto::v1::{self, rank_event::Event};
use mcl_types::{FencingToken, RunId, Step};
use std::collections::BTreeMap;
use tch::Tensor;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Uploads slices in the background, one at a time.
pub(crate) struct Snapshots {
    runtime: Runtime,
    client: CheckpointClient,
    run: RunId,
    token: FencingToken,
    rank: u32,
    world: u32,
    reporter: Reporter,
    pending: Option<JoinHandle<Result<()>>>,
}

impl Snapshots {
    pub(crate) fn new(configure: &v1::Configure, token: FencingToken, reporter: Reporter) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = {
            let _inside = runtime.enter();
            CheckpointClient::lazy(&configure.checkpoint_url)?
        };
        Ok(Self {
            runtime,
            client,
            run: mcl_proto::run_id(&configure.run_id)?,
            token,
            rank: configure.rank,
            world: configure.world_size,
            reporter,
            pending: None,
        })
    }

    /// The state of a visible checkpoint, every byte verified.
    pub(crate) fn load(&self, step: Step) -> Result<BTreeMap<String, Tensor>> {
        self.runtime.block_on(async {
            let manifest = self.client.manifest(&self.run, step).await?;
            let mut state = BTreeMap::new();
            for (slice, entry) in (0_u32..).zip(&manifest.slices) {
                let bytes = self.client.get_slice(&self.run, step, slice, entry).await?;
                let view = SliceView::parse(&bytes)?;
                for (name, t) in view.tensors() {
                    state.insert(name.to_owned(), weights::tensor(name, t.dtype, &t.shape, t.bytes)?);
                }
            }
            Ok(state)
        })
    }

    /// Copies this rank's slice of `state` (after `step` steps) and uploads it in the background; Staged is
    /// reported when it is stored. Waits for the upload before it, so that two never pile up.
    pub(crate) fn stage(&mut self, step: Step, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.finish()?;
        let bytes = Bytes::from(self.slice(state)?);
        let (client, run, token, reporter) =
            (self.client.clone(), self.run.clone(), self.token, self.reporter.clone());
        let (slice, slices) = (self.rank, self.world);
        self.pending = Some(self.runtime.spawn(async move {
            client
                .put_slice(token, &run, step, slice, slices, bytes)
                .await
                .with_context(|| format!("checkpoint of {step}: slice {slice} of {slices}"))?;
            reporter.send(Event::Staged(v1::Staged { step: step.get(), slice, slices }));
            Ok(())
        }));
        Ok(())
    }

    /// Waits for the upload under way. One that fails is a warning, not the end of training: the next
    /// checkpoint makes up for it.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        match self.runtime.block_on(pending) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("snapshot skipped: {error:#}"),
            Err(error) => tracing::warn!(%error, "snapshot task"),
        }
        Ok(())
    }

    /// As [`Snapshots::finish`], where the checkpoint must not be missed: at a drain and at the end.
    pub(crate) fn finish_or_fail(&mut self) -> Result<()> {
        match self.pending.take() {
            Some(pending) => self.runtime.block_on(pending)?,
            None => Ok(()),
        }
    }

    fn slice(&self, state: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
        let infos: Vec<TensorInfo> = state
            .iter()
            .map(|(name, t)| {
                let bytes = u64::try_from(t.numel() * t.kind().elt_size_in_bytes())?;
                Ok(TensorInfo {
                    name: name.clone(),
                    dtype: weights::dtype(t.kind())?,
                    shape: weights::shape(t),
                    bytes,
                })
            })
            .collect::<Result<_>>()?;
        let deal = assign(&infos, self.world);
        let own = deal.get(usize::try_from(self.rank)?).context("this rank has no slice")?;
        let mut copies = Vec::with_capacity(own.len());
        for index in own {
            let info = infos.get(*index).context("the deal names a tensor that is not there")?;
            let tensor = state.get(&info.name).context("the state changed under the deal")?;
            copies.push((info, mcl_train::bytes_of(tensor)?));
        }
        let tensors: Vec<_> = copies
            .iter()
            .map(|(info, bytes)| (info.name.clone(), info.dtype, info.shape.clone(), bytes.as_slice()))
            .collect();
        Ok(write_slice(&tensors)?)
    }
}
