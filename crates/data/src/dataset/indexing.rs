//! Side indexes of whole sources: what `mcl data index` writes.

use super::open::tars_in;
use super::tar_index::index_as;
use super::{DatasetError, braces};
use crate::remote::{self, RemoteSpec};
use mcl_types::{SourceKind, StoreLocation};
use std::fs;
use std::path::{Path, PathBuf};

/// Writes the side index of every shard of `source`, read as `kind`; the shards in order, and their pictures. `progress` hears
/// (done, in all).
///
/// # Errors
/// When there are no shards, one cannot be read, or an index cannot be written.
pub fn index_source(
    source: &StoreLocation,
    kind: Option<SourceKind>,
    spec: &RemoteSpec,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<(String, u64)>, DatasetError> {
    if let Some(kind) = kind.filter(|kind| !matches!(kind, SourceKind::WebDataset | SourceKind::Tar)) {
        return Err(DatasetError::NoIndex { kind });
    }
    let path = match source {
        StoreLocation::Object(address) => return remote::write_indexes(address, spec, kind, progress),
        StoreLocation::Folder(path) => path,
    };
    let tars = tars_of(path)?;
    let mut written = Vec::new();
    for (done, tar) in (0..).zip(&tars) {
        progress(done, tars.len() as u64);
        written.push((tar.display().to_string(), index_as(tar, kind)?.samples.len() as u64));
    }
    progress(tars.len() as u64, tars.len() as u64);
    Ok(written)
}

/// The shards that a path of this machine stands for: itself, those in its folder, or those that its braces name.
fn tars_of(source: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let in_braces = if source.exists() { None } else { source.to_str().map(braces::below).transpose()? };
    if let Some((folder, names)) = in_braces.flatten() {
        return Ok(names.iter().map(|name| Path::new(folder).join(name)).collect());
    }
    if !fs::metadata(source).is_ok_and(|about| about.is_dir()) {
        return Ok(vec![source.to_owned()]);
    }
    let tars = tars_in(source).map_err(|e| DatasetError::Io { path: source.to_owned(), source: e })?;
    if tars.is_empty() {
        let (address, found) = (source.display().to_string(), "nothing that ends so".to_owned());
        return Err(DatasetError::NoShards { address, found });
    }
    Ok(tars)
}
