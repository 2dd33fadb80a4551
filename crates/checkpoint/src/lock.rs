//! One service a folder: whoever has the lock.
//!
//! The system gives it back when the process ends, however it ends. Left out: object stores, where the fence is
//! compared and swapped.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Its file, beside the runs.
const FILE: &str = "service.lock";
/// A predecessor that is on its way out gets this long: it lets requests in flight end.
const PATIENCE: Duration = Duration::from_secs(12);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody serves it.
    #[error(
        "another checkpoint service has {} (its {FILE} is locked): stop that one, or use another folder",
        folder.display()
    )]
    Taken {
        /// The folder.
        folder: PathBuf,
    },
    /// The file cannot be made.
    #[error("cannot open {}: {source}; check that the folder may be written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Locks a folder for as long as the file is open; nothing where its file system knows no locks.
pub(crate) async fn lock(folder: &Path) -> Result<Option<File>, LockError> {
    let path = folder.join(FILE);
    let opened = File::options().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|source| LockError::File { path, source })?;
    let give_up = tokio::time::Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < give_up => {}
            Err(TryLockError::WouldBlock) => return Err(LockError::Taken { folder: folder.to_owned() }),
            Err(TryLockError::Error(error)) => {
                let folder = folder.display();
                tracing::warn!(%error, %folder, "cannot lock the folder: see that no other service has it");
                return Ok(None);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_folder_has_one_service_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).await.unwrap();
        assert!(first.is_some());
        let error = lock(folder.path()).await.unwrap_err().to_string();
        assert!(error.contains("another checkpoint service has"), "{error}");
        drop(first);
        assert!(lock(folder.path()).await.unwrap().is_some());
        let missing = lock(&folder.path().join("missing")).await.unwrap_err().to_string();
        assert!(missing.contains("service.lock"), "{missing}");
    }
}
