//! Two stores behind one service: the durable one, and one in this process's memory.
//!
//! A snapshot in memory costs no disk and lasts as long as the service. Invariants: of a run's checkpoints in memory
//! at most one is visible once a later one is, and none that is not newer than a durable one; what is read is read
//! from the durable store where it is there. Left out: who may write (the fence), and what memory may take (`memory`).

use crate::memory::{Memory, Room};
use mcl_checkpoint_core::{
    CheckpointStore, CommitSpec, Damage, Depth, Inventory, InventoryEntry, Limits, Manifest, SliceReader,
    SliceSpec, SliceUpload, StoreError,
};
use mcl_types::{Digest, Retention, RunId, Step, Tier};

/// Both kinds of checkpoints.
#[derive(Debug, Clone)]
pub(crate) struct Tiers {
    durable: CheckpointStore,
    memory: Memory,
}

/// A slice on its way into one of them.
#[derive(Debug)]
pub(crate) struct TierUpload {
    pub slice: SliceUpload,
    room: Option<Room>,
}

impl TierUpload {
    /// As the slice's; its room is given back once it is there and counts for itself.
    pub async fn finish(self, hash: Digest) -> Result<(), StoreError> {
        let Self { slice, room } = self;
        let finished = slice.finish(hash).await;
        drop(room);
        finished
    }

    pub async fn abort(self) {
        self.slice.abort().await;
    }
}

/// What a run has, oldest first.
#[derive(Debug)]
pub(crate) struct Listing {
    pub visible: Vec<(InventoryEntry, Tier)>,
    pub damaged: Vec<(Step, Damage)>,
}

impl Tiers {
    pub fn new(durable: CheckpointStore, limits: Limits, memory_bytes: u64) -> Self {
        Self { durable, memory: Memory::new(limits, memory_bytes) }
    }

    fn of(&self, tier: Tier, run: &RunId) -> &CheckpointStore {
        match tier {
            Tier::Durable => &self.durable,
            Tier::Memory => self.memory.used_by(run),
        }
    }

    /// Starts to stage a slice.
    pub async fn begin_slice(&self, spec: SliceSpec, tier: Tier) -> Result<TierUpload, StoreError> {
        match tier {
            Tier::Durable => Ok(TierUpload { slice: self.durable.begin_slice(spec).await?, room: None }),
            Tier::Memory => {
                let room = self.memory.room(&spec).await?;
                let store = self.memory.used_by(&spec.run);
                Ok(TierUpload { slice: store.begin_whole_slice(spec)?, room: Some(room) })
            }
        }
    }

