//! Lane batches made ahead of time on background threads.
//!
//! Role: requests in, decoded and augmented batches out, in the order of the requests. Threads work on
//! single pictures, so that one batch uses them all. Invariants: what comes out depends on requests,
//! dataset and spec, never on the number of threads or their timing, errors included; at most `queue` batches
//! are in memory besides those handed out, and the memory of as many that were given back; dropping the loader stops its threads.
//!
//! A picture that does not decode, or whose file is gone, is replaced by `substitute` and recorded. A
//! failing storage is not: it is tried again, then ends the loader.

mod ahead;
mod worker;

use crate::augment::{AugmentError, AugmentSpec, Augmenter, ViewMode};
use crate::dataset::{Dataset, ReadError};
use crate::decode::{Limits, panic_message};
use mcl_types::{Epoch, Lane, SampleIndex, Seed, Slot, Step};
use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How pictures are loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderSpec {
    /// The augmentation.
    pub augment: AugmentSpec,
    /// Edge S of a full view in pixels.
    pub image_size: u32,
    /// Ratio of every level.
    pub levels: Vec<u32>,
    /// How the views of the higher levels are made.
    pub mode: ViewMode,
    /// The run's seed.
    pub seed: Seed,
    /// Threads that decode and augment; at least one is used.
    pub threads: usize,
    /// Lane batches in the making or waiting; at least one.
    pub queue: usize,
    /// What a decoder may take on.
    pub limits: Limits,
    /// Replacements tried for one slot before the loader gives up.
    pub max_substitutes: u32,
}

impl Default for LoaderSpec {
    /// The paper's views on one thread, four batches ahead.
    fn default() -> Self {
        Self {
            augment: AugmentSpec::default(),
            image_size: 224,
            levels: vec![1, 2, 4, 8],
            mode: ViewMode::default(),
            seed: Seed::default(),
            threads: 1,
            queue: 4,
            limits: Limits::default(),
            max_substitutes: 64,
        }
    }
}

/// The pictures of one lane in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRequest {
    /// The epoch; it seeds the augmentation.
    pub epoch: Epoch,
    /// The step.
    pub step: Step,
    /// The lane.
    pub lane: Lane,
    /// N samples, by slot.
    pub samples: Vec<SampleIndex>,
}

/// What stands in for a sample that cannot be decoded: a pure function of (epoch, step, lane, slot,
/// attempt), so that every run makes the same choice.
pub type Substitute = Arc<dyn Fn(Epoch, Step, Lane, Slot, u32) -> SampleIndex + Send + Sync>;

/// That a slot got another picture than the plan said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// The planned sample.
    pub wanted: SampleIndex,
    /// Why it could not be used.
    pub reason: String,
}

/// What a slot was really fed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FedSample {
    /// The sample.
    pub index: SampleIndex,
    /// Its id.
    pub id: String,
    /// First 16 bytes of the BLAKE3 of the encoded bytes that were read.
    pub hash: [u8; 16],
    /// Set where this is a replacement.
    pub replaced: Option<Replaced>,
}

/// One finished batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneBatch {
    /// As requested.
    pub epoch: Epoch,
    /// As requested.
    pub step: Step,
    /// As requested.
    pub lane: Lane,
    /// By slot.
    pub fed: Vec<FedSample>,
    /// 2L buffers; view v is planar `[N, 3, S/r, S/r]`.
    pub views: Vec<Vec<u8>>,
}

/// What a loader has seen so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoaderStats {
    /// Pictures fed.
    pub pictures: u64,
    /// Slots fed with a replacement.
    pub replaced: u64,
    /// Distinct samples that could not be used.
    pub undecodable: u64,
    /// Pictures fed that decoded with a warning.
    pub damaged: u64,
    /// Time that `next` waited: what the loader cost the training.
    pub waited: Duration,
}

