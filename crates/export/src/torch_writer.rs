//! A `.pth` file as `torch.load(weights_only=True)` takes it.
//!
//! A zip container, nothing compressed: `archive/data.pkl` names each tensor's storage by number, `archive/data/N` is
//! its bytes. Invariants: the same tensors give the same bytes (no time, no name of a machine); every storage begins
//! at a multiple of 64 bytes, as torch maps files; a tensor is contiguous and has a storage of its own. Left out:
//! compression, sparse and quantised tensors.

use crate::element::size_of;
use crate::error::ExportError;
use crate::pickle_writer::PickleWriter;
use mcl_checkpoint_core::{Dtype, OwnedTensor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Where torch begins a storage.
const ALIGNMENT: u16 = 64;
/// Folder of all entries; torch takes any.
const ROOT: &str = "archive";
/// Format of the container that torch 1.6 and later write.
const VERSION: &str = "3\n";

/// Chosen tensors, by the name they get.
pub(crate) type Chosen<'a> = BTreeMap<String, Cow<'a, OwnedTensor>>;

/// Torch's word for an element type.
pub(crate) const fn storage_name(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F64 => "DoubleStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::I32 => "IntStorage",
        Dtype::I16 => "ShortStorage",
        Dtype::I8 => "CharStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::BOOL => "BoolStorage",
        _ => return None,
    })
}

/// A file that holds `{name: tensor}`; with `meta`, `{"meta": {..}, "state_dict": {name: tensor}}`.
///
/// # Errors
/// When an element type has no storage in torch, or the container cannot be written.
pub(crate) fn write(tensors: &Chosen<'_>, meta: Option<&[(&str, String)]>) -> Result<Vec<u8>, ExportError> {
    let mut pickle = PickleWriter::new(2);
    if let Some(meta) = meta {
        pickle.dict().mark().text("meta").dict().mark();
        for (key, value) in meta {
            pickle.text(key).text(value);
        }
        pickle.set_items().text("state_dict");
    }
    state_dict(&mut pickle, tensors)?;
    if meta.is_some() {
        pickle.set_items();
    }
    container(&pickle.finish(), tensors)
}

fn state_dict(pickle: &mut PickleWriter, tensors: &Chosen<'_>) -> Result<(), ExportError> {
    pickle.ordered_dict().mark();
    for (number, (name, tensor)) in tensors.iter().enumerate() {
        let (storage, size) =
            storage_name(tensor.dtype).zip(size_of(tensor.dtype)).ok_or_else(|| ExportError::Type {
                name: name.clone(),
                found: tensor.dtype,
                expected: "a type that torch stores",
            })?;
        pickle.text(name).global("torch._utils", "_rebuild_tensor_v2").mark();
        pickle.mark().text("storage").global("torch", storage).text(&number.to_string()).text("cpu");
        pickle.size(tensor.bytes.len() / size).tuple().persistent();
        pickle.int(0).sizes(&tensor.shape).sizes(&strides(&tensor.shape));
        pickle.flag(false).ordered_dict().tuple().call();
    }
    pickle.set_items();
    Ok(())
}

/// Elements between neighbours along each axis, the last axis densest.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}

fn container(pickle: &[u8], tensors: &Chosen<'_>) -> Result<Vec<u8>, ExportError> {
    let failed = |e: &dyn std::fmt::Display| ExportError::Zip { reason: e.to_string() };
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644)
        .with_alignment(ALIGNMENT);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut entry = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("{ROOT}/{name}"), options).map_err(|e| failed(&e))?;
        zip.write_all(bytes).map_err(|e| failed(&e))
    };
    entry("data.pkl", pickle)?;
    entry("byteorder", b"little")?;
    for (number, tensor) in tensors.values().enumerate() {
        entry(&format!("data/{number}"), &tensor.bytes)?;
    }
    entry("version", VERSION.as_bytes())?;
    Ok(zip.finish().map_err(|e| failed(&e))?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_are_those_of_contiguous_tensors() {
        assert_eq!(strides(&[4, 3, 2]), [6, 2, 1]);
        assert_eq!(strides(&[]), [0_usize; 0]);
        assert_eq!(strides(&[2, 0, 3]), [3, 3, 1]);
    }

    #[test]
    fn storages_are_aligned_and_bytes_repeat() {
        let tensor = |dtype, bytes: Vec<u8>| {
            let shape = vec![bytes.len() / size_of(dtype).unwrap()];
            Cow::Owned(OwnedTensor { dtype, shape, bytes })
        };
        let tensors: Chosen<'_> = [
            ("a".to_owned(), tensor(Dtype::F32, vec![1; 12])),
            ("b".to_owned(), tensor(Dtype::I64, vec![2; 8])),
            ("c".to_owned(), tensor(Dtype::F64, vec![3; 80])),
        ]
        .into();
        let bytes = write(&tensors, None).unwrap();
        assert_eq!(bytes, write(&tensors, None).unwrap());
        let mut archive = zip::ZipArchive::new(Cursor::new(bytes.as_slice())).unwrap();
        let mut storages = 0;
        for at in 0..archive.len() {
            let entry = archive.by_index_raw(at).unwrap();
            assert_eq!(entry.compression(), CompressionMethod::Stored);
            if entry.name().unwrap().starts_with("archive/data/") {
                assert_eq!(entry.data_start().unwrap() % u64::from(ALIGNMENT), 0);
                storages += 1;
            }
        }
        assert_eq!(storages, 3);
    }

    #[test]
    fn a_type_that_torch_does_not_store_is_named() {
        let odd = OwnedTensor { dtype: Dtype::F8_E4M3, shape: vec![1], bytes: vec![0] };
        let error = write(&[("odd".to_owned(), Cow::Owned(odd))].into(), None).unwrap_err();
        assert!(error.to_string().contains("`odd`"), "{error}");
    }
}