    /// Makes a checkpoint visible where it still may be, then removes what need not stay.
    pub async fn commit<E: From<StoreError>>(
        &self,
        spec: &CommitSpec,
        tier: Tier,
        retention: Retention,
        leave: impl Future<Output = Result<(), E>>,
    ) -> Result<Manifest, E> {
        let manifest = self.of(tier, &spec.run).commit_if(spec, leave).await?;
        match tier {
            Tier::Durable => {
                tell("old", spec, self.durable.prune(&spec.run, retention, spec.step).await);
                tell(
                    "in memory",
                    spec,
                    self.memory.used_by(&spec.run).remove_through(&spec.run, spec.step).await,
                );
            }
            Tier::Memory => {
                let memory = self.memory.used_by(&spec.run);
                let gone = memory.prune(&spec.run, Retention::newest(1), spec.step).await;
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
        let volatile = self.memory.used_by(run).list(run, depth).await?.visible;
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
            Err(StoreError::NoCheckpoint { .. }) => self.memory.used_by(run).manifest_text(run, step).await,
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
            Err(StoreError::NoCheckpoint { .. }) => {
                self.memory.used_by(run).slice_reader(run, step, slice, chunk).await
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::IDLE;
    use bytes::Bytes;
    use mcl_checkpoint_core::{Dtype, Layout, write_slice};
    use std::time::Duration;

    /// One of these is a whole state here, some hundred bytes more than a MiB with its header.
    const STATE: u64 = (1 << 20) + 1024;

    struct Story {
        tiers: Tiers,
        _folder: tempfile::TempDir,
    }

    impl Story {
        /// Room for so many half states.
        fn with_half_states(count: u64) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let durable = CheckpointStore::local(folder.path(), Layout::RunFolders).unwrap();
            let tiers = Tiers::new(durable, Limits::default(), count * STATE / 2);
            Self { tiers, _folder: folder }
        }

        async fn stage(&self, name: &str, step: u64) -> Result<(), StoreError> {
            let data = vec![step as u8; 1 << 20];
            let bytes = write_slice(&[("w".to_owned(), Dtype::U8, vec![data.len()], data.as_slice())]);
            let bytes = Bytes::from(bytes.unwrap());
            let spec = slice(name, step, bytes.len() as u64);
            let mut upload = self.tiers.begin_slice(spec, Tier::Memory).await?;
            let hash = Digest::of(&bytes);
            upload.slice.write(bytes).await?;
            upload.finish(hash).await
        }

        async fn snapshot(&self, name: &str, step: u64) -> Result<(), StoreError> {
            self.stage(name, step).await?;
            let (run, step) = (run(name), Step::new(step));
            let spec = CommitSpec { run, step, slices: 1, created: 0, meta: serde_json::Value::Null };
            self.tiers.commit(&spec, Tier::Memory, Retention::ALL, async { Ok(()) }).await.map(drop)
        }

        /// Without using them.
        async fn held(&self, name: &str) -> Vec<u64> {
            let listed = self.tiers.memory.store().list(&run(name), Depth::Quick).await.unwrap();
            listed.visible.iter().map(|e| e.manifest.step.get()).collect()
        }
    }

    fn run(name: &str) -> RunId {
        RunId::new(name).unwrap()
    }

    fn slice(name: &str, step: u64, size: u64) -> SliceSpec {
        SliceSpec { run: run(name), step: Step::new(step), slice: 0, slices: 1, size }
    }

    fn refused<T>(result: Result<T, StoreError>) {
        assert!(matches!(result.map(drop), Err(StoreError::TooLarge { .. })));
    }

    #[tokio::test]
    async fn room_is_promised_when_an_upload_begins_and_given_back_when_it_ends() {
        let story = Story::with_half_states(3);
        let first = story.tiers.begin_slice(slice("a", 1, STATE), Tier::Memory).await.unwrap();
        let at_once = SliceSpec { slices: 2, slice: 1, ..slice("a", 1, STATE) };
        refused(story.tiers.begin_slice(at_once.clone(), Tier::Memory).await);
        drop(first);
        let second = story.tiers.begin_slice(at_once, Tier::Memory).await.unwrap();
        second.abort().await;
        // A finished one counts for itself, once.
        story.stage("a", 2).await.unwrap();
        story.tiers.begin_slice(slice("b", 1, STATE / 2), Tier::Memory).await.unwrap();
        refused(story.tiers.begin_slice(slice("b", 1, STATE), Tier::Memory).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_runs_snapshot_makes_room_for_one_that_goes_on() {
        let story = Story::with_half_states(5);
        story.snapshot("cancelled", 1).await.unwrap();
        story.snapshot("b", 1).await.unwrap();
        refused(story.snapshot("b", 2).await);
        tokio::time::advance(IDLE - Duration::from_secs(1)).await;
        refused(story.snapshot("b", 2).await);
        assert_eq!(story.held("cancelled").await, [1]);
        tokio::time::advance(Duration::from_secs(1)).await;
        story.snapshot("b", 2).await.unwrap();
        assert_eq!((story.held("cancelled").await, story.held("b").await), (vec![], vec![2]));
        // What was staged and never committed goes too.
        story.stage("staged", 3).await.unwrap();
        tokio::time::advance(IDLE).await;
        story.snapshot("b", 3).await.unwrap();
        story.snapshot("b", 4).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_recently_used_goes_first_and_no_more_than_is_needed() {
        let story = Story::with_half_states(7);
        for name in ["a", "b", "c"] {
            story.snapshot(name, 1).await.unwrap();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        // Whoever reads it goes on from it.
        story.tiers.manifest_text(&run("a"), Step::new(1)).await.unwrap();
        tokio::time::advance(IDLE).await;
        story.snapshot("d", 1).await.unwrap();
        assert_eq!(story.held("b").await, Vec::<u64>::new());
        assert_eq!((story.held("a").await, story.held("c").await), (vec![1], vec![1]));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_goes_where_it_does_not_help_and_nothing_that_is_being_written() {
        let story = Story::with_half_states(5);
        story.snapshot("a", 1).await.unwrap();
        tokio::time::advance(IDLE * 10).await;
        refused(story.tiers.begin_slice(slice("b", 1, 3 * STATE), Tier::Memory).await);
        assert_eq!(story.held("a").await, [1], "the whole memory would not do");
        let open = story.tiers.begin_slice(slice("a", 2, STATE), Tier::Memory).await.unwrap();
        tokio::time::advance(IDLE * 10).await;
        refused(story.snapshot("b", 1).await);
        assert_eq!(story.held("a").await, [1], "it is being written");
        drop(open);
        refused(story.tiers.begin_slice(slice("b", 1, 2 * STATE), Tier::Memory).await);
        tokio::time::advance(IDLE).await;
        story.tiers.begin_slice(slice("b", 1, 2 * STATE), Tier::Memory).await.unwrap();
        assert_eq!(story.held("a").await, Vec::<u64>::new());
    }
}
