//! A file of lines that only grows.
//!
//! Invariants: a line is in the file whole or not at all as far as the process can tell (a failed write is
//! taken back); a line that a crash tore is cut when the file is opened. What was acknowledged was synced,
//! so a torn line never was.

use crate::CoordinatorError;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An open file of lines.
#[derive(Debug)]
pub(super) struct AppendFile {
    path: PathBuf,
    file: File,
    len: u64,
    dirty: bool,
}

impl AppendFile {
    /// Opens or creates it. What a crash tore must be cut before, see [`cut_torn_tail`].
    pub(super) fn open(path: &Path) -> Result<Self, CoordinatorError> {
        let attempt = || -> io::Result<(File, u64)> {
            let fresh = !path.exists();
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            if fresh {
                sync_parent(path)?;
            }
            let len = file.seek(SeekFrom::End(0))?;
            Ok((file, len))
        };
        let (file, len) = attempt().map_err(CoordinatorError::file("open", path))?;
        Ok(Self { path: path.to_owned(), file, len, dirty: false })
    }

    /// Appends one line.
    pub(super) fn append(&mut self, mut line: Vec<u8>) -> Result<(), CoordinatorError> {
        line.push(b'\n');
        if let Err(source) = self.file.write_all(&line) {
            // Half a line is worse than none. Where this fails too, the next start cuts it.
            let _ = self.file.set_len(self.len);
            return Err(CoordinatorError::file("write", &self.path)(source));
        }
        self.len += line.len() as u64;
        self.dirty = true;
        Ok(())
    }

    /// Makes everything appended so far durable.
    pub(super) fn sync(&mut self) -> Result<(), CoordinatorError> {
        if self.dirty {
            self.file.sync_data().map_err(CoordinatorError::file("sync", &self.path))?;
            self.dirty = false;
        }
        Ok(())
    }
}

/// Reads the lines of a file that may not exist, each with its number from 1 and its first byte's offset.
/// `take` says whether a line parses. A line that does not, with nothing that parses behind it, is a torn
/// tail: its offset comes back.
pub(super) fn read_lines(
    path: &Path,
    mut take: impl FnMut(&[u8], u64, u64) -> Result<Line, CoordinatorError>,
) -> Result<Option<u64>, CoordinatorError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(CoordinatorError::file("open", path)(e)),
    };
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut number, mut offset) = (0, 0);
    let mut torn: Option<(u64, u64, String)> = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(CoordinatorError::file("read", path))?;
        if read == 0 {
            break;
        }
        number += 1;
        let whole = line.last() == Some(&b'\n');
        let verdict = match whole.then(|| take(&line, number, offset)) {
            None => Line::Unreadable("it does not end".to_owned()),
            // It parsed; that it does not follow is for the line before to answer.
            Some(Err(_)) if torn.is_some() => Line::Read,
            Some(verdict) => verdict?,
        };
        match (verdict, &torn) {
            (Line::Read, Some((at, _, reason))) => {
                let (path, line, reason) = (path.to_owned(), *at, reason.clone());
                return Err(CoordinatorError::Damaged { path, line, reason });
            }
            (Line::Unreadable(reason), None) => torn = Some((number, offset, reason)),
            _ => {}
        }
        offset += read as u64;
    }
    Ok(torn.map(|(_, at, _)| at))
}

/// What `take` made of a line.
pub(super) enum Line {
    /// It parsed.
    Read,
    /// It did not.
    Unreadable(String),
}

/// Cuts a file at `at`.
pub(super) fn cut(path: &Path, at: u64) -> Result<(), CoordinatorError> {
    let attempt = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(at)?;
        file.sync_all()
    };
    attempt().map_err(CoordinatorError::file("cut the torn end of", path))
}

/// Makes the names in a file's folder durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Writes a whole file so that its old content stands until the new one is durable.
pub(super) fn replace(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), CoordinatorError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    let attempt = || -> io::Result<()> {
        let mut file = File::create(&fresh)?;
        write(&mut file)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        sync_parent(path)
    };
    attempt().map_err(CoordinatorError::file("write", path))
}
