//! A small disk that can be filled: a file system in memory of its own. Where this process may not mount one there is
//! none, and disks are never full.
//!
//! Invariant: it is unmounted when it is dropped; what must outlive it is copied out before.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One disk.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
}

/// Name of what fills it.
const FILLER: &str = "filler";

impl Disk {
    /// One of so many bytes, mounted at a folder.
    pub(super) fn mount(folder: PathBuf, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(&folder).ok()?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "mcl-chaos"])
            .arg(&folder)
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|s| s.success()).then_some(Self { folder })
    }

    /// Where it is mounted.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Leaves not one byte.
    pub(super) fn fill(&self) {
        let Ok(mut file) = std::fs::File::create(self.folder.join(FILLER)) else { return };
        for size in [1 << 20, 1 << 12] {
            let zeros = vec![0_u8; size];
            while file.write_all(&zeros).is_ok() {}
        }
    }

    /// Gives the space back.
    pub(super) fn free(&self) {
        let _ = std::fs::remove_file(self.folder.join(FILLER));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}
