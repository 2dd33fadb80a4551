//! From the name of a source to what it holds.
//!
//! What is there tells how it is read, unless it is said. Left out: the decision itself ([`super::sight`]), numbering.

use super::folder::{FolderEntry, FolderList, Root, Walked};
use super::list::{self, ListFormat, PictureList};
use super::sight::{Reading, Sight, one_split};
use super::tar_index::TarIndex;
use super::{
    DatasetError, EXTENSIONS, Home, Kind, LIST_EXTENSIONS, TarShard, Tars, braces, classes, escape,
    has_extension, mapping, unescape,
};
use crate::pack::PLAN;
use crate::remote::{self, Away, Cache, OpenShard, Place, Remote, RemoteSpec, walked_part};
use bytes::Bytes;
use mcl_types::{Digest, SourceKind, StoreLocation};
use std::cell::OnceCell;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a source is to be opened.
pub(crate) struct How<'a> {
    kind: Option<SourceKind>,
    /// Whether it is packed, and not trained on: then it need not be read in any order.
    packing: bool,
    spec: Option<&'a RemoteSpec>,
    /// Of the folder that keeps what walks of tars found; opened where there is a tar without a side index.
    cache: OnceCell<Cache>,
}

/// What a source holds.
pub(crate) enum Source {
    /// Pictures that can be read in any order.
    Samples(Kind),
    /// Parquet files.
    Rows(Vec<RowFile>),
}

/// A parquet file.
#[derive(Debug, Clone)]
pub(crate) struct RowFile {
    /// As it is told to people.
    pub(crate) name: String,
    pub(crate) bytes: RowBytes,
    /// When it was last written, in nanoseconds of Unix time; 0 in an object store.
    pub(crate) modified: i64,
}

/// Where a parquet file's bytes are.
#[derive(Debug, Clone)]
pub(crate) enum RowBytes {
    Here(Bytes),
    /// The object of this number.
    Away(Arc<Remote>, usize),
}

impl<'a> How<'a> {
    pub(crate) const fn new(kind: Option<SourceKind>, packing: bool, spec: Option<&'a RemoteSpec>) -> Self {
        Self { kind, packing, spec, cache: OnceCell::new() }
    }

    /// Opens a source.
    pub(crate) fn open(&self, source: &StoreLocation) -> Result<Source, DatasetError> {
        match (source, self.spec) {
            (StoreLocation::Folder(path), _) => self.here(path),
            (StoreLocation::Object(address), Some(spec)) => self.away(address, spec),
            (StoreLocation::Object(address), None) => self.away(address, &RemoteSpec::default()),
        }
    }

