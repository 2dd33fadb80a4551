//! Pictures of any source into tar shards with side indexes, here or in an object store.
//!
//! Role: the threads, each of which writes whole shards (`shard`), and what is known of them afterwards. Which pictures a
//! shard holds is fixed beforehand (`plan`), so the bytes are the same whatever the number of threads, and a pack that was
//! killed goes on: given again, it keeps the shards that are there and sound.
//!
//! Pictures may be shrunk on the way: decoding a large picture is most of what loading costs, and crops of a training
//! view need no more than about its size. A picture that does not decode is packed as it is; the loader will say so.
//!
//! Left out: reordering.

mod bucket;
mod folder;
mod plan;
mod shard;
mod shrink;
mod target;

pub use shrink::Shrink;

use crate::dataset::{DatasetError, classes};
use crate::decode::Format;
use crate::intake::{Intake, IntakeError, Item};
use crate::remote::{RemoteError, RemoteSpec, storage_fault};
use mcl_types::StoreLocation;
use plan::{Finished, Made, Plan, Record};
use shard::{Name, Shard};
use shrink::Shrinker;
use std::io::{self, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use target::{Begun, Place, Target};

/// The folder below the target that tells how far a pack is. It goes when all is packed.
pub(crate) const PROGRESS: &str = "pack-in-progress";
/// What is packed and how, below the target.
pub(crate) const PLAN: &str = "pack-in-progress/plan.json";
/// What was packed and how, beside the shards.
const DONE: &str = "pack.json";

/// How to pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackSpec {
    /// Pictures of the source for one shard; the last has the rest.
    pub samples_per_shard: u64,
    /// Store pictures smaller than they are.
    pub shrink: Option<Shrink>,
    /// Threads, each at a shard of its own.
    pub threads: usize,
}

impl Default for PackSpec {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self { samples_per_shard: 1024, shrink: None, threads }
    }
}

/// How far a pack is, in pictures of the source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackProgress {
    /// Packed, left out, or kept.
    pub done: u64,
    /// Those that an earlier try packed.
    pub kept: u64,
    /// In all.
    pub all: u64,
    /// Bytes that were packed now.
    pub bytes: u64,
}

/// What was packed.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct PackReport {
    /// Pictures packed.
    pub samples: u64,
    /// Their bytes, as packed.
    pub bytes: u64,
    /// Pictures that were shrunk.
    pub shrunk: u64,
    /// The shards.
    pub shards: Vec<String>,
    /// Shards that an earlier try had made.
    pub kept: u64,
    /// Pictures that were left out.
    pub skipped_count: u64,
    /// Their ids, with reasons; of very many only some.
    pub skipped: Vec<(String, String)>,
    /// Pictures that were packed as they are and do not decode. Where nothing is shrunk only the beginning of each is looked
    /// at.
    pub ill_formed_count: u64,
    /// Their ids, with reasons; of very many only some.
    pub ill_formed: Vec<(String, String)>,
}

/// Packing that stopped.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The source cannot be opened.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The source fails while it is read.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// The object store to pack into fails.
    #[error("{0}; what is packed stays: the same command goes on from there")]
    Remote(#[from] RemoteError),
    /// The target cannot be written.
    #[error("{}: {source}{}", path.display(), go_on(source))]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is noted of an earlier try cannot be read.
    #[error("{}: {source}; to begin anew, remove what is packed", path.display())]
    Progress {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The target holds shards already.
    #[error("{target} holds .tar files already: expected a new or empty place")]
    NotEmpty {
        /// The target.
        target: String,
    },
    /// The target holds another pack, or a part of one.
    #[error(
        "{target} holds a pack that is {}, and of {difference}: give the command that began it, or another target, or remove it",
        if *finished { "finished" } else { "not finished" }
    )]
    OtherPlan {
        /// The target.
        target: String,
        /// Whether it came to its end.
        finished: bool,
        /// How it is another one.
        difference: String,
    },
    /// Another process packs into the same folder.
    #[error("another process is packing into {target}")]
    Busy {
        /// The target.
        target: String,
    },
    /// A shard of nothing, or pictures of nothing.
    #[error("{what} is {found}: expected {expected}")]
    Spec {
        /// Which number.
        what: &'static str,
        /// What it is.
        found: u64,
        /// What it may be.
        expected: &'static str,
    },
}

/// What to do about a target that cannot be written.
fn go_on(error: &io::Error) -> &'static str {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
        "; make room and give the same command again: it goes on after the shards that are finished"
    } else {
        ""
    }
}

