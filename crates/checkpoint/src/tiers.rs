//! Two stores behind one service: the durable one, and one in this process's memory.
//!
//! A snapshot in memory costs no disk and lasts as long as the service. Invariants: of a run's checkpoints in memory
//! at most one is visible once a later one is, and none that is not newer than a durable one; what is in memory is
//! bounded; what is read is read from the durable store where it is there. Left out: who may write (the fence).

use mcl_checkpoint_core::{
    CheckpointStore, CommitSpec, Damage, Depth, Inventory, InventoryEntry, Limits, Manifest, SliceReader,
    SliceSpec, SliceUpload, StoreError,
};
use mcl_types::{Retention, RunId, Step, Tier};

/// Both kinds of checkpoints.
#[derive(Debug, Clone)]
pub(crate) struct Tiers {
    durable: CheckpointStore,
    memory: CheckpointStore,
    /// Most bytes of slices in memory.
    memory_bytes: u64,
}

/// What a run has, oldest first.
#[derive(Debug)]
pub(crate) struct Listing {
    pub visible: Vec<(InventoryEntry, Tier)>,
    pub damaged: Vec<(Step, Damage)>,
}

impl Tiers {
    pub fn new(durable: CheckpointStore, limits: Limits, memory_bytes: u64) -> Self {
        let memory = CheckpointStore::in_memory().with_limits(limits);
        Self { durable, memory, memory_bytes }
    }

    fn of(&self, tier: Tier) -> &CheckpointStore {
        match tier {
            Tier::Durable => &self.durable,
            Tier::Memory => &self.memory,
        }
    }

    /// Starts to stage a slice.
    pub async fn begin_slice(&self, spec: SliceSpec, tier: Tier) -> Result<SliceUpload, StoreError> {
        if tier == Tier::Memory {
            let held = self.memory.bytes().await?;
            let found = held.saturating_add(spec.size);
            if found > self.memory_bytes {
                let path = format!("step {} of run `{}` in memory", spec.step, spec.run);
                return Err(StoreError::TooLarge { path, found, limit: self.memory_bytes });
            }
        }
        self.of(tier).begin_slice(spec).await
    }

    /// Makes a checkpoint visible where it still may be, then removes what need not stay.
    pub async fn commit<E: From<StoreError>>(
        &self,
        spec: &CommitSpec,
        tier: Tier,
        retention: Retention,
        leave: impl Future<Output = Result<(), E>>,
    ) -> Result<Manifest, E> {
        let manifest = self.of(tier).commit_if(spec, leave).await?;
        match tier {
            Tier::Durable => {
                tell("old", spec, self.durable.prune(&spec.run, retention, spec.step).await);
                tell("in memory", spec, self.memory.remove_through(&spec.run, spec.step).await);
            }
            Tier::Memory => {
                let gone = self.memory.prune(&spec.run, Retention::newest(1), spec.step).await;
                tell("in memory", spec, gone);
            }
        }
        Ok(manifest)
    }

    /// What a run has in both; every byte of the newest good one of at most this step is verified.
    ///
    /// # Errors
    /// When the store cannot be listed, or does not give a newer one of those: it may be good.
    pub async fn list(&self, run: &RunId, at_most: Step) -> Result<Listing, StoreError> {
        let depth = Depth::NewestGood { at_most };
        let found = self.durable.list(run, depth).await?;
        if let Some((step, damage)) = found.withheld(at_most) {
            let (path, damage) =
                (format!("{} of run `{run}`", self.durable.name()), Box::new(damage.clone()));
            return Err(StoreError::Unreadable { step, path, damage });
        }
        let Inventory { visible, damaged, .. } = found;
        let volatile = self.memory.list(run, depth).await?.visible;
        let mut visible: Vec<_> = visible.into_iter().map(|entry| (entry, Tier::Durable)).collect();
        let held: Vec<Step> = visible.iter().map(|(e, _)| e.manifest.step).collect();
        let newer = volatile.into_iter().filter(|e| !held.contains(&e.manifest.step));
        visible.extend(newer.map(|entry| (entry, Tier::Memory)));
        visible.sort_by_key(|(entry, _)| entry.manifest.step);
        Ok(Listing { visible, damaged })
    }

    /// A visible checkpoint's manifest, as text.
    pub async fn manifest_text(&self, run: &RunId, step: Step) -> Result<String, StoreError> {
        match self.durable.manifest_text(run, step).await {
            Err(StoreError::NoCheckpoint { .. }) => self.memory.manifest_text(run, step).await,
            other => other,
        }
    }

    /// One slice in chunks.
    pub async fn slice_reader(
        &self,
        run: &RunId,
        step: Step,
        slice: u32,
        chunk: usize,
    ) -> Result<SliceReader, StoreError> {
        match self.durable.slice_reader(run, step, slice, chunk).await {
            Err(StoreError::NoCheckpoint { .. }) => self.memory.slice_reader(run, step, slice, chunk).await,
            other => other,
        }
    }
}

/// What became of checkpoints that need not stay: keeping them is no fault of the one that was committed.
fn tell(what: &str, spec: &CommitSpec, removed: Result<Vec<Step>, StoreError>) {
    match removed {
        Ok(steps) if steps.is_empty() => {}
        Ok(steps) => tracing::info!(run = %spec.run, what, ?steps, "checkpoints removed"),
        Err(error) => tracing::warn!(run = %spec.run, what, %error, "checkpoints not removed"),
    }
}
