//! Event files, read back and verified.

use crate::message::Event;
use crate::record::{HEAD, TAIL, checksum};
use prost::Message;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// Why a file is read no further.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file does not give its bytes.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// It ends within a record: it is being written, or its writer was killed.
    #[error("{}: the record at byte {at} breaks off", path.display())]
    Torn {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        at: u64,
    },
    /// A record is not what was written.
    #[error("{}: the record at byte {at} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        at: u64,
        /// What does not fit.
        what: String,
    },
}

/// The events of a file, one by one; after an error there are no more.
#[derive(Debug)]
pub struct Records<R> {
    path: PathBuf,
    from: R,
    at: u64,
    end: u64,
    over: bool,
}

impl Records<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let opened = || -> io::Result<(File, u64)> {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, end) = opened().map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
        Ok(Self::of(path, BufReader::with_capacity(1 << 20, file), end))
    }
}

impl<R: Read> Records<R> {
    /// Of `end` bytes that come from somewhere; `path` is how errors name it.
    pub fn of(path: &Path, from: R, end: u64) -> Self {
        Self { path: path.to_owned(), from, at: 0, end, over: false }
    }

    fn event(&mut self) -> Result<Option<Event>, ReadError> {
        let left = self.end.saturating_sub(self.at);
        if left == 0 {
            return Ok(None);
        }
        let torn = || ReadError::Torn { path: self.path.clone(), at: self.at };
        let damaged = |what: String| ReadError::Damaged { path: self.path.clone(), at: self.at, what };
        let (head, tail) = (HEAD as u64, TAIL as u64);
        if left < head + tail {
            return Err(torn());
        }
        let mut first = [0; HEAD];
        read(&mut self.from, &mut first, &self.path)?;
        let [l0, l1, l2, l3, l4, l5, l6, l7, sum @ ..] = first;
        let length = [l0, l1, l2, l3, l4, l5, l6, l7];
        if checksum(&length) != u32::from_le_bytes(sum) {
            return Err(damaged("the checksum of its length differs".to_owned()));
        }
        let length = u64::from_le_bytes(length);
        let Some(size) = usize::try_from(length).ok().filter(|_| length <= left - head - tail) else {
            return Err(torn());
        };
        let mut bytes = vec![0; size];
        read(&mut self.from, &mut bytes, &self.path)?;
        let mut sum = [0; TAIL];
        read(&mut self.from, &mut sum, &self.path)?;
        if checksum(&bytes) != u32::from_le_bytes(sum) {
            return Err(damaged("the checksum of its bytes differs".to_owned()));
        }
        let event = Event::decode(bytes.as_slice()).map_err(|e| damaged(e.to_string()))?;
        self.at += head + length + tail;
        Ok(Some(event))
    }
}

impl<R: Read> Iterator for Records<R> {
    type Item = Result<Event, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let event = self.event().transpose();
        self.over = !matches!(event, Some(Ok(_)));
        event
    }
}

fn read(from: &mut impl Read, into: &mut [u8], path: &Path) -> Result<(), ReadError> {
    from.read_exact(into).map_err(|source| ReadError::Io { path: path.to_owned(), source })
}

/// The event files of a folder, oldest first, each with the seconds in its name; none where there is no folder.
///
/// # Errors
/// When the folder cannot be listed.
pub fn event_files(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let seconds = name.strip_prefix("events.out.tfevents.").and_then(|rest| rest.split('.').next());
        if let Some(seconds) = seconds.and_then(|s| s.parse().ok()) {
            files.push((seconds, path));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Image, ValueKind};
    use crate::write::EventFile;

    fn written() -> (tempfile::TempDir, PathBuf, Vec<Event>) {
        let dir = tempfile::tempdir().unwrap();
        let image = Image { height: 1, width: 2, colorspace: 3, encoded: vec![7; 300] };
        let events = vec![
            Event::start(1.5, 40),
            Event::scalars(2.5, 40, [("loss", 1.25), ("lr", 1e-3)]),
            Event::image(3.5, 41, "montages", image),
        ];
        let mut file = EventFile::create(dir.path(), 1_700_000_000.9, None).unwrap();
        events.iter().for_each(|e| file.append(e).unwrap());
        file.flush().unwrap();
        let path = file.path().to_owned();
        (dir, path, events)
    }

    #[test]
    fn what_is_written_is_read() {
        let (dir, path, events) = written();
        assert!(path.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents.1700000000."));
        let read: Vec<Event> = Records::open(&path).unwrap().map(Result::unwrap).collect();
        assert_eq!(read[0].what, Some(crate::What::FileVersion("brain.Event:2".to_owned())));
        assert_eq!(read[1..], events);
        assert_eq!((read[1].started_at(), read[2].started_at()), (Some(40), None));
        assert_eq!(read[2].values()[0].kind, Some(ValueKind::Scalar(1.25)));
        assert_eq!(event_files(dir.path()).unwrap(), [(1_700_000_000, path)]);
    }

    #[test]
    fn names_go_up_whatever_the_clock_says() {
        let (dir, first, _) = written();
        let earlier = EventFile::create(dir.path(), 1000.0, Some(1_700_000_000)).unwrap();
        let files = event_files(dir.path()).unwrap();
        assert_eq!(files, [(1_700_000_000, first), (1_700_000_001, earlier.path().to_owned())]);
        assert!(event_files(&dir.path().join("absent")).unwrap().is_empty());
    }

    #[test]
    fn every_cut_is_torn_and_every_changed_bit_is_found() {
        let (_dir, path, events) = written();
        let good = std::fs::read(&path).unwrap();
        for cut in 0..good.len() {
            let part = &good[..cut];
            let read: Vec<_> = Records::of(&path, part, cut as u64).collect();
            let whole = read.iter().filter(|r| r.is_ok()).count();
            assert!(whole <= events.len(), "cut at {cut}");
            let failed = read.last().is_some_and(Result::is_err);
            // Nothing is amiss only where the cut is between two records.
            assert!(failed || Records::of(&path, part, cut as u64).count() == whole);
            assert!(!failed || matches!(read.last(), Some(Err(ReadError::Torn { .. }))), "cut at {cut}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            let read: Vec<_> = Records::of(&path, bad.as_slice(), bad.len() as u64).collect();
            assert!(matches!(read.last(), Some(Err(ReadError::Damaged { .. }))), "byte {at}");
        }
    }
}