/// Packs a source of this machine that can be read in any order into a folder.
///
/// # Errors
/// As [`pack_intake`].
pub fn pack(source: &Path, out: &Path, spec: PackSpec) -> Result<PackReport, PackError> {
    spec.validate()?;
    let remote = RemoteSpec::default();
    let intake = Intake::open(&source.into(), None, None, &remote)?;
    pack_intake(&intake, &out.into(), spec, &remote, &|_| ())
}

/// Packs `intake` into `target`, or goes on with it where that was begun before.
///
/// # Errors
/// See [`PackError`]. A shard appears under its name only when it is complete; what is complete stays.
pub fn pack_intake(
    intake: &Intake,
    target: &StoreLocation,
    spec: PackSpec,
    remote: &RemoteSpec,
    heard: &(dyn Fn(PackProgress) + Sync),
) -> Result<PackReport, PackError> {
    spec.validate()?;
    let plan = Plan::new(intake.version(), intake.len(), &spec);
    let target = Target::begin(target, &plan, remote)?;
    let (shards, kept) = Work::new(intake, &plan, &target, heard).run(spec.threads)?;
    let finished = Finished { plan, shards };
    target.end(&finished, &classes::to_text(intake.classes()))?;
    let mut report = PackReport { kept, ..PackReport::default() };
    for (shard, record) in (0..).zip(finished.shards) {
        report.samples += record.samples;
        report.bytes += record.bytes;
        report.shrunk += record.shrunk;
        report.shards.extend(record.made.is_some().then(|| target.place_of(shard)));
        report.skipped_count += record.skipped.count;
        report.skipped.extend(record.skipped.listed);
        report.ill_formed_count += record.ill_formed.count;
        report.ill_formed.extend(record.ill_formed.listed);
    }
    Ok(report)
}

impl PackSpec {
    fn validate(&self) -> Result<(), PackError> {
        if self.samples_per_shard == 0 {
            return Err(PackError::Spec { what: "samples per shard", found: 0, expected: "at least 1" });
        }
        self.shrink.map_or(Ok(()), Shrink::validate)
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, PackError> {
    serde_json::to_vec(value).map_err(|e| PackError::Write { path: PLAN.into(), source: e.into() })
}

/// What all threads see.
struct Work<'a> {
    intake: &'a Intake,
    plan: &'a Plan,
    target: &'a Target<'a>,
    heard: &'a (dyn Fn(PackProgress) + Sync),
    next: AtomicU64,
    stopped: AtomicBool,
    done: AtomicU64,
    kept: AtomicU64,
    bytes: AtomicU64,
    /// Complaints that are listed.
    listed: AtomicU64,
}

/// Why a thread breaks off.
enum Halt {
    Failed(PackError),
    /// Another one failed.
    Stopped,
}

impl From<PackError> for Halt {
    fn from(error: PackError) -> Self {
        Self::Failed(error)
    }
}

impl From<IntakeError> for Halt {
    fn from(error: IntakeError) -> Self {
        Self::Failed(error.into())
    }
}

impl<'a> Work<'a> {
    fn new(
        intake: &'a Intake,
        plan: &'a Plan,
        target: &'a Target<'a>,
        heard: &'a (dyn Fn(PackProgress) + Sync),
    ) -> Self {
        let zero = || AtomicU64::new(0);
        let stopped = AtomicBool::new(false);
        let (next, done, kept, bytes, listed) = (zero(), zero(), zero(), zero(), zero());
        Self { intake, plan, target, heard, next, stopped, done, kept, bytes, listed }
    }

