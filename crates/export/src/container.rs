//! Which kind of file it is, and the tensors that lie in it.
//!
//! Invariant: a tensor here is a description that refers to the file's bytes; nothing is copied before it is chosen.
//! Left out: what the names mean.

use crate::error::ImportError;
use crate::strided::Strided;
use crate::unpickle::unpickle;
use crate::values::{Id, Value, Values};
use crate::{torch_legacy, torch_zip};
use mcl_checkpoint_core::SliceView;
use std::collections::{BTreeMap, BTreeSet};

/// What a zip file begins with.
const ZIP: &[u8] = b"PK\x03\x04";
/// What a pickle of protocol 2 and later begins with.
const PICKLE: u8 = 0x80;
/// Longest name of a tensor, in bytes; those of networks have some forty.
const MAX_NAME: usize = 1 << 10;
/// Where a tar file says that it is one, and how.
const TAR: (usize, &[u8]) = (257, b"ustar");
/// Where the header of a safetensors file begins, after its length.
const HEADER_AT: usize = 8;

/// What lies in a file.
#[derive(Debug)]
pub(crate) struct Entries<'a> {
    /// The tensors, by name.
    pub(crate) tensors: BTreeMap<String, Strided<'a>>,
    /// Names under which there is something else, each once.
    pub(crate) others: BTreeSet<&'a str>,
}

/// Reads any of the known kinds.
///
/// # Errors
/// When it is none of them, damaged, or holds no dictionary of tensors.
pub(crate) fn read(file: &[u8]) -> Result<Entries<'_>, ImportError> {
    if file.starts_with(ZIP) {
        return torch_zip::read(file);
    }
    if file.starts_with(torch_legacy::BEGINNING) {
        return torch_legacy::read(file);
    }
    if file.first() == Some(&PICKLE) && file.get(HEADER_AT) != Some(&b'{') {
        let unpickled = unpickle(file)?;
        return entries(&unpickled.values, |_| None);
    }
    if file.get(HEADER_AT) == Some(&b'{') {
        return safetensors(file);
    }
    if file.get(TAR.0..).is_some_and(|rest| rest.starts_with(TAR.1)) {
        return Err(ImportError::Tar);
    }
    let first = file.get(..file.len().min(12)).unwrap_or_default();
    Err(ImportError::Container { found: format!("`{}`", first.escape_ascii()) })
}

fn safetensors(file: &[u8]) -> Result<Entries<'_>, ImportError> {
    let view = SliceView::parse(file)?;
    let tensors = view.tensors().map(|(name, tensor)| {
        let shape = tensor.shape.iter().map(|size| *size as u64).collect();
        (name.to_owned(), Strided::dense(tensor.dtype, shape, false, tensor.bytes.into()))
    });
    Ok(Entries { tensors: tensors.collect(), others: BTreeSet::new() })
}

/// The tensors of a pickled object: a dictionary of them, or one under `state_dict` or `model`. `storage` gives the
/// bytes that torch keeps under a name.
///
/// # Errors
/// When there is no such dictionary, or a storage is missing or of another length.
pub(crate) fn entries<'a>(
    values: &Values<'a>,
    storage: impl Fn(&str) -> Option<&'a [u8]>,
) -> Result<Entries<'a>, ImportError> {
    let is_dict = |id: &Id| matches!(values.get(*id), Value::Dict(_));
    let inner =
        ["state_dict", "model"].iter().find_map(|name| values.entry(values.root, name).filter(is_dict));
    let Value::Dict(all) = values.get(inner.unwrap_or(values.root)) else {
        return Err(ImportError::NoState { found: values.get(values.root).kind().to_owned() });
    };
    let mut found = Entries { tensors: BTreeMap::new(), others: BTreeSet::new() };
    for (key, value) in all {
        let Value::Text(name) = values.get(*key) else {
            found.others.insert(values.get(*key).kind());
            continue;
        };
        if name.len() > MAX_NAME {
            return Err(ImportError::LongName { length: name.len(), most: MAX_NAME });
        }
        match tensor(values, *value, &storage).map_err(|reason| damaged(name, reason))? {
            Some(tensor) => drop(found.tensors.insert((*name).to_owned(), tensor)),
            None => drop(found.others.insert(name)),
        }
    }
    if found.tensors.is_empty() {
        return Err(ImportError::NoState { found: "a dictionary without a tensor".to_owned() });
    }
    Ok(found)
}

fn damaged(name: &str, reason: String) -> ImportError {
    ImportError::Tensor { name: name.to_owned(), reason }
}

fn tensor<'a>(
    values: &Values<'a>,
    id: Id,
    storage: impl Fn(&str) -> Option<&'a [u8]>,
) -> Result<Option<Strided<'a>>, String> {
    match values.get(id) {
        Value::Array(Some(array)) => {
            Ok(Some(Strided::dense(array.dtype, array.shape.clone(), array.fortran, array.bytes.clone())))
        }
        Value::Tensor(view) => {
            let Value::Storage { key, dtype, elements } = values.get(view.storage) else { return Ok(None) };
            let bytes = storage(key)
                .ok_or_else(|| format!("its storage `{key:.40}` is not in the file, which is damaged"))?;
            let size = crate::element::size_of(*dtype).unwrap_or(1) as u64;
            if elements.checked_mul(size) != Some(bytes.len() as u64) {
                let length = bytes.len();
                return Err(format!(
                    "storage `{key:.40}` has {length} bytes, expected {elements} elements of {dtype}; the file is damaged"
                ));
            }
            let (shape, stride) = (view.shape.clone(), view.stride.clone());
            Ok(Some(Strided { dtype: *dtype, shape, stride, offset: view.offset, bytes: bytes.into() }))
        }
        _ => Ok(None),
    }
}
