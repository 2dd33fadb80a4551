//! Loose pictures: the sorted list of a folder, or what a list names.
//!
//! Of a folder listed are regular files, at any depth, whose name ends in a known extension, and links that lead
//! nowhere (they become a skip with a reason, not a silent gap). Links to folders are followed; one
//! that leads back to a folder above itself is not.

use super::list::{Listed, PictureList};
use super::open::{Missing, modified};
use super::{DatasetError, classes, is_unavailable};
use crate::remote::Remote;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walkdir::WalkDir;

/// Extensions that are listed, in any case; the content decides what a file is.
pub const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// One listed picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FolderEntry {
    /// Path below the root; a whole one where a list says so.
    pub(super) path: OsString,
    /// Bytes; 0 for what is not there.
    pub(super) length: u64,
    /// Its class.
    pub(super) label: Option<u32>,
    /// When it was last written, in nanoseconds of Unix time; 0 for what is not there or in an object store.
    pub(super) modified: i64,
}

/// Loose pictures: of a folder in byte order of their relative paths, of a list in its order.
#[derive(Debug)]
pub(crate) struct FolderList {
    pub(super) root: Root,
    pub(super) entries: Vec<FolderEntry>,
    /// Class names by label; empty where nothing tells them.
    pub(super) classes: Vec<Vec<u8>>,
}

/// Where loose pictures are.
#[derive(Debug)]
pub(crate) enum Root {
    /// Below this folder.
    Here(PathBuf),
    /// In an object store: the object of each entry's number, or the one that is said here, where there is one.
    Away(Arc<Remote>, Option<Vec<Option<usize>>>),
}

impl Root {
    /// Pictures in an object store, each of which is the object of its number.
    pub(super) fn of(remote: Remote) -> Self {
        Self::Away(Arc::new(remote), None)
    }
}

/// What a walk of a folder finds.
#[derive(Debug)]
pub(super) struct Walked {
    pub(super) pictures: FolderList,
    /// Other files that hold pictures, in byte order of their paths.
    pub(super) parquets: Vec<PathBuf>,
    pub(super) arrows: Vec<PathBuf>,
}

pub(crate) fn has_extension(path: &Path, wanted: &[&str]) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|e| wanted.iter().any(|w| e.eq_ignore_ascii_case(w)))
}

impl FolderList {
    /// Loose pictures under `root` with a class for each, where folders tell classes.
    pub(super) fn labelled_by_folder(root: Root, mut entries: Vec<FolderEntry>) -> Self {
        let labelled = classes::by_folder(entries.iter().map(|entry| entry.path.as_encoded_bytes()));
        let Some((labels, classes)) = labelled else { return Self { root, entries, classes: Vec::new() } };
        for (entry, label) in entries.iter_mut().zip(labels) {
            entry.label = Some(label);
        }
        Self { root, entries, classes }
    }

    /// The pictures that `list` names, of which `folder` is the folder; and those that are not there.
    pub(super) fn of_list(list: PictureList, folder: &Path) -> Result<(Self, Missing), DatasetError> {
        let mut missing = Missing::default();
        let look = |listed: Listed| {
            let path = OsStr::from_bytes(&listed.path).to_owned();
            let (length, modified) = match std::fs::metadata(folder.join(&path)) {
                Ok(about) if about.is_file() => (about.len(), modified(&about)),
                Err(source) if !is_unavailable(&source) => {
                    return Err(DatasetError::Io { path: folder.join(path), source });
                }
                Ok(_) | Err(_) => {
                    missing.count += 1;
                    (0, 0)
                }
            };
            Ok(FolderEntry { path, length, label: listed.label, modified })
        };
        let entries: Result<Vec<_>, _> = list.pictures.into_iter().map(look).collect();
        let root = Root::Here(folder.to_owned());
        Ok((Self { root, entries: entries?, classes: list.classes }, missing))
    }
}

impl Walked {
    /// Walks `root`.
    pub(super) fn of(root: &Path) -> Result<Self, DatasetError> {
        let mut entries = Vec::new();
        let (mut parquets, mut arrows) = (Vec::new(), Vec::new());
        for entry in WalkDir::new(root).follow_links(true) {
            match entry {
                Ok(entry) if entry.file_type().is_file() => {
                    if has_extension(entry.path(), &EXTENSIONS) {
                        let about = entry.metadata().map_err(|e| walk_error(root, &e))?;
                        push(&mut entries, root, entry.path(), (about.len(), modified(&about)));
                    } else if has_extension(entry.path(), &["parquet"]) {
                        parquets.push(entry.into_path());
                    } else if has_extension(entry.path(), &["arrow"]) {
                        arrows.push(entry.into_path());
                    }
                }
                Ok(_) => {}
                Err(e) if e.loop_ancestor().is_some() => {
                    tracing::debug!(link = ?e.path(), "not following a link into its own parents");
                }
                Err(e) => match e.path().filter(|p| p.is_symlink()) {
                    Some(link) if has_extension(link, &EXTENSIONS) => push(&mut entries, root, link, (0, 0)),
                    Some(link) => tracing::debug!(?link, "ignoring a link that leads nowhere"),
                    None => return Err(walk_error(root, &e)),
                },
            }
        }
        entries.sort_unstable_by(|a, b| a.path.as_encoded_bytes().cmp(b.path.as_encoded_bytes()));
        for paths in [&mut parquets, &mut arrows] {
            paths.sort_unstable_by(|a, b| {
                a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes())
            });
        }
        let pictures = FolderList::labelled_by_folder(Root::Here(root.to_owned()), entries);
        Ok(Self { pictures, parquets, arrows })
    }
}

fn push(entries: &mut Vec<FolderEntry>, root: &Path, path: &Path, (length, modified): (u64, i64)) {
    let relative = path.strip_prefix(root).unwrap_or(path);
    entries.push(FolderEntry { path: relative.as_os_str().to_owned(), length, label: None, modified });
}

fn walk_error(root: &Path, error: &walkdir::Error) -> DatasetError {
    let path = error.path().unwrap_or(root).to_owned();
    let source = error.io_error().map_or_else(
        || std::io::Error::other(error.to_string()),
        |e| std::io::Error::new(e.kind(), e.to_string()),
    );
    DatasetError::Io { path, source }
}
