//! This rank's slice of the state, to the checkpoint service and back.

use crate::generation::Member;
use crate::orders::Orders;
use crate::slice_buffer::SliceBuffer;
use crate::weights;
use anyhow::Result;
use mcl_checkpoint::{CheckpointClient, ClientError, Draft};
use mcl_checkpoint_core::SliceView;
use mcl_collective::Lifeline;
use mcl_failpoint::Failpoint;
use mcl_proto::v1::{self, rank_event::Event};
use mcl_types::{FencingToken, RunId, Step, Tier};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tch::Tensor;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// How often a wait for the service looks whether its generation is over.
const LOOK: Duration = Duration::from_millis(10);

/// The generation ended while the checkpoint service was waited for.
#[derive(Debug)]
pub(crate) struct Left;

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("told to leave while waiting for the checkpoint service")
    }
}

impl std::error::Error for Left {}

/// `work`, given up once `lifeline` is aborted.
async fn unless_left<T>(lifeline: &Lifeline, work: impl Future<Output = T>) -> Result<T> {
    let left = async {
        while !lifeline.is_aborted() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        done = work => Ok(done),
        () = left => Err(Left.into()),
    }
}

/// Waits until this process speaks under a later term than `refused`.
async fn later_term(orders: &Orders, refused: FencingToken) {
    while orders.stamp().0 <= refused {
        tokio::time::sleep(LOOK).await;
    }
}

/// Uploads slices in the background, one at a time.
pub(crate) struct Snapshots {
    runtime: Runtime,
    client: CheckpointClient,
    run: RunId,
    orders: Arc<Orders>,
    buffer: SliceBuffer,
    pending: Option<JoinHandle<Result<()>>>,
}

impl Snapshots {
    pub(crate) fn new(configure: &v1::Configure, orders: Arc<Orders>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = {
            let _inside = runtime.enter();
            CheckpointClient::lazy(&configure.checkpoint_url)?
        };
        let (run, buffer) = (mcl_proto::run_id(&configure.run_id)?, SliceBuffer::default());
        Ok(Self { runtime, client, run, orders, buffer, pending: None })
    }

    /// The state of a visible checkpoint, every byte verified.
    pub(crate) fn load(&self, lifeline: &Lifeline, step: Step) -> Result<BTreeMap<String, Tensor>> {
        self.runtime.block_on(unless_left(lifeline, async {
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
        }))?
    }

    /// Has the memory for this rank's slice ready before the first snapshot needs it.
    pub(crate) fn prepare(&mut self, member: &Member, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let (slice, slices) = (member.rank.get(), member.layout.world());
        if let Some(work) = self.buffer.prepare(state, slice, slices)? {
            self.runtime.spawn_blocking(work);
        }
        Ok(())
    }

    /// Copies this rank's slice of `state` (after `step` steps) and uploads it in the background; Staged is
    /// reported when it is stored. Waits for the upload before it, so that two never pile up.
    pub(crate) fn stage(
        &mut self,
        member: &Member,
        step: Step,
        tier: Tier,
        state: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        self.finish(&member.lifeline)?;
        let (slice, slices) = (member.rank.get(), member.layout.world());
        let bytes = self.buffer.copy(state, slice, slices)?;
        let generation = member.token.generation;
        let (client, run, orders, reporter) =
            (self.client.clone(), self.run.clone(), Arc::clone(&self.orders), member.reporter.clone());
        self.pending = Some(self.runtime.spawn(async move {
            loop {
                let (token, _) = orders.stamp();
                if token.generation != generation {
                    return Err(Left.into());
                }
                let draft = Draft { token, run: &run, step, slices, tier };
                match client.put_slice(draft, slice, bytes.clone()).await {
                    Ok(()) => break,
                    // A new coordinator has announced itself to the service and not yet to this rank; if it takes the
                    // generation over, its term comes.
                    Err(ClientError::Fenced { .. }) => later_term(&orders, token).await,
                    Err(error) => {
                        let what = format!("checkpoint of {step}: slice {slice} of {slices}");
                        return Err(anyhow::Error::from(error).context(what));
                    }
                }
            }
            mcl_failpoint::pass(Failpoint::StagedBeforeReport);
            reporter.send(Event::Staged(v1::Staged {
                step: step.get(),
                slice,
                slices,
                in_memory: tier == Tier::Memory,
            }));
            Ok(())
        }));
        Ok(())
    }

    /// Waits for the upload under way. One that fails is a warning, not the end of training: the next
    /// checkpoint makes up for it.
    fn finish(&mut self, lifeline: &Lifeline) -> Result<()> {
        match self.await_pending(lifeline) {
            Err(error) if error.is::<Left>() => Err(error),
            Err(error) => {
                tracing::warn!("snapshot skipped: {error:#}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Waits for the upload under way, where the checkpoint must not be missed: at a drain and at the end.
    pub(crate) fn finish_or_fail(&mut self, lifeline: &Lifeline) -> Result<()> {
        self.await_pending(lifeline)
    }

    fn await_pending(&mut self, lifeline: &Lifeline) -> Result<()> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        let outcome = self.runtime.block_on(unless_left(lifeline, pending));
        if !outcome.as_ref().is_err_and(anyhow::Error::is::<Left>) {
            self.pending = None;
        }
        outcome??
    }

    /// Gives up what an older generation was still uploading: nobody waits for it.
    pub(crate) fn give_up(&mut self) {
        if let Some(pending) = self.pending.take() {
            pending.abort();
        }
    }
}
