//! A file of JSON lines that grows, is cut, or is replaced while it is read.
//!
//! A line without an end is being written, or torn: it is read once it has one. A line that does not parse is passed
//! over and counted.

use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes of a line beyond which it is nothing that we wrote.
const LONGEST: u64 = 1 << 20;

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct LinesError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What a look brought.
#[derive(Debug, Clone, PartialEq)]
pub struct News<T> {
    /// The file is another one, or was cut: what was read of it before does not count.
    pub again: bool,
    /// What came.
    pub lines: Vec<T>,
    /// Lines that do not parse.
    pub unreadable: u64,
    /// There is more to read now.
    pub more: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Lines<T> {
    path: PathBuf,
    offset: u64,
    inode: u64,
    of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// Of a file that need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), offset: 0, inode: 0, of: PhantomData }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what is new, at most so many lines.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn look(&mut self, most: usize) -> Result<News<T>, LinesError> {
        self.read(most).map_err(|source| LinesError { path: self.path.clone(), source })
    }

    fn read(&mut self, most: usize) -> io::Result<News<T>> {
        let mut news = News { again: false, lines: Vec::new(), unreadable: 0, more: false };
        let mut file = match File::open(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                news.again = self.offset > 0;
                (self.offset, self.inode) = (0, 0);
                return Ok(news);
            }
            opened => opened?,
        };
        let meta = file.metadata()?;
        if meta.ino() != self.inode || meta.len() < self.offset {
            news.again = self.inode != 0;
            (self.offset, self.inode) = (0, meta.ino());
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut line = Vec::new();
        loop {
            if news.lines.len() == most {
                news.more = true;
                return Ok(news);
            }
            line.clear();
            let read = reader.by_ref().take(LONGEST).read_until(b'\n', &mut line)? as u64;
            let ended = line.last() == Some(&b'\n');
            if !ended && read < LONGEST {
                return Ok(news);
            }
            self.offset += read;
            match serde_json::from_slice(&line) {
                Ok(parsed) if ended => news.lines.push(parsed),
                _ => news.unreadable += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn append(path: &Path, text: &str) {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_are_read_once_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let mut lines = Lines::<u64>::new(&path);
        assert_eq!(lines.look(10).unwrap().lines, Vec::<u64>::new());
        append(&path, "1\n2\n3");
        assert_eq!(lines.look(10).unwrap().lines, [1, 2]);
        assert_eq!(lines.look(10).unwrap().lines, Vec::<u64>::new());
        append(&path, "4\nnonsense\n5\n");
        let news = lines.look(10).unwrap();
        assert_eq!((news.lines, news.unreadable, news.again), (vec![34, 5], 1, false));
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        append(&path, &format!("1\n{}\n2\n", "9".repeat(2 * usize::try_from(LONGEST).unwrap())));
        let news = Lines::<u64>::new(&path).look(10).unwrap();
        assert_eq!((news.lines, news.unreadable), (vec![1, 2], 3));
    }

    #[test]
    fn a_long_file_comes_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        append(&path, "1\n2\n3\n");
        let mut lines = Lines::<u64>::new(&path);
        let first = lines.look(2).unwrap();
        assert_eq!((first.lines, first.more), (vec![1, 2], true));
        let rest = lines.look(2).unwrap();
        assert_eq!((rest.lines, rest.more), (vec![3], false));
    }

    #[test]
    fn a_file_that_is_cut_replaced_or_removed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        append(&path, "1\n2\n3\n");
        let mut lines = Lines::<u64>::new(&path);
        assert!(!lines.look(10).unwrap().again);
        File::options().write(true).open(&path).unwrap().set_len(2).unwrap();
        let news = lines.look(10).unwrap();
        assert_eq!((news.again, news.lines), (true, vec![1]));
        let other = dir.path().join("new");
        append(&other, "7\n8\n9\n");
        std::fs::rename(&other, &path).unwrap();
        let news = lines.look(10).unwrap();
        assert_eq!((news.again, news.lines), (true, vec![7, 8, 9]));
        std::fs::remove_file(&path).unwrap();
        assert!(lines.look(10).unwrap().again);
        append(&path, "1\n");
        assert_eq!(lines.look(10).unwrap().lines, [1]);
    }
}
