//! Detectron2's model file: a pickle of numpy arrays.
//!
//! Arrays are rebuilt through `numpy.core.multiarray._reconstruct`, which numpy 1 writes and numpy 2 still reads, with
//! raw bytes (protocol 3, so Python 3). Invariant: the same tensors give the same bytes. Left out: half precision of
//! Google's kind, which numpy has no word for: it becomes single precision, exactly.

use crate::element::single;
use crate::error::ExportError;
use crate::pickle_writer::PickleWriter;
use crate::torch_writer::Chosen;
use mcl_checkpoint_core::{Dtype, OwnedTensor};

/// Longest array: its length is written in 32 bits.
const MAX_ARRAY: u64 = u32::MAX as u64;

/// Numpy's word for an element type.
const fn code(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F64 => "f8",
        Dtype::F32 => "f4",
        Dtype::F16 => "f2",
        Dtype::I64 => "i8",
        Dtype::I32 => "i4",
        _ => return None,
    })
}

/// A file that holds `{"__author__": author, "matching_heuristics": True, "model": {name: array}}`.
///
/// # Errors
/// When an element type has no word in numpy, or an array is of 4 GiB and more.
pub(crate) fn write(tensors: &Chosen<'_>, author: &str) -> Result<Vec<u8>, ExportError> {
    let mut pickle = PickleWriter::new(3);
    pickle.dict().mark().text("__author__").text(author).text("matching_heuristics").flag(true);
    pickle.text("model").dict().mark();
    for (name, tensor) in tensors {
        pickle.text(name);
        match single(tensor).filter(|_| tensor.dtype == Dtype::BF16) {
            Some(wide) => array(&mut pickle, name, &wide)?,
            None => array(&mut pickle, name, tensor)?,
        }
    }
    pickle.set_items().set_items();
    Ok(pickle.finish())
}

fn array(pickle: &mut PickleWriter, name: &str, tensor: &OwnedTensor) -> Result<(), ExportError> {
    let found = tensor.dtype;
    let code = code(found).ok_or_else(|| ExportError::Type {
        name: name.to_owned(),
        found,
        expected: "f16, bf16, f32, f64, i32 or i64",
    })?;
    if tensor.bytes.len() as u64 > MAX_ARRAY {
        let what = format!("tensor `{name}`");
        return Err(ExportError::TooLarge { what, found: tensor.bytes.len(), most: MAX_ARRAY });
    }
    pickle.global("numpy.core.multiarray", "_reconstruct").mark().global("numpy", "ndarray");
    pickle.sizes(&[0]).raw(b"b").tuple().call();
    // The array's state: version, shape, type, not in Fortran's order, bytes.
    pickle.mark().int(1).sizes(&tensor.shape);
    pickle.global("numpy", "dtype").mark().text(code).flag(false).flag(true).tuple().call();
    pickle.mark().int(3).text("<").none().none().none().int(-1).int(-1).int(0).tuple().build();
    pickle.flag(false).raw(&tensor.bytes).tuple().build();
    Ok(())
}
