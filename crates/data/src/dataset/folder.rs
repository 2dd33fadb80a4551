//! A folder of pictures: its sorted list.
//!
//! Listed are regular files, at any depth, whose name ends in a known extension, and links that lead
//! nowhere (they become a skip with a reason, not a silent gap). Links to folders are followed; one
//! that leads back to a folder above itself is not.

use super::DatasetError;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// Extensions that are listed, in any case; the content decides what a file is.
pub const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// One listed picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FolderEntry {
    /// Path below the root.
    pub(super) path: OsString,
    /// Bytes; 0 for a link that leads nowhere.
    pub(super) length: u64,
    /// Class of its top folder.
    pub(super) label: Option<u32>,
}

/// The pictures of a folder in byte order of their relative paths.
#[derive(Debug)]
pub(super) struct FolderList {
    pub(super) root: PathBuf,
    pub(super) entries: Vec<FolderEntry>,
    /// Class names by label; empty where the layout tells no classes.
    pub(super) classes: Vec<OsString>,
}

pub(crate) fn has_extension(path: &Path, wanted: &[&str]) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|e| wanted.iter().any(|w| e.eq_ignore_ascii_case(w)))
}

impl FolderList {
    /// Walks `root`.
    pub(super) fn walk(root: &Path) -> Result<Self, DatasetError> {
        let mut entries = Vec::new();
        for entry in WalkDir::new(root).follow_links(true) {
            match entry {
                Ok(entry) if entry.file_type().is_file() => {
                    if has_extension(entry.path(), &EXTENSIONS) {
                        let length = entry.metadata().map_err(|e| walk_error(root, &e))?.len();
                        push(&mut entries, root, entry.path(), length);
                    }
                }
                Ok(_) => {}
                Err(e) if e.loop_ancestor().is_some() => {
                    tracing::debug!(link = ?e.path(), "not following a link into its own parents");
                }
                Err(e) => match e.path().filter(|p| p.is_symlink()) {
                    Some(link) if has_extension(link, &EXTENSIONS) => push(&mut entries, root, link, 0),
                    Some(link) => tracing::debug!(?link, "ignoring a link that leads nowhere"),
                    None => return Err(walk_error(root, &e)),
                },
            }
        }
        entries.sort_unstable_by(|a, b| a.path.as_encoded_bytes().cmp(b.path.as_encoded_bytes()));
        let classes = label_by_folder(&mut entries);
        Ok(Self { root: root.to_owned(), entries, classes })
    }
}

fn push(entries: &mut Vec<FolderEntry>, root: &Path, path: &Path, length: u64) {
    let relative = path.strip_prefix(root).unwrap_or(path);
    entries.push(FolderEntry { path: relative.as_os_str().to_owned(), length, label: None });
}

fn walk_error(root: &Path, error: &walkdir::Error) -> DatasetError {
    let path = error.path().unwrap_or(root).to_owned();
    let source = error.io_error().map_or_else(
        || std::io::Error::other(error.to_string()),
        |e| std::io::Error::new(e.kind(), e.to_string()),
    );
    DatasetError::Io { path, source }
}

/// Labels every picture with its top folder, if each lies in one and there are at least two.
fn label_by_folder(entries: &mut [FolderEntry]) -> Vec<OsString> {
    fn class_of(path: &OsStr) -> Option<&OsStr> {
        let mut parts = Path::new(path).components();
        let first = parts.next()?.as_os_str();
        parts.next().map(|_| first)
    }
    let mut classes: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for entry in &*entries {
        match class_of(&entry.path) {
            Some(class) => classes.entry(class.as_encoded_bytes().to_vec()).or_default(),
            None => return Vec::new(),
        };
    }
    if classes.len() < 2 {
        return Vec::new();
    }
    for (label, (_, slot)) in (0..).zip(classes.iter_mut()) {
        *slot = label;
    }
    let mut names = vec![OsString::new(); classes.len()];
    for entry in entries {
        if let Some(class) = class_of(&entry.path)
            && let Some(&label) = classes.get(class.as_encoded_bytes())
        {
            entry.label = Some(label);
            names[label as usize] = class.to_owned();
        }
    }
    names
}
