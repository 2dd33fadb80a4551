//! A file of events that only grows.

use crate::message::Event;
use crate::record;
use prost::Message;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Bytes that are gathered before they are written without being asked for.
const GATHER: usize = 1 << 20;

/// An open event file. After an error it is of no use: its end may be torn, and readers stop there.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
    waiting: Vec<u8>,
}

impl EventFile {
    /// Makes a new one in a folder, which is made too. Readers take files in the order of their names, which begin with
    /// a time in seconds: `after` is that of the newest file there, and this one's is later, whatever the clock says.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(folder: &Path, wall_time: f64, after: Option<u64>) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since 1970")]
        let now = wall_time.max(0.0) as u64;
        let seconds = after.map_or(now, |after| now.max(after.saturating_add(1)));
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.mcl.{}.0", std::process::id()));
        let file = OpenOptions::new().create_new(true).append(true).open(&path)?;
        let mut created = Self { path, file, waiting: Vec::new() };
        created.append(&Event::version(wall_time))?;
        Ok(created)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends an event; it reaches the file with the next [`EventFile::flush`], or before.
    ///
    /// # Errors
    /// When the file does not take it.
    pub fn append(&mut self, event: &Event) -> io::Result<()> {
        record::push(&event.encode_to_vec(), &mut self.waiting);
        if self.waiting.len() >= GATHER { self.flush() } else { Ok(()) }
    }

    /// Writes what was appended, so that readers see it. It may still be lost with the machine.
    ///
    /// # Errors
    /// When the file does not take it.
    pub fn flush(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.waiting);
        self.waiting.clear();
        written
    }
}
