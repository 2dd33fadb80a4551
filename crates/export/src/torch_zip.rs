//! Reads what torch 1.6 and later save: a zip container with a pickle and a file a storage.
//!
//! Invariants: storages stay where they are in the file; nothing is decompressed, since torch compresses nothing and
//! what claims otherwise could claim any size. Left out: TorchScript archives, which hold code.

use crate::container::{Entries, entries};
use crate::error::ImportError;
use crate::unpickle::unpickle;
use std::collections::BTreeMap;
use std::io::Cursor;
use zip::{CompressionMethod, ZipArchive};

/// Every tensor of the file, by name.
pub(crate) fn read(file: &[u8]) -> Result<Entries<'_>, ImportError> {
    let files = stored(file)?;
    let pickles: Vec<&String> =
        files.keys().filter(|n| n.ends_with("/data.pkl") || *n == "data.pkl").collect();
    let [pickle] = pickles.as_slice() else {
        return Err(zip_error(format!("{} entries named data.pkl, expected one", pickles.len())));
    };
    let root = pickle.strip_suffix("data.pkl").unwrap_or_default();
    if files.contains_key(&format!("{root}constants.pkl")) {
        return Err(zip_error(
            "it is a TorchScript archive, which holds code; save its state_dict()".to_owned(),
        ));
    }
    if let Some(order) = files.get(&format!("{root}byteorder"))
        && *order != b"little"
    {
        return Err(zip_error(format!("byte order `{}`, expected `little`", String::from_utf8_lossy(order))));
    }
    let bytes = files.get(*pickle).copied().unwrap_or_default();
    let unpickled = unpickle(bytes)?;
    entries(&unpickled.values, |key| files.get(&format!("{root}data/{key}")).copied())
}

fn zip_error(reason: String) -> ImportError {
    ImportError::Zip { reason }
}

/// The bytes of every entry, where they lie.
fn stored(file: &[u8]) -> Result<BTreeMap<String, &[u8]>, ImportError> {
    let mut archive = ZipArchive::new(Cursor::new(file)).map_err(|e| zip_error(e.to_string()))?;
    let mut files = BTreeMap::new();
    for at in 0..archive.len() {
        let entry = archive.by_index_raw(at).map_err(|e| zip_error(e.to_string()))?;
        let name = entry.name().map_err(|e| zip_error(e.to_string()))?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(zip_error(format!("`{name:.80}` is compressed or encrypted")));
        }
        let bytes = entry.data_start().and_then(|start| {
            let end = start.checked_add(entry.compressed_size())?;
            file.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        let bytes = bytes
            .ok_or_else(|| zip_error(format!("`{name:.80}` reaches beyond the end: it is cut short")))?;
        files.insert(name, bytes);
    }
    Ok(files)
}
