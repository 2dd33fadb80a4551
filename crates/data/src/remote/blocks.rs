//! Blocks of remote objects: from the cache, or by a ranged get, one at a time for each block.
//!
//! Invariants: no block is fetched twice at the same time by this process; what one thread fetches is handed to all that
//! wait for it, so that no bound is too small to make progress; nothing is kept in memory beyond that.

use super::cache::{Cache, Place};
use super::client::{Client, Object};
use super::{RemoteError, Traffic};
use bytes::Bytes;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use tokio::runtime::Runtime;

/// Threads that fetch what will be needed; each has a get under way.
const FETCHERS: usize = 8;
/// The share of the cache that one process may fill ahead of its loader: up to eight ranks share a machine's cache.
const AHEAD_SHARE: u64 = 8;

/// One block of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockId {
    object: usize,
    number: u64,
}

type Flight = Arc<OnceLock<Result<Bytes, RemoteError>>>;

#[derive(Debug, Default)]
struct State {
    /// Blocks that will be needed, soonest first.
    wanted: VecDeque<BlockId>,
    queued: HashSet<BlockId>,
    /// Blocks that a thread is fetching.
    flying: HashMap<BlockId, Flight>,
    stopping: bool,
}

/// Objects of a bucket behind the cache.
#[derive(Debug)]
pub(crate) struct Remote {
    shared: Arc<Shared>,
    /// Set until the end: shut down without waiting, since that may happen inside another runtime.
    runtime: Option<Runtime>,
    fetchers: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    cache: Cache,
    cache_bytes: u64,
    block_bytes: u64,
    objects: Vec<(Object, String)>,
    state: Mutex<State>,
    /// There may be something wanted.
    changed: Condvar,
    gets: AtomicU64,
    bytes: AtomicU64,
    waits: AtomicU64,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        self.shared.client.stop();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let fetchers = self.fetchers.get_mut().unwrap_or_else(PoisonError::into_inner);
        for fetcher in fetchers.drain(..) {
            // It ends with the request that it is at, which the runtime has just dropped.
            let _ = fetcher.join();
        }
    }
}