    fn here(&self, source: &Path) -> Result<Source, DatasetError> {
        let about = match fs::metadata(source) {
            Ok(about) => about,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let names = source.to_str().map(braces::below).transpose()?.flatten();
                let Some((folder, names)) = names else { return Err(io_error(source, e)) };
                return self.named(source, Path::new(folder), &names);
            }
            Err(e) => return Err(io_error(source, e)),
        };
        if about.is_dir() { self.folder(source) } else { self.file(source) }
    }

    /// Files of this machine whose names were in braces.
    fn named(&self, source: &Path, folder: &Path, names: &[String]) -> Result<Source, DatasetError> {
        let place = || source.display().to_string();
        let wrong = |wrong| DatasetError::Named { place: place(), count: names.len(), wrong };
        let files = || names.iter().map(|name| (folder.join(name), name.clone()));
        let missing: Vec<String> =
            files().filter(|(path, _)| !path.is_file()).map(|(_, name)| name).collect();
        if let Some(first) = missing.first() {
            return Err(wrong(format!("{} of them are not there, such as {first}", missing.len())));
        }
        let all = |extension: &str| files().all(|(path, _)| has_extension(&path, &[extension]));
        if all("tar") {
            return self.shards(files().map(|(path, name)| (path, name.into_bytes())), folder);
        }
        if all("parquet") {
            return rows(files());
        }
        Err(wrong("expected all of them to end in .tar, or all in .parquet".to_owned()))
    }

    fn file(&self, source: &Path) -> Result<Source, DatasetError> {
        let is = |extensions: &[&str]| has_extension(source, extensions);
        let name = source.file_name().unwrap_or(source.as_os_str());
        let folder = source.parent().unwrap_or(Path::new(""));
        let by_name = if is(&["tar"]) {
            Some(SourceKind::WebDataset)
        } else if is(&["parquet"]) {
            Some(SourceKind::Parquet)
        } else {
            is(&LIST_EXTENSIONS).then_some(SourceKind::List)
        };
        match self.kind.or(by_name) {
            Some(SourceKind::WebDataset | SourceKind::Tar) => {
                self.shards([(source.to_owned(), name.as_bytes().to_vec())].into_iter(), folder)
            }
            Some(SourceKind::Parquet) => {
                rows([(source.to_owned(), name.to_string_lossy().into_owned())].into_iter())
            }
            Some(SourceKind::List) => listed(source, folder),
            Some(SourceKind::Folder) | None if is(&["arrow"]) => {
                let example = name.to_string_lossy().into_owned();
                Err(DatasetError::Arrow { path: folder.to_owned(), example })
            }
            Some(SourceKind::Folder) | None => {
                Err(DatasetError::NotASource { path: source.to_owned(), hint: hint_for(source) })
            }
        }
    }

    fn folder(&self, source: &Path) -> Result<Source, DatasetError> {
        if source.join(PLAN).is_file() {
            return Err(DatasetError::Unfinished { path: source.to_owned() });
        }
        let tars = tars_in(source).map_err(|e| io_error(source, e))?;
        let Walked { pictures, mut parquets, arrows } = Walked::of(source)?;
        let shown = |path: &Path| {
            let below = path.strip_prefix(source).unwrap_or(path);
            escape(below.as_os_str().as_bytes()).into_owned()
        };
        // Those directly in the folder; deeper ones where there is nothing else.
        let direct = |path: &PathBuf| path.parent() == Some(source);
        if parquets.iter().any(direct) {
            parquets.retain(direct);
        } else if !(tars.is_empty() && pictures.entries.is_empty()) {
            parquets.clear();
        }
        let first = |paths: &[PathBuf]| paths.first().map(|path| shown(path));
        let sight = Sight {
            pictures: pictures.entries.first().map(|e| escape(e.path.as_bytes()).into_owned()),
            tars: first(&tars),
            parquets: first(&parquets),
            arrows: first(&arrows),
        };
        match sight.decide(self.kind, self.packing, &source.display().to_string())? {
            Reading::Pictures => Ok(Source::Samples(Kind::Folder(pictures))),
            Reading::Shards => {
                let name = |tar: &PathBuf| tar.file_name().unwrap_or(tar.as_os_str()).as_bytes().to_vec();
                let named: Vec<_> = tars.iter().map(|tar| (tar.clone(), name(tar))).collect();
                self.shards(named.into_iter(), source)
            }
            Reading::Rows => {
                let named: Vec<_> = parquets.iter().map(|path| (path.clone(), shown(path))).collect();
                one_split(
                    named.iter().map(|(_, name)| name.as_str()),
                    self.kind,
                    &source.display().to_string(),
                )?;
                rows(named.into_iter())
            }
        }
    }

    /// Tars of this machine, which are in `folder` or below it.
    fn shards(
        &self,
        tars: impl Iterator<Item = (PathBuf, Vec<u8>)>,
        folder: &Path,
    ) -> Result<Source, DatasetError> {
        let mut shards = Vec::new();
        for (path, name) in tars {
            let file = File::open(&path).map_err(|e| io_error(&path, e))?;
            let map = mapping::map(&file).map_err(|e| io_error(&path, e))?;
            let modified = file.metadata().as_ref().map_or(0, modified);
            let entries = self.index_of(&path, &file, &map)?.samples;
            let name = escape(&name).into_owned();
            shards.push(TarShard { name, first: 0, home: Home::Mapped(Arc::new(map)), modified, entries });
        }
        Ok(Source::Samples(Kind::Tar(labelled(shards, classes::beside(folder)))))
    }

    /// The side index; else what a walk found before; else what a walk finds.
    fn index_of(&self, tar: &Path, file: &File, map: &[u8]) -> Result<TarIndex, DatasetError> {
        if let Some(index) = TarIndex::beside(tar, map, self.kind)? {
            return Ok(index);
        }
        let scan = || TarIndex::scan_from(tar, io::Cursor::new(map), map.len() as u64, self.kind);
        let about = file.metadata().ok();
        let (Some(spec), Some(about)) = (self.spec, about) else { return scan() };
        let cache = self.cache.get_or_init(|| Cache::open(&spec.cache_dir, spec.cache_bytes));
        let place = Place { object: version_of(tar, &about), part: walked_part(self.kind) };
        let kept = cache.read(&place, None).and_then(|text| TarIndex::parse(tar, &text, map).ok());
        if let Some(index) = kept {
            return Ok(index);
        }
        let index = scan()?;
        if let Ok(text) = serde_json::to_vec(&index) {
            cache.keep(&place, &text);
        }
        Ok(index)
    }

    fn away(&self, address: &str, spec: &RemoteSpec) -> Result<Source, DatasetError> {
        Ok(match remote::look(address, spec, self.kind, self.packing)? {
            Away::Shards(remote, opened, names) => {
                let remote = Arc::new(remote);
                let shard = |(number, OpenShard { name, index })| {
                    let home = Home::Away(Arc::clone(&remote), number);
                    TarShard { name, first: 0, home, modified: 0, entries: index.samples }
                };
                let shards = opened.into_iter().enumerate().map(shard).collect();
                Source::Samples(Kind::Tar(labelled(shards, classes::of_text(&names))))
            }
            Away::Loose(remote, found) => {
                let entry = |(path, length): (String, u64)| {
                    let path = path.into();
                    FolderEntry { path, length, label: None, modified: 0 }
                };
                let entries = found.into_iter().map(entry).collect();
                Source::Samples(Kind::Folder(FolderList::labelled_by_folder(Root::of(remote), entries)))
            }
            Away::List(remote, text, inside) => {
                let path = Path::new(address);
                let format = ListFormat::of(path).unwrap_or(ListFormat::Lines);
                let list = parse(path, &text, format)?;
                Source::Samples(Kind::Folder(list_away(path, list, remote, &inside)?))
            }
            Away::Rows(remote, names) => {
                let remote = Arc::new(remote);
                let file = |(number, name)| {
                    let bytes = RowBytes::Away(Arc::clone(&remote), number);
                    RowFile { name, bytes, modified: 0 }
                };
                Source::Rows(names.into_iter().enumerate().map(file).collect())
            }
        })
    }
}

