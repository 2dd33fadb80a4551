//! The thread that decodes and augments one picture after the other.

use super::{Batch, FedSample, LoaderError, Pending, Replaced, Shared, State};
use crate::augment::{Scratch, Views};
use crate::decode::{Decoder, Soundness, panic_message};
use crate::picture::Picture;
use mcl_types::{Digest, SampleIndex, Slot};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};

/// A slot to work on.
struct Job {
    serial: u64,
    slot: usize,
    batch: Arc<Batch>,
}

/// Memory of one thread.
struct Bench {
    decoder: Decoder,
    picture: Picture,
    scratch: Scratch,
    views: Views,
}

/// A sample that is fed, or the reason why it cannot be.
enum Outcome {
    Fed { hash: [u8; 16], damaged: bool },
    Undecodable(String),
}

/// How a slot was filled.
struct Made {
    replaced: bool,
    damaged: bool,
}

/// Works until the loader stops or the requests end.
pub(super) fn run(shared: &Shared) {
    let mut bench = Bench {
        decoder: Decoder::new(shared.spec.limits),
        picture: Picture::default(),
        scratch: Scratch::default(),
        views: Views::default(),
    };
    while let Some(job) = claim(shared) {
        let work = AssertUnwindSafe(|| make(shared, &job, &mut bench));
        let result = catch_unwind(work).unwrap_or_else(|panic| {
            let sample = job.batch.request.samples.get(job.slot).copied().unwrap_or_default();
            let what = shared.dataset.id(sample).unwrap_or_default().into_owned();
            Err(LoaderError::Panicked { part: "a loader thread", what, message: panic_message(&*panic) })
        });
        finish(shared, &job, result);
    }
}

/// Takes the first slot that nobody has, waiting for one; `None` when there will be none.
fn claim(shared: &Shared) -> Option<Job> {
    let mut state = shared.lock();
    loop {
        if state.stopping {
            return None;
        }
        let first = state.first;
        // From a failed batch on nothing is needed any more.
        let failed = state.queue.iter().position(|p| p.failure.is_some()).unwrap_or(state.queue.len());
        let open = |p: &Pending| p.claimed < p.batch.request.samples.len();
        if let Some((at, pending)) = state.queue.iter_mut().enumerate().take(failed).find(|(_, p)| open(p)) {
            let slot = pending.claimed;
            pending.claimed += 1;
            return Some(Job { serial: first + at as u64, slot, batch: Arc::clone(&pending.batch) });
        }
        if state.ended {
            return None;
        }
        state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Books a slot's result.
fn finish(shared: &Shared, job: &Job, result: Result<Made, LoaderError>) {
    let mut state = shared.lock();
    let State { queue, first, stats, .. } = &mut *state;
    let at = job.serial.checked_sub(*first).and_then(|at| usize::try_from(at).ok());
    let Some(pending) = at.and_then(|at| queue.get_mut(at)) else { return };
    pending.finished += 1;
    match result {
        Ok(made) => {
            stats.pictures += 1;
            stats.replaced += u64::from(made.replaced);
            stats.damaged += u64::from(made.damaged);
        }
        Err(error) if pending.failure.as_ref().is_none_or(|(slot, _)| job.slot < *slot) => {
            pending.failure = Some((job.slot, error));
        }
        Err(_) => {}
    }
    if pending.is_ready() {
        shared.ready.notify_all();
    }
}

/// Fills a slot: the planned sample, or the first replacement that works.
fn make(shared: &Shared, job: &Job, bench: &mut Bench) -> Result<Made, LoaderError> {
    let request = &job.batch.request;
    let slot = Slot::new(u32::try_from(job.slot).unwrap_or(u32::MAX));
    let wanted = request.samples.get(job.slot).copied().unwrap_or_default();
    let mut index = wanted;
    let mut first: Option<(String, String)> = None;
    for attempt in 0..=shared.spec.max_substitutes {
        let id = shared.dataset.id(index).unwrap_or_default().into_owned();
        match prepare(shared, job, index, &id, bench)? {
            Outcome::Fed { hash, damaged } => {
                let replaced = first.map(|(_, reason)| Replaced { wanted, reason });
                let made = Made { replaced: replaced.is_some(), damaged };
                store(job, FedSample { index, id, hash, replaced }, bench);
                return Ok(made);
            }
            Outcome::Undecodable(reason) => {
                if shared.lock().undecodable.insert(index.get()) {
                    tracing::warn!(id, reason, "picture replaced");
                }
                first.get_or_insert((id, reason));
                index = (shared.substitute)(request.epoch, request.step, request.lane, slot, attempt);
            }
        }
    }
    let (id, reason) = first.unwrap_or_default();
    Err(LoaderError::TooManyBad {
        step: request.step,
        lane: request.lane,
        slot,
        tried: shared.spec.max_substitutes,
        first: format!("{id}: {reason}"),
    })
}

/// Reads, checks, decodes and augments one sample into the thread's views.
fn prepare(
    shared: &Shared,
    job: &Job,
    index: SampleIndex,
    id: &str,
    bench: &mut Bench,
) -> Result<Outcome, LoaderError> {
    let bytes = match shared.dataset.read(index) {
        Ok(bytes) => bytes,
        Err(e) if e.is_undecodable() => return Ok(Outcome::Undecodable(e.to_string())),
        Err(source) => return Err(LoaderError::Read { id: id.to_owned(), source }),
    };
    let found = Digest::of(&bytes);
    if let Some(recorded) = shared.dataset.recorded_hash(index).filter(|r| *r != found) {
        let (recorded, found) = (recorded.short(), found.short());
        return Err(LoaderError::Damaged { id: id.to_owned(), recorded, found });
    }
    let soundness = match bench.decoder.decode_into(&bytes, &mut bench.picture) {
        Ok(soundness) => soundness,
        Err(e) => return Ok(Outcome::Undecodable(e.to_string())),
    };
    let Bench { picture, scratch, views, .. } = bench;
    if let Err(e) = shared.augmenter.views(picture, job.batch.request.epoch, index, views, scratch) {
        return Ok(Outcome::Undecodable(e.to_string()));
    }
    let mut hash = [0; 16];
    hash.copy_from_slice(&found.as_bytes()[..16]);
    Ok(Outcome::Fed { hash, damaged: matches!(soundness, Soundness::Damaged(_)) })
}

/// Copies the thread's views into their places in the batch.
fn store(job: &Job, sample: FedSample, bench: &Bench) {
    let mut filled = job.batch.filled.lock().unwrap_or_else(PoisonError::into_inner);
    for (from, to) in bench.views.buffers.iter().zip(&mut filled.views) {
        let start = job.slot * from.len();
        if let Some(place) = to.get_mut(start..start + from.len()) {
            place.copy_from_slice(from);
        }
    }
    if let Some(place) = filled.fed.get_mut(job.slot) {
        *place = Some(sample);
    }
}
