//! Folders whose names outlive a crash of the machine.
//!
//! A file that was synced is lost where the entry of a folder above it was not. Left out: files, which the object
//! store syncs with the folder that they lie in.

use std::io;
use std::path::{Path, PathBuf};

/// Makes a folder and those above it that are missing; their names are on the disk when this returns.
///
/// # Errors
/// When one cannot be made or synced.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    let folder = std::path::absolute(folder)?;
    let changed = parents_of_missing(&folder);
    std::fs::create_dir_all(&folder)?;
    changed.iter().try_for_each(|parent| sync(parent))
}

/// Has what was made and removed in a folder reach the disk.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// The folders that get an entry when `folder` is made, innermost first.
fn parents_of_missing(folder: &Path) -> Vec<PathBuf> {
    let missing = folder.ancestors().take_while(|f| !f.exists());
    missing.filter_map(Path::parent).map(Path::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_that_gets_an_entry_is_synced() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        assert_eq!(parents_of_missing(&at("a/b/c")), [at("a/b"), at("a"), root.path().to_owned()]);
        create_folder(&at("a/b/c")).unwrap();
        assert!(at("a/b/c").is_dir());
        assert_eq!(parents_of_missing(&at("a/b/d")), [at("a/b")]);
        assert!(parents_of_missing(&at("a/b/c")).is_empty());
        create_folder(&at("a/b/c")).unwrap();
        std::fs::write(at("file"), "x").unwrap();
        assert!(create_folder(&at("file")).is_err() && create_folder(&at("file/a")).is_err());
    }
}
