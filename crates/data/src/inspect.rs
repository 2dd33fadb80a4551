//! What a source holds: counts, formats, sizes, and every picture that will not decode.

use crate::dataset::DatasetError;
use crate::decode::{Decoder, Format, Limits, Soundness};
use crate::intake::{AT_ONCE, Intake, IntakeError, Item};
use crate::picture::Picture;
use mcl_types::Digest;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Lower bounds of the histogram over the shorter side, in pixels.
const SIDES: [u32; 10] = [1, 32, 64, 96, 128, 224, 256, 384, 512, 1024];

/// Complaints of each kind that are listed: a source may have any number of empty rows.
const LISTED: usize = 100_000;

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
    /// Pictures listed, or rows.
    pub count: u64,
    /// Their encoded bytes, of those that are there.
    pub bytes: u64,
    /// Shards, slices or parquet files.
    pub shards: u64,
    /// Distinct labels of those that are there.
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
    pub undecodable_count: u64,
    /// The first 100000 of them.
    pub undecodable: Vec<Complaint>,
    /// Pictures that decode with a warning.
    pub damaged_count: u64,
    /// The first 100000 of them.
    pub damaged: Vec<Complaint>,
    /// Digest of ids and lengths; of parquet files that of what they say of themselves.
    pub digest: Digest,
}

/// Decodes every picture on `threads` threads; `progress` hears (done, in all).
///
/// # Errors
/// When the storage does not give one, or a parquet file cannot be read on.
pub fn inspect(
    source: &Intake,
    limits: Limits,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Summary, DatasetError> {
    let all = source.len();
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let whole = Mutex::new(Part::default());
    let failed: Mutex<Option<IntakeError>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut part = Part::default();
                let (mut decoder, mut picture) = (Decoder::new(limits), Picture::default());
                loop {
                    let first = next.fetch_add(AT_ONCE, Ordering::Relaxed);
                    if first >= all {
                        break;
                    }
                    let mut sample = first;
                    let read = source.read(first..first.saturating_add(AT_ONCE).min(all), |id, item| {
                        part.add((sample, id), item, &mut decoder, &mut picture);
                        sample += 1;
                        progress(done.fetch_add(1, Ordering::Relaxed) + 1, all);
                        Ok(())
                    });
                    if let Err(error) = read {
                        next.store(all, Ordering::Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        break;
                    }
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
    Ok(whole.into_inner().unwrap_or_else(PoisonError::into_inner).summary(source))
}

/// What one thread saw.
#[derive(Default)]
struct Part {
    bytes: u64,
    labels: BTreeSet<u32>,
    formats: BTreeMap<Format, u64>,
    sides: BTreeMap<u32, u64>,
    smallest: Option<(u32, u32)>,
    largest: (u32, u32),
    undecodable: Complaints,
    damaged: Complaints,
}

/// Complaints of one kind, of which the first are listed.
#[derive(Default)]
struct Complaints {
    count: u64,
    listed: Vec<Complaint>,
}

impl Complaints {
    /// Adds one; a thread's samples come in their order.
    fn add(&mut self, sample: u64, id: &str, reason: String) {
        self.count += 1;
        if self.listed.len() < LISTED {
            self.listed.push(Complaint { sample, id: id.to_owned(), reason });
        }
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.listed.extend(other.listed);
        self.listed.sort_unstable();
        self.listed.truncate(LISTED);
    }
}

impl Part {
    /// A picture by its number and id.
    fn add(
        &mut self,
        (sample, id): (u64, &str),
        item: Item<'_>,
        decoder: &mut Decoder,
        picture: &mut Picture,
    ) {
        let bytes = match item {
            Item::Picture { bytes, label, .. } => {
                self.labels.extend(label);
                bytes
            }
            Item::Skipped(reason) => {
                self.undecodable.add(sample, id, reason);
                return;
            }
        };
        self.bytes += bytes.len() as u64;
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
                    self.damaged.add(sample, id, reason);
                }
            }
            Err(e) => self.undecodable.add(sample, id, e.to_string()),
        }
    }

    fn merge(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.labels.extend(other.labels);
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
        self.undecodable.merge(other.undecodable);
        self.damaged.merge(other.damaged);
    }

    fn summary(self, source: &Intake) -> Summary {
        Summary {
            count: source.len(),
            bytes: self.bytes,
            shards: source.shards(),
            classes: self.labels.len() as u64,
            formats: self.formats,
            smallest: self.smallest.unwrap_or_default(),
            largest: self.largest,
            shorter_side: self.sides.into_iter().map(|(from, count)| SideCount { from, count }).collect(),
            undecodable_count: self.undecodable.count,
            undecodable: self.undecodable.listed,
            damaged_count: self.damaged.count,
            damaged: self.damaged.listed,
            digest: source.digest(),
        }
    }
}