impl Remote {
    pub(super) fn new(
        client: Client,
        runtime: Runtime,
        cache: Cache,
        spec: &super::RemoteSpec,
        objects: Vec<Object>,
    ) -> Self {
        let key = |object: Object| {
            let key = object.key(&client.url(&object.path));
            (object, key)
        };
        let objects = objects.into_iter().map(key).collect();
        let shared = Shared {
            client,
            cache,
            cache_bytes: spec.cache_bytes,
            block_bytes: spec.block_bytes.max(1),
            objects,
            state: Mutex::default(),
            changed: Condvar::new(),
            gets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            waits: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), runtime: Some(runtime), fetchers: Mutex::default() }
    }

    pub(super) fn client(&self) -> &Client {
        &self.shared.client
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.shared.cache
    }

    /// What the store says that an object is, in words; another where it is another one.
    pub(crate) fn version(&self, object: usize) -> String {
        self.shared.objects.get(object).map(|(o, _)| o.version()).unwrap_or_default()
    }

    /// Bytes of an object.
    pub(crate) fn len(&self, object: usize) -> u64 {
        self.shared.objects.get(object).map_or(0, |(o, _)| o.size)
    }

    /// Where a part of an object that is no block is kept.
    pub(super) fn place(&self, object: usize, part: &str) -> Place {
        let object = self.shared.objects.get(object).map(|(_, key)| key.clone()).unwrap_or_default();
        Place { object, part: part.to_owned() }
    }

    /// What was fetched so far.
    pub(crate) fn traffic(&self) -> Traffic {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Traffic { gets: of(&self.shared.gets), bytes: of(&self.shared.bytes), waits: of(&self.shared.waits) }
    }

    /// Blocks that may be fetched ahead of the loader.
    pub(crate) fn window(&self) -> usize {
        let blocks = self.shared.cache_bytes / AHEAD_SHARE / self.shared.block_bytes;
        usize::try_from(blocks).unwrap_or(usize::MAX).max(1)
    }

    /// The blocks that hold a range.
    pub(crate) fn blocks_of(
        &self,
        object: usize,
        range: &Range<u64>,
    ) -> impl Iterator<Item = BlockId> + use<> {
        let block = self.shared.block_bytes;
        let numbers = if range.is_empty() { 0..0 } else { range.start / block..range.end.div_ceil(block) };
        numbers.map(move |number| BlockId { object, number })
    }

    /// A range of an object's bytes, which must lie inside it.
    ///
    /// # Errors
    /// When the store does not give it.
    pub(crate) fn read(&self, object: usize, range: &Range<u64>) -> Result<Vec<u8>, RemoteError> {
        let mut out = Vec::new();
        for id in self.blocks_of(object, range) {
            let block = self.shared.range(id);
            let part = range.start.max(block.start) - block.start
                ..range.end.min(block.end).max(block.start) - block.start;
            match self.shared.cache.read(&self.shared.place(id), Some(part.clone())) {
                Some(bytes) if out.is_empty() => out = bytes,
                Some(bytes) => out.extend_from_slice(&bytes),
                None => {
                    self.shared.waits.fetch_add(1, Ordering::Relaxed);
                    let whole = self.shared.fetch(id)?;
                    let at = |byte| usize::try_from(byte).unwrap_or(usize::MAX);
                    out.extend_from_slice(whole.get(at(part.start)..at(part.end)).unwrap_or_default());
                }
            }
        }
        Ok(out)
    }

    /// Has blocks fetched in the background, after those that were wanted before.
    pub(crate) fn want(&self, blocks: impl IntoIterator<Item = BlockId>) {
        self.start_fetchers();
        let mut state = self.shared.lock();
        for id in blocks {
            if !state.flying.contains_key(&id) && state.queued.insert(id) {
                state.wanted.push_back(id);
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// What was wanted is wanted no more.
    pub(crate) fn forget_wants(&self) {
        let mut state = self.shared.lock();
        state.wanted.clear();
        state.queued.clear();
    }

    /// They are started by the first wish: whoever only looks at the list needs none.
    fn start_fetchers(&self) {
        let mut fetchers = self.fetchers.lock().unwrap_or_else(PoisonError::into_inner);
        while fetchers.len() < FETCHERS {
            let shared = Arc::clone(&self.shared);
            let name = format!("mcl-fetcher-{}", fetchers.len());
            match std::thread::Builder::new().name(name).spawn(move || shared.fetch_what_is_wanted()) {
                Ok(thread) => fetchers.push(thread),
                Err(error) => {
                    tracing::warn!(%error, "no thread to read ahead with: readers fetch for themselves");
                    return;
                }
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, id: BlockId) -> Place {
        let object = self.objects.get(id.object).map(|(_, key)| key.clone()).unwrap_or_default();
        // Blocks of another size are other parts.
        Place { object, part: format!("{}-{}", self.block_bytes, id.number) }
    }

    /// Where a block lies in its object.
    fn range(&self, id: BlockId) -> Range<u64> {
        let size = self.objects.get(id.object).map_or(0, |(o, _)| o.size);
        let start = id.number.saturating_mul(self.block_bytes).min(size);
        start..start.saturating_add(self.block_bytes).min(size)
    }

    fn fetch_what_is_wanted(&self) {
        loop {
            let mut state = self.lock();
            let id = loop {
                if state.stopping {
                    return;
                }
                if let Some(id) = state.wanted.pop_front() {
                    state.queued.remove(&id);
                    break id;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            if self.cache.holds(&self.place(id)) {
                continue;
            }
            if let Err(error) = self.fetch(id) {
                // Whoever needs it tries again, and says so.
                tracing::debug!(%error, "a block could not be read ahead");
            }
        }
    }

    /// A whole block: from whoever is fetching it, or by this thread.
    fn fetch(&self, id: BlockId) -> Result<Bytes, RemoteError> {
        let mut state = self.lock();
        if let Some(flight) = state.flying.get(&id).map(Arc::clone) {
            drop(state);
            return flight.wait().clone();
        }
        let flight = Flight::default();
        state.flying.insert(id, Arc::clone(&flight));
        // A fetcher that comes to it later has nothing left to do.
        if state.queued.remove(&id) {
            state.wanted.retain(|wanted| *wanted != id);
        }
        drop(state);
        let landing = Landing { shared: self, id, flight };
        self.load(id, &landing.flight)
    }

    /// Tells those that wait before it writes the block down.
    fn load(&self, id: BlockId, flight: &Flight) -> Result<Bytes, RemoteError> {
        let place = self.place(id);
        let range = self.range(id);
        // Somebody else, of this process or another, may have brought it meanwhile.
        let kept = self.cache.read(&place, Some(0..range.end - range.start)).map(Bytes::from);
        let result = match (&kept, self.objects.get(id.object)) {
            (Some(kept), _) => Ok(kept.clone()),
            (None, Some((object, _))) => self.client.get(object, range),
            (None, None) => Ok(Bytes::new()),
        };
        let fetched = result.as_ref().ok().filter(|_| kept.is_none());
        if let Some(bytes) = fetched {
            self.gets.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        let _ = flight.set(result.clone());
        if let Some(bytes) = fetched {
            self.cache.keep(&place, bytes);
        }
        result
    }
}

/// Ends a flight, also where the thread panics: nobody waits for ever.
struct Landing<'a> {
    shared: &'a Shared,
    id: BlockId,
    flight: Flight,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let _ = self.flight.set(Err(RemoteError::Stopped));
        self.shared.lock().flying.remove(&self.id);
    }
}
