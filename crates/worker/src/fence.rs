//! The highest token this worker has seen, on the disk.
//!
//! Invariant: a higher token is durable before anything is done under it. The file is the token as JSON.

use crate::WorkerError;
use mcl_failpoint::{Failpoint, pass};
use mcl_types::FencingToken;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where the token is kept, if anywhere.
#[derive(Debug, Clone)]
pub(crate) struct Fence {
    path: Option<PathBuf>,
}

impl Fence {
    /// In a file of this worker's own in `folder`; workers on one machine may share the folder.
    pub fn new(folder: Option<&Path>, worker: &str) -> Self {
        Self { path: folder.map(|f| f.join(format!("worker-{}.fence.json", file_name(worker)))) }
    }

    /// The token of an earlier life; the lowest one where there was none.
    pub fn load(&self) -> Result<FencingToken, WorkerError> {
        let Some(path) = &self.path else { return Ok(FencingToken::default()) };
        read(path).map_err(|source| WorkerError::Fence { path: path.clone(), source })
    }

    /// Makes the token durable. A few bytes, but it waits for the disk: not for an async thread.
    pub fn save(&self, token: FencingToken) -> Result<(), WorkerError> {
        let Some(path) = &self.path else { return Ok(()) };
        pass(Failpoint::BeforeToken);
        write(path, token).map_err(|source| WorkerError::Fence { path: path.clone(), source })?;
        pass(Failpoint::AfterToken);
        Ok(())
    }
}

/// Any worker name as a file name: what is not plain becomes its hex code, so that two never meet.
fn file_name(worker: &str) -> String {
    let mut name = String::new();
    for byte in worker.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02x}"));
        }
    }
    name
}

fn read(path: &Path) -> io::Result<FencingToken> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(FencingToken::default()),
        Err(e) => Err(e),
    }
}

fn write(path: &Path, token: FencingToken) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(&token)?)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_types::{Generation, Term};

    #[test]
    fn the_token_outlives_the_worker_and_belongs_to_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let fence = Fence::new(Some(folder.path()), "w/1");
        assert_eq!(fence.load().unwrap(), FencingToken::default());
        let token = FencingToken { term: Term::new(2), generation: Generation::new(7) };
        fence.save(token).unwrap();
        assert_eq!(Fence::new(Some(folder.path()), "w/1").load().unwrap(), token);
        assert_eq!(Fence::new(Some(folder.path()), "w1").load().unwrap(), FencingToken::default());
    }

    #[test]
    fn a_file_that_does_not_parse_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("worker-w.fence.json"), "{").unwrap();
        let error = Fence::new(Some(folder.path()), "w").load().unwrap_err().to_string();
        assert!(error.contains("worker-w.fence.json"), "{error}");
    }
}
