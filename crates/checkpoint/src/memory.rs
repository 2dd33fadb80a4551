//! Snapshots in this process's memory, and what they may take.
//!
//! Invariants: what is held and what open uploads were promised is together never beyond the limit (tickets and
//! manifests, some KiB, may be); a slice is in memory once at any time, so what is promised is what it takes; no run's
//! snapshot is removed for another one while it is being written, or was used a short while ago. A snapshot is a
//! convenience: a run that is active gets its room before one that was cancelled, which nobody tells the service. Left
//! out: the bytes of a removed snapshot that somebody is still downloading, and what gRPC holds of a message.

use mcl_checkpoint_core::{CheckpointStore, Limits, SliceSpec, StoreError};
use mcl_types::{RunId, Step};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A run that neither wrote nor read a snapshot for this long has to make room where another one needs it. Longer than
/// it takes from the last slice of a snapshot to its commit, and from one slice that is downloaded to the next: a run
/// with an open upload is never idle.
pub(crate) const IDLE: Duration = Duration::from_secs(120);

/// The store in memory. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    store: CheckpointStore,
    /// Most bytes of slices, held and promised.
    limit: u64,
    /// One is let in at a time, so that no two are promised the same room.
    admission: Arc<tokio::sync::Mutex<()>>,
    uses: Uses,
}

type Uses = Arc<Mutex<HashMap<RunId, Use>>>;

/// What a run does here.
#[derive(Debug)]
struct Use {
    /// Bytes that its open uploads may come to hold.
    promised: u64,
    open: u32,
    last: Instant,
}

/// Room for one slice; it is given back when its upload is over, and what came of it counts for itself then.
#[derive(Debug)]
pub(crate) struct Room {
    uses: Uses,
    run: RunId,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(used) = lock(&self.uses).get_mut(&self.run) {
            used.promised = used.promised.saturating_sub(self.bytes);
            used.open = used.open.saturating_sub(1);
            used.last = Instant::now();
        }
    }
}

fn lock(uses: &Uses) -> MutexGuard<'_, HashMap<RunId, Use>> {
    uses.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    pub fn new(limits: Limits, limit: u64) -> Self {
        let store = CheckpointStore::in_memory().with_limits(limits);
        Self { store, limit, admission: Arc::default(), uses: Uses::default() }
    }

    /// Where the snapshots are, for a run that is not idle therefore.
    pub fn used_by(&self, run: &RunId) -> &CheckpointStore {
        if let Some(used) = lock(&self.uses).get_mut(run) {
            used.last = Instant::now();
        }
        &self.store
    }

    /// Without using it.
    #[cfg(test)]
    pub fn store(&self) -> &CheckpointStore {
        &self.store
    }

    /// Promises room for a slice; idle runs' snapshots go for it, least recently used first, where that helps.
    pub async fn room(&self, spec: &SliceSpec) -> Result<Room, StoreError> {
        let _one_at_a_time = self.admission.lock().await;
        // In this order: a slice that is finished in between counts twice for once, never not at all.
        let promised = lock(&self.uses).values().fold(0_u64, |sum, used| sum.saturating_add(used.promised));
        let held = self.store.bytes().await?;
        let found = held.saturating_add(promised).saturating_add(spec.size);
        let excess = found.saturating_sub(self.limit);
        if excess > 0 && !self.evict(excess, &spec.run).await? {
            let path = format!("{} of run `{}` in memory", spec.step, spec.run);
            return Err(StoreError::TooLarge { path, found, limit: self.limit });
        }
        let mut uses = lock(&self.uses);
        let now = Instant::now();
        let used = uses.entry(spec.run.clone()).or_insert(Use { promised: 0, open: 0, last: now });
        used.promised = used.promised.saturating_add(spec.size);
        (used.open, used.last) = (used.open + 1, now);
        Ok(Room { uses: Arc::clone(&self.uses), run: spec.run.clone(), bytes: spec.size })
    }

    /// Frees at least `excess` bytes by removing idle runs' snapshots, or tells that it cannot and removes none.
    async fn evict(&self, excess: u64, wanted_by: &RunId) -> Result<bool, StoreError> {
        let idle = idle_runs(&lock(&self.uses), wanted_by, Instant::now());
        let (mut doomed, mut freed) = (Vec::new(), 0_u64);
        for (run, unused) in idle {
            if freed >= excess {
                break;
            }
            let bytes = self.store.run_bytes(&run).await?;
            if bytes > 0 {
                freed = freed.saturating_add(bytes);
                doomed.push((run, unused, bytes));
            }
        }
        if freed < excess {
            return Ok(false);
        }
        for (run, unused, bytes) in doomed {
            let steps = self.store.remove_through(&run, Step::new(u64::MAX)).await?;
            lock(&self.uses).remove(&run);
            tracing::info!(%run, ?steps, bytes, unused_s = unused.as_secs(), %wanted_by, "idle run's snapshots in memory make room");
        }
        Ok(true)
    }
}

/// Runs other than the one that wants room that may have to make it, least recently used first, and since when.
fn idle_runs(uses: &HashMap<RunId, Use>, wanted_by: &RunId, now: Instant) -> Vec<(RunId, Duration)> {
    let mut idle: Vec<_> = uses
        .iter()
        .filter(|(run, used)| *run != wanted_by && used.open == 0)
        .map(|(run, used)| (run.clone(), now.duration_since(used.last)))
        .filter(|(_, unused)| *unused >= IDLE)
        .collect();
    idle.sort_by(|(a, before), (b, after)| after.cmp(before).then_with(|| a.as_str().cmp(b.as_str())));
    idle
}