    /// All shards in order, and how many were kept; or the first error.
    fn run(&self, threads: usize) -> Result<(Vec<Record>, u64), PackError> {
        let shards = self.plan.shards();
        let threads = threads.clamp(1, usize::try_from(shards).unwrap_or(usize::MAX));
        let results: Mutex<Vec<(u64, Record, bool)>> = Mutex::default();
        let failure: Mutex<Option<PackError>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut shrinker = self.plan.shrink().map(Shrinker::new);
                    while !self.stopped.load(Ordering::Relaxed) {
                        let shard = self.next.fetch_add(1, Ordering::Relaxed);
                        if shard >= shards {
                            break;
                        }
                        match self.shard(shard, shrinker.as_mut()) {
                            Ok((mut record, kept)) => {
                                record.shorten(&self.listed);
                                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                                results.push((shard, record, kept));
                            }
                            Err(Halt::Stopped) => break,
                            Err(Halt::Failed(error)) => {
                                self.stopped.store(true, Ordering::Relaxed);
                                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                                break;
                            }
                        }
                    }
                });
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_unstable_by_key(|(shard, ..)| *shard);
        let kept = results.iter().filter(|(_, record, kept)| *kept && record.made.is_some()).count() as u64;
        Ok((results.into_iter().map(|(_, record, _)| record).collect(), kept))
    }

    fn shard(&self, shard: u64, shrinker: Option<&mut Shrinker>) -> Result<(Record, bool), Halt> {
        if let Some(record) = self.target.kept(shard)? {
            let range = self.plan.range(shard);
            let count = range.end - range.start;
            self.kept.fetch_add(count, Ordering::Relaxed);
            self.tell(count);
            return Ok((record, true));
        }
        self.target.reopen()?;
        let record = match self.target.place() {
            Place::Folder(folder) => {
                let sink = folder.create(shard)?;
                let partial = sink.partial().to_owned();
                let failed = |e| PackError::Write { path: partial.clone(), source: e };
                self.write(shard, shrinker, sink, &failed, |written| folder.finish_shard(written))?
            }
            Place::Bucket(bucket) => {
                let failed = |e: io::Error| match storage_fault(&e) {
                    Some(fault) => PackError::Remote(fault),
                    None => PackError::Write { path: bucket.place_of(shard).into(), source: e },
                };
                let sink = bucket.create(shard);
                self.write(shard, shrinker, sink, &failed, |written| bucket.finish_shard(shard, written))?
            }
        };
        if record.made.is_none()
            && let Place::Folder(folder) = self.target.place()
        {
            folder.remove(shard)?;
        }
        self.target.keep(shard, &record)?;
        Ok((record, false))
    }

    /// Writes a shard; one without any picture is not made.
    fn write<W: Write>(
        &self,
        shard: u64,
        mut shrinker: Option<&mut Shrinker>,
        sink: W,
        failed: &dyn Fn(io::Error) -> PackError,
        finish: impl FnOnce(shard::Written<W>) -> Result<Made, PackError>,
    ) -> Result<Record, Halt> {
        let mut record = Record::default();
        let mut writing = Shard::new(sink);
        self.intake.read(self.plan.range(shard), |id, item| {
            if self.stopped.load(Ordering::Relaxed) {
                return Err(Halt::Stopped);
            }
            let before = record.bytes;
            add(&mut writing, &mut record, id, item, shrinker.as_deref_mut())
                .map_err(|e| Halt::Failed(failed(e)))?;
            self.bytes.fetch_add(record.bytes - before, Ordering::Relaxed);
            self.tell(1);
            Ok(())
        })?;
        if record.samples > 0 {
            record.made = Some(finish(writing.finish().map_err(|e| Halt::Failed(failed(e)))?)?);
        }
        Ok(record)
    }

    fn tell(&self, more: u64) {
        let done = self.done.fetch_add(more, Ordering::Relaxed) + more;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let all = self.plan.samples();
        (self.heard)(PackProgress { done, all, kept: of(&self.kept), bytes: of(&self.bytes) });
    }
}

/// Puts a picture into a shard, or its id among those that are left out.
fn add<W: Write>(
    shard: &mut Shard<W>,
    record: &mut Record,
    id: &str,
    item: Item<'_>,
    shrinker: Option<&mut Shrinker>,
) -> io::Result<()> {
    let (path, bytes, label) = match item {
        Item::Picture { path, bytes, label } => (path, bytes, label),
        Item::Skipped(reason) => {
            record.skipped.add(id, reason);
            return Ok(());
        }
    };
    let name = match Name::of(&path, &bytes) {
        Ok(name) => name,
        Err(reason) => {
            record.skipped.add(id, reason.to_string());
            return Ok(());
        }
    };
    let small = match shrinker {
        Some(shrinker) => shrinker.shrink(&bytes),
        None => Format::of(&bytes).map(|_| None),
    };
    let small = small.unwrap_or_else(|reason| {
        record.ill_formed.add(id, reason.to_string());
        None
    });
    let packed: &[u8] = small.as_deref().unwrap_or(&bytes);
    shard.add(name, packed, small.is_some(), label)?;
    record.samples += 1;
    record.shrunk += u64::from(small.is_some());
    record.bytes += packed.len() as u64;
    Ok(())
}