/// Why a loader ended.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The augmentation is impossible.
    #[error(transparent)]
    Augment(#[from] AugmentError),
    /// A thread could not be started.
    #[error("cannot start a loader thread: {0}")]
    Spawn(std::io::Error),
    /// The storage failed.
    #[error("reading {id} failed: {source}")]
    Read {
        /// The sample.
        id: String,
        /// Why.
        source: ReadError,
    },
    /// The bytes are not those that the shard's index recorded.
    #[error(
        "{id} is not what its shard's index recorded (hash {found}, recorded {recorded}): the shard is damaged or its index is of another one"
    )]
    Damaged {
        /// The sample.
        id: String,
        /// Hash in the index.
        recorded: String,
        /// Hash of what was read.
        found: String,
    },
    /// No usable picture was found for a slot.
    #[error(
        "no picture for {step}, {lane}, {slot}: the planned one and {tried} replacements could not be decoded; the first: {first}"
    )]
    TooManyBad {
        /// The step.
        step: Step,
        /// The lane.
        lane: Lane,
        /// The slot.
        slot: Slot,
        /// Replacements tried.
        tried: u32,
        /// Id and reason of the planned picture.
        first: String,
    },
    /// A thread panicked; caught.
    #[error("{part} failed on {what}: {message}")]
    Panicked {
        /// Which part.
        part: &'static str,
        /// What it worked on.
        what: String,
        /// The panic's message.
        message: String,
    },
    /// The loader ended with an error before, or was told to stop.
    #[error("the loader has stopped: after an earlier error, or because it was told to")]
    Stopped,
}

impl LoaderError {
    /// Whether starting again later may help: an object store that is away.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.may_pass())
    }
}

/// One requested batch on its way.
struct Pending {
    batch: Arc<Batch>,
    /// Slots handed to threads.
    claimed: usize,
    /// Slots that came back.
    finished: usize,
    /// The failure of the lowest slot.
    failure: Option<(usize, LoaderError)>,
}

impl Pending {
    /// Finished, or failed with nothing in the air.
    fn is_ready(&self) -> bool {
        let all = self.finished == self.batch.request.samples.len();
        all || (self.failure.is_some() && self.finished == self.claimed)
    }
}

/// What threads write into.
struct Batch {
    request: BatchRequest,
    filled: Mutex<Filled>,
}

#[derive(Default)]
struct Filled {
    fed: Vec<Option<FedSample>>,
    views: Vec<Vec<u8>>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Pending>,
    /// Serial number of the queue's front.
    first: u64,
    /// No more requests will come.
    ended: bool,
    /// Threads shall end.
    stopping: bool,
    /// The requests' iterator panicked.
    feeder: Option<LoaderError>,
    stats: LoaderStats,
    /// Views of batches that were given back, to be written over.
    spare: Vec<Vec<Vec<u8>>>,
    /// Samples that could not be used, each reported once.
    undecodable: BTreeSet<u64>,
}

struct Shared {
    dataset: Arc<Dataset>,
    spec: LoaderSpec,
    augmenter: Augmenter,
    substitute: Substitute,
    state: Mutex<State>,
    /// There may be a slot to work on.
    work: Condvar,
    /// The front may be ready.
    ready: Condvar,
    /// There may be room in the queue.
    room: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stopping = true;
        self.work.notify_all();
        self.room.notify_all();
        self.ready.notify_all();
    }
}

