//! The folder of this machine that keeps parts of remote objects, up to a bound.
//!
//! Invariants: a file appears under its name only when it is whole (written beside, then renamed), and is believed only as
//! far as its seal holds, so any number of processes may share the folder and any of them may die at any point. What all of
//! them keep stays within the bound: room is promised under the lock of one small file before anything is written, and
//! where there is none the least recently used goes. A reader gets a copy of the bytes: nothing that is removed is pulled from
//! under it.
//!
//! Left out: who needs what, and where it comes from.

use super::sealed::{self, Seal};
use mcl_types::SourceKind;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The file whose lock guards the sum of all files, which it holds.
const LEDGER: &str = "in-use";
/// Ends the names of files that are being written.
const PARTIAL: &str = "partial";
/// A half-written file that nobody wrote to for so long was left by a process that died.
const ABANDONED: Duration = Duration::from_secs(900);
/// Times of use are kept no finer than this, so that reading does not mean writing.
const USED_AGAIN: Duration = Duration::from_secs(1);

/// What is kept as one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// What it is of, object and version: names the folder.
    pub(crate) object: String,
    /// Which part: the file's name.
    pub(crate) part: String,
}

impl Place {
    fn seal(&self) -> Seal {
        let mut hasher = blake3::Hasher::new_derive_key("mcl picture cache 1");
        hasher.update(self.object.as_bytes());
        hasher.update(b"/");
        hasher.update(self.part.as_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// The part that holds what a walk of a tar found which was read as `kind`.
pub(crate) fn walked_part(kind: Option<SourceKind>) -> String {
    kind.map_or_else(|| "walked-2".to_owned(), |kind| format!("walked-2-{kind}"))
}

/// The folder.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    bound: u64,
    /// Makes names of half-written files unique within the process.
    serial: AtomicU64,
    /// That it cannot be written was said.
    complained: AtomicBool,
}

/// A file that is kept.
struct Kept {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Cache {
    /// Uses `folder`, which is made; at most `bound` bytes are kept there. Where it cannot be used it is said, and nothing is
    /// kept: that costs time, and a machine with a full disk is no reason to end a job.
    pub(crate) fn open(folder: &Path, bound: u64) -> Self {
        let mut cache = Self {
            folder: folder.to_owned(),
            bound,
            serial: AtomicU64::new(0),
            complained: AtomicBool::new(false),
        };
        // A bound that is smaller than last time holds from now on; besides this finds out whether it may be written.
        if let Err(error) = cache.make_room(0) {
            let folder = folder.display();
            tracing::warn!(%error, %folder, "the cache of pictures cannot be used: all are fetched again and again; choose another folder with `[data] cache_dir`");
            cache.bound = 0;
        }
        cache
    }

    fn path(&self, place: &Place) -> PathBuf {
        self.folder.join(&place.object).join(&place.part)
    }

    /// A part of what is kept at `place`, all of it where no `range` is given; `None` where it is not there or not sound.
    pub(crate) fn read(&self, place: &Place, range: Option<Range<u64>>) -> Option<Vec<u8>> {
        let path = self.path(place);
        let file = File::open(&path).ok()?;
        match sealed::read(&file, &place.seal(), range) {
            Ok(Some(bytes)) => {
                touch(&file);
                Some(bytes)
            }
            Ok(None) => {
                tracing::warn!(path = %path.display(), "a cached file is damaged: it is fetched again");
                let _ = fs::remove_file(&path);
                None
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a cached file cannot be read: it is fetched again");
                None
            }
        }
    }

    /// Whether something is kept at `place`; it counts as used.
    pub(super) fn holds(&self, place: &Place) -> bool {
        File::open(self.path(place)).is_ok_and(|file| {
            touch(&file);
            true
        })
    }

    /// Keeps `bytes`. Where that does not work (a full disk) it is said once, and whoever needs them fetches them again.
    pub(crate) fn keep(&self, place: &Place, bytes: &[u8]) {
        if let Err(error) = self.try_keep(place, bytes)
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            let folder = self.folder.display();
            tracing::warn!(%error, %folder, "the cache of pictures cannot be written: they are fetched again each time");
        }
    }

    fn try_keep(&self, place: &Place, bytes: &[u8]) -> io::Result<()> {
        if !self.make_room(sealed::sealed_len(bytes.len() as u64))? {
            return Ok(());
        }
        let path = self.path(place);
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let partial = path.with_extension(format!("{}-{serial}.{PARTIAL}", std::process::id()));
        let trailer = sealed::trailer(&place.seal(), bytes);
        let written = create(&partial).and_then(|mut file| {
            file.write_all(bytes)?;
            file.write_all(&trailer)?;
            fs::rename(&partial, &path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written
    }

    /// Promises `bytes` of room, for which others may have to go; false where the bound is too small for them.
    fn make_room(&self, bytes: u64) -> io::Result<bool> {
        if bytes > self.bound {
            return Ok(false);
        }
        // Somebody may have removed all of it.
        fs::create_dir_all(&self.folder)?;
        let mut ledger = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(self.folder.join(LEDGER))?;
        ledger.lock()?;
        let mut told = Vec::new();
        (&mut ledger).take(16).read_to_end(&mut told)?;
        let told = <[u8; 8]>::try_from(told).ok().map(u64::from_le_bytes);
        let mut used = match told {
            Some(used) if used.saturating_add(bytes) <= self.bound => used,
            // The sum drifts upwards (a process that died before it wrote, a file that replaced its like): counted anew.
            _ => self.shrink_for(bytes)?,
        };
        used = used.saturating_add(bytes);
        ledger.rewind()?;
        ledger.write_all(&used.to_le_bytes())?;
        ledger.set_len(8)?;
        Ok(true)
    }

    /// Removes the least recently used until `bytes` fit, and a tenth of the bound besides so that this is rare where it
    /// is needed at all; the sum of what stays.
    fn shrink_for(&self, bytes: u64) -> io::Result<u64> {
        let mut kept = self.list()?;
        let mut used: u64 = kept.iter().map(|k| k.bytes).sum();
        if used.saturating_add(bytes) <= self.bound {
            return Ok(used);
        }
        let target = (self.bound - self.bound / 10).saturating_sub(bytes);
        kept.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
        for old in kept {
            if used <= target {
                break;
            }
            match fs::remove_file(&old.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => used -= old.bytes,
            }
            // Only goes where it is empty.
            let _ = old.path.parent().map(fs::remove_dir);
        }
        Ok(used)
    }

    /// What is kept, half-written files included; abandoned ones are removed.
    fn list(&self) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for folder in fs::read_dir(&self.folder)? {
            let folder = folder?;
            if !folder.file_type()?.is_dir() {
                continue;
            }
            // Folders and files may go while they are listed: another process reads a damaged file.
            for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let Ok(about) = file.metadata() else { continue };
                let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let path = file.path();
                let is_old = used.elapsed().is_ok_and(|age| age > ABANDONED);
                if path.extension().is_some_and(|e| e == PARTIAL) && is_old {
                    let _ = fs::remove_file(&path);
                    continue;
                }
                kept.push(Kept { path, bytes: about.len(), used });
            }
        }
        Ok(kept)
    }
}

/// Creates a file and the folder for it, which another process may just be removing because it was empty.
fn create(path: &Path) -> io::Result<File> {
    const TRIES: usize = 8;
    let mut last = None;
    for _ in 0..TRIES {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        match File::create(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => last = Some(e),
            other => return other,
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// Notes that a file was used. Not being allowed to (another user's) costs its place in the order, no more.
fn touch(file: &File) {
    let now = SystemTime::now();
    let used = file.metadata().and_then(|about| about.modified());
    if used.is_ok_and(|used| now.duration_since(used).is_ok_and(|age| age > USED_AGAIN)) {
        let _ = file.set_modified(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(object: &str, part: u32) -> Place {
        Place { object: object.to_owned(), part: part.to_string() }
    }

    fn used(folder: &Path) -> u64 {
        let files = walkdir::WalkDir::new(folder).min_depth(2).into_iter().flatten();
        files.filter(|f| f.file_type().is_file()).map(|f| f.metadata().unwrap().len()).sum()
    }

    fn age(cache: &Cache, place: &Place, seconds: u64) {
        let file = File::open(cache.path(place)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn the_least_recently_used_goes_and_the_bound_holds() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 10_000);
        for part in 0..9 {
            cache.keep(&place("a", part), &[1; 1000]);
            age(&cache, &place("a", part), 100 - u64::from(part));
        }
        assert!(cache.read(&place("a", 0), Some(0..10)).is_some(), "used just now");
        cache.keep(&place("b", 0), &[2; 1000]);
        let stay: Vec<u32> = (0..9).filter(|part| cache.holds(&place("a", *part))).collect();
        assert_eq!(stay, [0, 3, 4, 5, 6, 7, 8]);
        assert!(cache.holds(&place("b", 0)));
        for part in 0..100 {
            cache.keep(&place("c", part), &[3; 1000]);
            assert!(used(folder.path()) <= 10_000);
        }
        cache.keep(&place("d", 0), &[4; 20_000]);
        assert!(!cache.holds(&place("d", 0)), "larger than the bound");
        // A smaller bound holds as soon as it is set.
        Cache::open(folder.path(), 3000);
        assert!(used(folder.path()) <= 3000);
    }

    #[test]
    fn damaged_foreign_and_half_written_files_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 1 << 20);
        let (one, other) = (place("a", 1), place("b", 1));
        cache.keep(&one, &[1; 1000]);
        fs::create_dir(folder.path().join("b")).unwrap();
        fs::copy(cache.path(&one), cache.path(&other)).unwrap();
        assert!(cache.read(&other, None).is_none(), "the bytes of another object");
        assert!(!cache.holds(&other), "and it is gone");
        assert_eq!(cache.read(&one, None).unwrap(), [1; 1000]);
        let mut bytes = fs::read(cache.path(&one)).unwrap();
        bytes[500] ^= 1;
        fs::write(cache.path(&one), bytes).unwrap();
        assert!(cache.read(&one, Some(0..1000)).is_none());
        // What a process that died left behind goes where room is needed, and not before it is old.
        let (old, young) = (folder.path().join("a/1.7-0.partial"), folder.path().join("a/2.7-1.partial"));
        fs::write(&old, [0; 100]).unwrap();
        fs::write(&young, [0; 100]).unwrap();
        File::open(&old).unwrap().set_modified(SystemTime::now() - 2 * ABANDONED).unwrap();
        fs::remove_file(folder.path().join(LEDGER)).unwrap();
        Cache::open(folder.path(), 1 << 20);
        assert!(!old.exists() && young.exists());
    }

    #[test]
    fn many_threads_with_a_cache_each_share_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let folder = folder.path();
                scope.spawn(move || {
                    let cache = Cache::open(folder, 20_000);
                    for part in 0..60_u32 {
                        let place = place(&format!("o{}", part % 3), part);
                        let bytes = vec![part as u8; 1000];
                        match cache.read(&place, None) {
                            Some(found) => assert_eq!(found, bytes, "thread {thread}"),
                            None => cache.keep(&place, &bytes),
                        }
                    }
                });
            }
        });
        // What was promised while another counted may be over by what the others were writing.
        assert!(used(folder.path()) <= 20_000 + 4 * 1100, "{}", used(folder.path()));
        let cache = Cache::open(folder.path(), 20_000);
        cache.keep(&place("last", 0), &[1; 1000]);
        assert!(used(folder.path()) <= 20_000);
    }
}
