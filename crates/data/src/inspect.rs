//! What a source holds: counts, formats, sizes, and every picture that will not decode.

use crate::dataset::{Dataset, DatasetError, ReadError};
use crate::decode::{Decoder, Format, Limits, Soundness};
use crate::picture::Picture;
use mcl_types::{Digest, SampleIndex};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Samples between two looks ahead; those fetched ahead are more.
const READ_ON_EVERY: u64 = 64;

/// Lower bounds of the histogram over the shorter side, in pixels.
const SIDES: [u32; 10] = [1, 32, 64, 96, 128, 224, 256, 384, 512, 1024];

/// One bar of the histogram: shorter sides from `from` up to the next bar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SideCount {
    /// Least shorter side.
    pub from: u32,
    /// Pictures.
    pub count: u64,
}

/// A picture with something wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Complaint {
    /// Its number.
    pub sample: u64,
    /// Its id.
    pub id: String,
    /// What is wrong.
    pub reason: String,
}

/// The summary of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Pictures listed.
    pub count: u64,
    /// Their encoded bytes.
    pub bytes: u64,
    /// Shards or slices.
    pub shards: u64,
    /// Distinct labels.
    pub classes: u64,
    /// Pictures that decode, by format.
    pub formats: BTreeMap<Format, u64>,
    /// Smallest (width, height) seen, each by itself.
    pub smallest: (u32, u32),
    /// Largest (width, height) seen, each by itself.
    pub largest: (u32, u32),
    /// Histogram of the shorter side; bars without pictures left out.
    pub shorter_side: Vec<SideCount>,
    /// Pictures that will be replaced in training.
    pub undecodable: Vec<Complaint>,
    /// Pictures that decode with a warning.
    pub damaged: Vec<Complaint>,
    /// Digest of ids and lengths.
    pub digest: Digest,
}

/// Decodes every picture on `threads` threads; `progress` hears (done, in all).
///
/// # Errors
/// When the storage does not give one.
pub fn inspect(
    dataset: &Dataset,
    limits: Limits,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Summary, DatasetError> {
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let whole = Mutex::new(Part::default());
    let failed: Mutex<Option<ReadError>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut part = Part::default();
                let (mut decoder, mut picture) = (Decoder::new(limits), Picture::default());
                loop {
                    let sample = next.fetch_add(1, Ordering::Relaxed);
                    if sample >= dataset.len() {
                        break;
                    }
                    let sample = SampleIndex::new(sample);
                    if sample.get().is_multiple_of(READ_ON_EVERY) {
                        dataset.read_on_from(sample);
                    }
                    if let Err(error) = part.add(dataset, sample, &mut decoder, &mut picture) {
                        next.store(dataset.len(), Ordering::Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        break;
                    }
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1, dataset.len());
                }
                if let Ok(mut whole) = whole.lock() {
                    whole.merge(part);
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error.into());
    }
    Ok(whole.into_inner().unwrap_or_else(PoisonError::into_inner).summary(dataset))
}

/// What one thread saw.
#[derive(Default)]
struct Part {
    bytes: u64,
    formats: BTreeMap<Format, u64>,
    sides: BTreeMap<u32, u64>,
    smallest: Option<(u32, u32)>,
    largest: (u32, u32),
    undecodable: Vec<Complaint>,
    damaged: Vec<Complaint>,
}

impl Part {
    /// Fails where the storage does: that says nothing of the picture.
    fn add(
        &mut self,
        dataset: &Dataset,
        sample: SampleIndex,
        decoder: &mut Decoder,
        picture: &mut Picture,
    ) -> Result<(), ReadError> {
        self.bytes += dataset.byte_len(sample).unwrap_or(0);
        let complaint = |reason: String| Complaint {
            sample: sample.get(),
            id: dataset.id(sample).unwrap_or_default().into_owned(),
            reason,
        };
        let bytes = match dataset.read(sample) {
            Ok(bytes) => bytes,
            Err(e) if e.is_undecodable() => {
                self.undecodable.push(complaint(e.to_string()));
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        match decoder.decode_into(&bytes, picture) {
            Ok(soundness) => {
                let (w, h) = (picture.width(), picture.height());
                if let Ok(format) = Format::of(&bytes) {
                    *self.formats.entry(format).or_default() += 1;
                }
                let side = SIDES.iter().rev().find(|from| w.min(h) >= **from).unwrap_or(&1);
                *self.sides.entry(*side).or_default() += 1;
                let small = self.smallest.unwrap_or((w, h));
                self.smallest = Some((small.0.min(w), small.1.min(h)));
                self.largest = (self.largest.0.max(w), self.largest.1.max(h));
                if let Soundness::Damaged(reason) = soundness {
                    self.damaged.push(complaint(reason));
                }
            }
            Err(e) => self.undecodable.push(complaint(e.to_string())),
        }
        Ok(())
    }

    fn merge(&mut self, other: Self) {
        self.bytes += other.bytes;
        for (format, n) in other.formats {
            *self.formats.entry(format).or_default() += n;
        }
        for (side, n) in other.sides {
            *self.sides.entry(side).or_default() += n;
        }
        self.smallest = match (self.smallest, other.smallest) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.min(b.1))),
            (a, b) => a.or(b),
        };
        self.largest = (self.largest.0.max(other.largest.0), self.largest.1.max(other.largest.1));
        self.undecodable.extend(other.undecodable);
        self.damaged.extend(other.damaged);
    }

    fn summary(mut self, dataset: &Dataset) -> Summary {
        self.undecodable.sort_unstable();
        self.damaged.sort_unstable();
        let labels: std::collections::BTreeSet<u32> =
            (0..dataset.len()).filter_map(|i| dataset.label(SampleIndex::new(i))).collect();
        Summary {
            count: dataset.len(),
            bytes: self.bytes,
            shards: dataset.shards().len() as u64,
            classes: labels.len() as u64,
            formats: self.formats,
            smallest: self.smallest.unwrap_or_default(),
            largest: self.largest,
            shorter_side: self.sides.into_iter().map(|(from, count)| SideCount { from, count }).collect(),
            undecodable: self.undecodable,
            damaged: self.damaged,
            digest: dataset.digest(),
        }
    }
}
