//! Shards into a folder of this machine.
//!
//! Invariants: a file has its final name only when it is whole and durable; what tells that a shard is done is written after
//! it; one process packs into a folder at a time.

use super::PackError;
use super::plan::{Made, Plan, Record, shard_name};
use super::shard::Written;
use super::{Begun, DONE, PLAN, PROGRESS};
use crate::dataset::{CLASSES_FILE, side_file, tars_in};
use mcl_types::Digest;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Bytes that are written at a time.
const BUFFER: usize = 1 << 20;

/// The target, locked.
#[derive(Debug)]
pub(super) struct FolderTarget {
    out: PathBuf,
    /// Held until the pack ends, however it does.
    _lock: File,
}

fn write_error(path: &Path, source: io::Error) -> PackError {
    PackError::Write { path: path.to_owned(), source }
}

fn partial_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Writes a file in one step.
fn put(path: &Path, bytes: &[u8]) -> Result<(), PackError> {
    let partial = partial_of(path);
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&partial);
        write_error(&partial, e)
    })
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, PackError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PackError::Progress { path: path.to_owned(), source }),
    }
}

/// What was to be removed may be gone already.
fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Takes the folder for this process. One that has just ended its pack there removes its lock.
fn lock(out: &Path) -> Result<File, PackError> {
    let progress = out.join(PROGRESS);
    let path = progress.join("lock");
    loop {
        fs::create_dir_all(&progress).map_err(|e| write_error(&progress, e))?;
        let held = match File::create(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            created => created.map_err(|e| write_error(&path, e))?,
        };
        match held.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(PackError::Busy { target: out.display().to_string() });
            }
            Err(TryLockError::Error(e)) => return Err(write_error(&path, e)),
        }
        let own = held.metadata().map_err(|e| write_error(&path, e))?;
        if fs::metadata(&path).is_ok_and(|there| there.ino() == own.ino()) {
            return Ok(held);
        }
    }
}

impl FolderTarget {
    /// Takes the folder, and reads what an earlier pack noted there.
    pub(super) fn open(out: &Path) -> Result<(Self, Begun), PackError> {
        fs::create_dir_all(out).map_err(|e| write_error(out, e))?;
        let (plan, done) = (out.join(PLAN), out.join(DONE));
        let is_packed = plan.is_file() || done.is_file();
        if !is_packed && !tars_in(out).map_err(|e| write_error(out, e))?.is_empty() {
            return Err(PackError::NotEmpty { target: out.display().to_string() });
        }
        let held = lock(out)?;
        let begun = Begun { plan: read(&plan)?, done: read(&done)? };
        Ok((Self { out: out.to_owned(), _lock: held }, begun))
    }

    /// From here on the folder is no data set, also after a loss of power.
    pub(super) fn begin(&self, plan: &Plan) -> Result<(), PackError> {
        put(&self.out.join(PLAN), &super::to_json(plan)?)?;
        let parent = self.out.parent().filter(|parent| !parent.as_os_str().is_empty());
        for folder in [Some(self.out.join(PROGRESS).as_path()), Some(&self.out), parent].into_iter().flatten()
        {
            File::open(folder).and_then(|f| f.sync_all()).map_err(|e| write_error(folder, e))?;
        }
        Ok(())
    }

    /// A shard without any picture has no files, though an earlier try may have made some.
    pub(super) fn remove(&self, shard: u64) -> Result<(), PackError> {
        let tar = self.out.join(shard_name(shard));
        for path in [side_file(&tar), tar] {
            absent(fs::remove_file(&path)).map_err(|e| write_error(&path, e))?;
        }
        Ok(())
    }

    fn record_file(&self, shard: u64) -> PathBuf {
        self.out.join(PROGRESS).join(format!("{shard:06}.json"))
    }

    /// What an earlier try noted of a shard.
    pub(super) fn record(&self, shard: u64) -> Result<Option<Record>, PackError> {
        let text = read(&self.record_file(shard))?;
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// Whether the files of a shard are there and what they were.
    pub(super) fn has(&self, shard: u64, made: &Made) -> bool {
        let tar = self.out.join(shard_name(shard));
        let is = |path: &Path, hash: Digest| hash_of(path).is_ok_and(|found| found == hash);
        is(&tar, made.tar) && is(&side_file(&tar), made.index)
    }

    pub(super) fn create(&self, shard: u64) -> Result<FolderSink, PackError> {
        let path = self.out.join(shard_name(shard));
        let partial = partial_of(&path);
        let file = File::create(&partial).map_err(|e| write_error(&partial, e))?;
        Ok(FolderSink { file: BufWriter::with_capacity(BUFFER, file), path, partial, whole: false })
    }

    /// Puts a shard in its place, index first: whoever sees the tar sees both.
    pub(super) fn finish_shard(&self, written: Written<FolderSink>) -> Result<Made, PackError> {
        let Written { mut sink, bytes, hash, index } = written;
        put(&side_file(&sink.path), &index)?;
        let placed = sink.file.flush().and_then(|()| sink.file.get_ref().sync_all());
        placed
            .and_then(|()| fs::rename(&sink.partial, &sink.path))
            .map_err(|e| write_error(&sink.partial, e))?;
        sink.whole = true;
        Ok(Made { bytes, tar: hash, index: Digest::of(&index), version: None })
    }

    pub(super) fn keep(&self, shard: u64, record: &Record) -> Result<(), PackError> {
        put(&self.record_file(shard), &super::to_json(record)?)
    }

    /// All shards are there: the folder is a data set from here on.
    pub(super) fn end(&self, finished: &[u8], shards: u64, classes: &[u8]) -> Result<(), PackError> {
        for shard in 0..shards {
            // Of a process that was killed; most are not there.
            let _ = fs::remove_file(partial_of(&self.out.join(shard_name(shard))));
        }
        if !classes.is_empty() {
            put(&self.out.join(CLASSES_FILE), classes)?;
        }
        put(&self.out.join(DONE), finished)?;
        let folder = File::open(&self.out).and_then(|folder| folder.sync_all());
        folder.map_err(|e| write_error(&self.out, e))?;
        let place = self.out.join(PLAN);
        fs::remove_file(&place).map_err(|e| write_error(&place, e))?;
        self.leave()
    }

    /// Removes what only a pack under way needs.
    pub(super) fn leave(&self) -> Result<(), PackError> {
        let progress = self.out.join(PROGRESS);
        absent(fs::remove_dir_all(&progress)).map_err(|e| write_error(&progress, e))
    }

    /// Where a shard is.
    pub(super) fn place_of(&self, shard: u64) -> String {
        self.out.join(shard_name(shard)).display().to_string()
    }
}

fn hash_of(path: &Path) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

/// The file of a shard that is being written; what is not finished is removed, which may be what a full disk needs.
#[derive(Debug)]
pub(super) struct FolderSink {
    file: BufWriter<File>,
    path: PathBuf,
    partial: PathBuf,
    whole: bool,
}

impl FolderSink {
    pub(super) fn partial(&self) -> &Path {
        &self.partial
    }
}

impl Write for FolderSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for FolderSink {
    fn drop(&mut self) {
        if !self.whole {
            let _ = fs::remove_file(&self.partial);
        }
    }
}
