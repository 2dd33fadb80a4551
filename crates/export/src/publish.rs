//! Files that belong together, put in place.
//!
//! Invariants: every file is written beside its place and flushed before the first one is renamed, so a full disk
//! changes nothing; the first file given, the weights, is renamed last, so weights never lie there without what
//! describes them; a configuration that somebody may have edited is replaced only where that is asked for.

use crate::{ExportedFile, Role};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that was not written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}; {left}", path.display())]
pub struct PublishError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
    /// What is there now.
    pub left: &'static str,
}

/// Writes files into a folder; the first of them appears last. Gives their paths in the order given. `force` replaces
/// a configuration of other content too.
///
/// # Errors
/// When one cannot be written, or a configuration would be lost. Then files of these names are as they were, or, where renaming itself failed, complete
/// old and complete new ones.
pub fn publish(folder: &Path, files: &[ExportedFile], force: bool) -> Result<Vec<PathBuf>, PublishError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let paths: Vec<PathBuf> = files.iter().map(|f| folder.join(&f.name)).collect();
    let error = |path: &Path, left| {
        let path = path.to_owned();
        move |source| PublishError { path, source, left }
    };
    let configs = files.iter().zip(&paths).filter(|(file, _)| file.role == Role::Config && !force);
    for (file, path) in configs {
        if std::fs::read(path).is_ok_and(|there| there != file.bytes) {
            let edited =
                "it is there with other content, perhaps edited; --force replaces it, another --out keeps it";
            let exists = io::Error::new(io::ErrorKind::AlreadyExists, edited);
            return Err(error(path, "nothing was changed")(exists));
        }
    }
    let mut staged = Vec::new();
    for (file, path) in files.iter().zip(&paths) {
        let written = stage(folder, &file.bytes).map_err(error(path, "nothing was changed"))?;
        staged.push((written, path));
    }
    const SOME: &str = "files of this export that were renamed before it are complete; export again";
    for (file, path) in staged.into_iter().rev() {
        file.persist(path).map_err(|e| e.error).map_err(error(path, SOME))?;
    }
    std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(error(folder, SOME))?;
    Ok(paths)
}

fn stage(folder: &Path, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    // Temporary files are private; an export is to be shared.
    #[cfg(unix)]
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.as_file().sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> [ExportedFile; 2] {
        [("w.pth", "weights", Role::Weights), ("w.pth.card.md", "card", Role::Card)].map(
            |(name, text, role)| ExportedFile {
                name: name.to_owned(),
                role,
                bytes: text.as_bytes().to_vec(),
            },
        )
    }

    #[test]
    fn all_are_there_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("w.pth"), "old").unwrap();
        let paths = publish(folder.path(), &files(), false).unwrap();
        assert_eq!(std::fs::read(&paths[0]).unwrap(), b"weights");
        assert_eq!(std::fs::read(&paths[1]).unwrap(), b"card");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn where_the_card_cannot_be_placed_the_old_weights_stay() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("w.pth"), "old").unwrap();
        std::fs::create_dir(folder.path().join("w.pth.card.md")).unwrap();
        let error = publish(folder.path(), &files(), false).unwrap_err();
        assert!(error.to_string().contains("w.pth.card.md"), "{error}");
        assert_eq!(std::fs::read(folder.path().join("w.pth")).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file stays");
        let nowhere = publish(&folder.path().join("no/such"), &files(), false).unwrap_err();
        assert!(nowhere.to_string().contains("nothing was changed"), "{nowhere}");
    }

    #[test]
    fn a_configuration_that_was_edited_stays_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        let config = |text: &str| ExportedFile {
            name: "w.yaml".to_owned(),
            role: Role::Config,
            bytes: text.as_bytes().to_vec(),
        };
        let all = |text| [files()[0].clone(), config(text)];
        publish(folder.path(), &all("ours"), false).unwrap();
        publish(folder.path(), &all("ours"), false).unwrap();
        let path = folder.path().join("w.yaml");
        std::fs::write(&path, "edited").unwrap();
        std::fs::write(folder.path().join("w.pth"), "old").unwrap();
        let error = publish(folder.path(), &all("ours"), false).unwrap_err().to_string();
        assert!(
            error.contains("w.yaml") && error.contains("--force") && error.contains("nothing"),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"edited");
        assert_eq!(std::fs::read(folder.path().join("w.pth")).unwrap(), b"old");
        publish(folder.path(), &all("ours"), true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"ours");
    }
}
