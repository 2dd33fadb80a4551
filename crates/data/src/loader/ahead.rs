//! Requests drawn further ahead than they are worked on, so that what they need of an object store is there in time.
//!
//! A thread draws the plan's requests, has the blocks of their samples fetched in that order, and hands the requests on.
//! It runs ahead until the requests in between need as many blocks as the cache has room for. A windowed plan
//! goes over to other shards all at once: the blocks that these bring are fetched while the window before is trained on.
//!
//! Invariants: requests come out as they went in, a panic of the plan included; one that was drawn is handed on without
//! waiting for another. Left out: fetching (`remote`).

use super::BatchRequest;
use crate::dataset::Dataset;
use crate::remote::{BlockId, Remote};
use std::any::Any;
use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Requests in between at most, whatever they need: the plan of a run is not held in memory.
const REQUESTS: usize = 4096;

/// The requests, read ahead.
pub(super) struct Ahead {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// A request came, or the end.
    came: Condvar,
    /// A request went, or nobody wants more.
    went: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Drawn>,
    /// How many of the requests in between need a block.
    needed: HashMap<BlockId, usize>,
    ended: bool,
    panic: Option<Box<dyn Any + Send>>,
    abandoned: bool,
}

struct Drawn {
    request: BatchRequest,
    blocks: Vec<BlockId>,
}

impl Ahead {
    /// Starts the thread. It is not waited for: drawing a request may block.
    pub(super) fn start(
        dataset: Arc<Dataset>,
        remote: Arc<Remote>,
        requests: impl Iterator<Item = BatchRequest> + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), came: Condvar::new(), went: Condvar::new() });
        // An earlier loader over the same dataset had other plans.
        remote.forget_wants();
        let ahead = Self { shared: Arc::clone(&shared) };
        let run = move || shared.draw(&dataset, &remote, requests);
        std::thread::Builder::new().name("mcl-loader-ahead".to_owned()).spawn(run)?;
        Ok(ahead)
    }
}

impl Iterator for Ahead {
    type Item = BatchRequest;

    fn next(&mut self) -> Option<BatchRequest> {
        let mut state = self.shared.lock();
        loop {
            if let Some(Drawn { request, blocks }) = state.queue.pop_front() {
                for block in blocks {
                    if let Some(needed) = state.needed.get_mut(&block) {
                        *needed -= 1;
                        if *needed == 0 {
                            state.needed.remove(&block);
                        }
                    }
                }
                self.shared.went.notify_all();
                return Some(request);
            }
            if let Some(panic) = state.panic.take() {
                drop(state);
                resume_unwind(panic);
            }
            if state.ended {
                return None;
            }
            state = self.shared.came.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.lock().abandoned = true;
        self.shared.went.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self, dataset: &Dataset, remote: &Remote, mut requests: impl Iterator<Item = BatchRequest>) {
        let window = remote.window();
        loop {
            let drawn = catch_unwind(AssertUnwindSafe(|| requests.next()));
            let mut state = self.lock();
            let request = match drawn {
                Ok(Some(request)) => request,
                Ok(None) => break state.ended = true,
                Err(panic) => break state.panic = Some(panic),
            };
            let mut blocks: Vec<BlockId> = Vec::new();
            let mut own = HashSet::new();
            let mut fresh = Vec::new();
            for block in request.samples.iter().flat_map(|sample| dataset.blocks(*sample)) {
                if own.insert(block) {
                    blocks.push(block);
                    let needed = state.needed.entry(block).or_default();
                    *needed += 1;
                    if *needed == 1 {
                        fresh.push(block);
                    }
                }
            }
            state.queue.push_back(Drawn { request, blocks });
            self.came.notify_all();
            drop(state);
            remote.want(fresh);
            let full = |s: &mut State| {
                !s.abandoned && (s.needed.len() >= window || s.queue.len() >= REQUESTS) && !s.queue.is_empty()
            };
            let state = self.went.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
            if state.abandoned {
                return;
            }
        }
        self.came.notify_all();
    }
}