/// Loads batches in the background.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    failed: bool,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Loader {
    /// Starts loading. `requests` is drawn from on a thread of its own and may block, as the receiver
    /// of a channel does; that thread is not waited for when the loader is dropped.
    ///
    /// # Errors
    /// When the spec is impossible or no thread can be started.
    pub fn start<R>(
        dataset: Arc<Dataset>,
        spec: LoaderSpec,
        requests: R,
        substitute: Substitute,
    ) -> Result<Self, LoaderError>
    where
        R: IntoIterator<Item = BatchRequest>,
        R::IntoIter: Send + 'static,
    {
        let augmenter = Augmenter::new(spec.augment, spec.image_size, &spec.levels, spec.mode, spec.seed)?;
        let threads = spec.threads.max(1);
        let shared = Arc::new(Shared {
            dataset,
            spec,
            augmenter,
            substitute,
            state: Mutex::default(),
            work: Condvar::new(),
            ready: Condvar::new(),
            room: Condvar::new(),
        });
        let mut loader = Self { shared: Arc::clone(&shared), threads: Vec::new(), failed: false };
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            let run = move || worker::run(&shared);
            loader.threads.push(spawn(format!("mcl-loader-{number}"), run)?);
        }
        let requests = requests.into_iter();
        let dataset = Arc::clone(&shared.dataset);
        match dataset.remote() {
            // What lies elsewhere is fetched from further ahead than pictures are decoded.
            Some(remote) => {
                let remote = Arc::clone(remote);
                let requests = ahead::Ahead::start(dataset, remote, requests).map_err(LoaderError::Spawn)?;
                spawn("mcl-loader-plan".to_owned(), move || feed(&shared, requests))?;
            }
            None => {
                spawn("mcl-loader-plan".to_owned(), move || feed(&shared, requests))?;
            }
        }
        Ok(loader)
    }

    /// The next batch in the order of the requests; `None` after the last.
    ///
    /// # Errors
    /// See [`LoaderError`]; every batch before the failing one is given first.
    #[expect(clippy::should_implement_trait, reason = "it fails, and callers use `?`")]
    pub fn next(&mut self) -> Result<Option<LaneBatch>, LoaderError> {
        if self.failed {
            return Err(LoaderError::Stopped);
        }
        let start = Instant::now();
        let mut state = self.shared.lock();
        while state.queue.front().is_none_or(|front| !front.is_ready()) {
            if state.stopping {
                self.failed = true;
                return Err(LoaderError::Stopped);
            }
            if state.queue.is_empty() && state.ended {
                return match state.feeder.take() {
                    Some(error) => {
                        self.failed = true;
                        Err(error)
                    }
                    None => Ok(None),
                };
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.stats.waited += start.elapsed();
        let Some(front) = state.queue.pop_front() else { return Ok(None) };
        state.first += 1;
        drop(state);
        if let Some((_, error)) = front.failure {
            self.failed = true;
            self.shared.stop();
            return Err(error);
        }
        self.shared.room.notify_all();
        let filled = std::mem::take(&mut *front.batch.filled.lock().unwrap_or_else(PoisonError::into_inner));
        let BatchRequest { epoch, step, lane, .. } = front.batch.request;
        let fed = filled.fed.into_iter().flatten().collect();
        Ok(Some(LaneBatch { epoch, step, lane, fed, views: filled.views }))
    }

    /// Takes a batch's memory back for the ones to come: fresh memory for every batch costs about a twentieth of the work.
    pub fn recycle(&self, views: Vec<Vec<u8>>) {
        let mut state = self.shared.lock();
        if state.spare.len() < self.shared.spec.queue.max(1) {
            state.spare.push(views);
        }
    }

    /// Stops this loader while another thread waits in [`Loader::next`].
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.shared))
    }

    /// What happened so far.
    pub fn stats(&self) -> LoaderStats {
        let state = self.shared.lock();
        LoaderStats { undecodable: state.undecodable.len() as u64, ..state.stats }
    }
}

/// Ends a loader's work from another thread.
#[derive(Clone)]
pub struct Stopper(Arc<Shared>);

impl std::fmt::Debug for Stopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stopper")
    }
}

impl Stopper {
    /// Threads end after the picture in hand; [`Loader::next`] gives an error from now on.
    pub fn stop(&self) {
        self.0.stop();
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // A worker catches its panics; there is nothing to learn from the result.
            let _ = thread.join();
        }
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, LoaderError> {
    std::thread::Builder::new().name(name).spawn(run).map_err(LoaderError::Spawn)
}

/// Draws requests while there is room in the queue.
fn feed(shared: &Shared, mut requests: impl Iterator<Item = BatchRequest>) {
    loop {
        let drawn = catch_unwind(AssertUnwindSafe(|| requests.next()));
        let mut state = shared.lock();
        while !state.stopping && state.queue.len() >= shared.spec.queue.max(1) {
            state = shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match drawn {
            Ok(Some(request)) if !state.stopping => {
                let spare = state.spare.pop().unwrap_or_default();
                drop(state);
                let batch = Arc::new(Batch { filled: Mutex::new(shared.empty(&request, spare)), request });
                state = shared.lock();
                state.queue.push_back(Pending { batch, claimed: 0, finished: 0, failure: None });
                shared.work.notify_all();
                // A batch of no pictures is ready at once.
                shared.ready.notify_all();
                continue;
            }
            Err(panic) => {
                let message = panic_message(&*panic);
                let what = "the next request".to_owned();
                state.feeder = Some(LoaderError::Panicked { part: "the plan", what, message });
            }
            Ok(_) => {}
        }
        state.ended = true;
        shared.work.notify_all();
        shared.ready.notify_all();
        return;
    }
}

impl Shared {
    /// Places for a request's pictures. What stood in memory that was used before is written over, slot by slot.
    fn empty(&self, request: &BatchRequest, mut views: Vec<Vec<u8>>) -> Filled {
        let n = request.samples.len();
        views.resize_with(self.augmenter.view_count(), Vec::new);
        for (number, view) in views.iter_mut().enumerate() {
            view.resize(n * self.augmenter.view_len(number), 0);
        }
        Filled { fed: vec![None; n], views }
    }
}