fn io_error(path: &Path, source: io::Error) -> DatasetError {
    DatasetError::Io { path: path.to_owned(), source }
}

/// The tars directly in `folder`, in byte order of their names.
pub(crate) fn tars_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut tars = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if has_extension(&path, &["tar"]) && path.is_file() {
            tars.push(path);
        }
    }
    tars.sort_unstable_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok(tars)
}

fn rows(files: impl Iterator<Item = (PathBuf, String)>) -> Result<Source, DatasetError> {
    let open = |(path, name): (PathBuf, String)| {
        let opened = || {
            let file = File::open(&path)?;
            let about = file.metadata()?;
            let bytes = match about.len() {
                0 => Bytes::new(),
                _ => Bytes::from_owner(mapping::map(&file)?),
            };
            Ok(RowFile { name, bytes: RowBytes::Here(bytes), modified: modified(&about) })
        };
        opened().map_err(|e| io_error(&path, e))
    };
    Ok(Source::Rows(files.map(open).collect::<Result<_, _>>()?))
}

/// When a file was last written, in nanoseconds of Unix time.
pub(super) fn modified(about: &Metadata) -> i64 {
    about.mtime().saturating_mul(1_000_000_000).saturating_add(about.mtime_nsec())
}

/// What a file of this machine is that nothing else knows; a changed one is another.
fn version_of(tar: &Path, about: &Metadata) -> String {
    let path = fs::canonicalize(tar).unwrap_or_else(|_| tar.to_owned());
    let mut hasher = blake3::Hasher::new_derive_key("mcl walked tar 1");
    hasher.update(path.as_os_str().as_bytes());
    for number in [about.len(), about.ino(), about.dev()] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(&modified(about).to_le_bytes());
    Digest::from_bytes(*hasher.finalize().as_bytes()).to_string()
}

/// Shards with their classes. Where no sample has one and folders divide them, folders are the classes, as of loose pictures.
fn labelled(mut shards: Vec<TarShard>, mut names: Vec<Vec<u8>>) -> Tars {
    let mut first = 0;
    for shard in &mut shards {
        shard.first = first;
        first += shard.entries.len() as u64;
    }
    let mut entries = shards.iter().flat_map(|shard| &shard.entries);
    if entries.all(|entry| entry.label.is_none()) {
        let paths = shards.iter().flat_map(|shard| &shard.entries).map(|entry| unescape(&entry.key));
        if let Some((labels, folders)) = classes::by_folder(paths) {
            let entries = shards.iter_mut().flat_map(|shard| &mut shard.entries);
            for (entry, label) in entries.zip(labels) {
                entry.label = Some(label);
            }
            names = folders;
        }
    }
    Tars { shards, classes: names }
}

/// Opens a list of this machine.
fn listed(path: &Path, folder: &Path) -> Result<Source, DatasetError> {
    let bytes = fs::metadata(path).map_err(|e| io_error(path, e))?.len();
    if bytes > list::LARGEST {
        return Err(DatasetError::ListTooLarge { path: path.to_owned(), bytes, most: list::LARGEST });
    }
    let text = fs::read(path).map_err(|e| io_error(path, e))?;
    let format = ListFormat::of(path).unwrap_or(ListFormat::Lines);
    let (pictures, missing) = FolderList::of_list(parse(path, &text, format)?, folder)?;
    missing.check(path, &pictures)?;
    Ok(Source::Samples(Kind::Folder(pictures)))
}

fn parse(path: &Path, text: &[u8], format: ListFormat) -> Result<PictureList, DatasetError> {
    PictureList::parse(text, format).map_err(|source| DatasetError::List { path: path.to_owned(), source })
}

/// The pictures of a list that lies in an object store, beside what is `inside` its folder.
fn list_away(
    path: &Path,
    list: PictureList,
    remote: Remote,
    inside: &[(String, u64)],
) -> Result<FolderList, DatasetError> {
    let by_path: std::collections::HashMap<&[u8], (usize, u64)> =
        inside.iter().enumerate().map(|(i, (path, size))| (path.as_bytes(), (i, *size))).collect();
    let mut missing = Missing::default();
    let (mut entries, mut objects) = (Vec::new(), Vec::new());
    for listed in list.pictures {
        let found = by_path.get(listed.path.as_slice()).copied();
        missing.count += usize::from(found.is_none());
        objects.push(found.map(|(object, _)| object));
        let (path, length) = (OsString::from_vec(listed.path), found.map_or(0, |(_, size)| size));
        entries.push(FolderEntry { path, length, label: listed.label, modified: 0 });
    }
    let list =
        FolderList { root: Root::Away(Arc::new(remote), Some(objects)), entries, classes: list.classes };
    missing.check(path, &list)?;
    Ok(list)
}

/// Pictures that a list names and that are not there.
#[derive(Debug, Default)]
pub(super) struct Missing {
    pub(super) count: usize,
}

impl Missing {
    /// Some are skipped when their turn comes; where none is there, the list is of another folder.
    fn check(&self, path: &Path, list: &FolderList) -> Result<(), DatasetError> {
        let count = list.entries.len();
        if self.count == 0 {
            return Ok(());
        }
        if self.count < count {
            let (missing, list) = (self.count, path.display());
            tracing::warn!(missing, of = count, %list, "pictures of the list are not there");
            return Ok(());
        }
        let example =
            list.entries.first().map(|e| escape(e.path.as_bytes()).into_owned()).unwrap_or_default();
        let after_space = example.rsplit_once(' ').is_some_and(|(_, last)| last.parse::<u32>().is_ok());
        let hint = if after_space { "; a label goes after a tab, or into a .csv" } else { "" };
        Err(DatasetError::ListOfNothing { path: path.to_owned(), count, example, hint })
    }
}

/// What can be done about a file that is no source.
fn hint_for(file: &Path) -> &'static str {
    if has_extension(file, &["gz", "tgz", "bz2", "xz", "zst", "lz4", "zip"]) {
        "; it is compressed, and pictures in it cannot be read one by one: unpack it first"
    } else if has_extension(file, &EXTENSIONS) {
        "; it is one picture: name its folder"
    } else {
        ""
    }
}
