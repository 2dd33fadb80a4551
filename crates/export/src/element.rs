//! Elements of tensors as numbers, and back.

use half::{bf16, f16};
use mcl_checkpoint_core::{Dtype, OwnedTensor};

/// Bytes of one element; nothing for types of less than a byte.
pub(crate) fn size_of(dtype: Dtype) -> Option<usize> {
    let bits = dtype.bitsize();
    (bits >= 8 && bits.is_multiple_of(8)).then_some(bits / 8)
}

fn words<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|word| convert(*word)).collect()
}

/// The numbers of a floating point tensor, exactly; nothing for other types.
pub(crate) fn to_f64(tensor: &OwnedTensor) -> Option<Vec<f64>> {
    let bytes = &tensor.bytes;
    match tensor.dtype {
        Dtype::F64 => Some(words(bytes, f64::from_le_bytes)),
        Dtype::F32 => Some(words(bytes, |w| f64::from(f32::from_le_bytes(w)))),
        Dtype::BF16 => Some(words(bytes, |w| bf16::from_le_bytes(w).to_f64())),
        Dtype::F16 => Some(words(bytes, |w| f16::from_le_bytes(w).to_f64())),
        _ => None,
    }
}

/// Numbers as f64 where `dtype` is, else as f32, each rounded once.
#[expect(clippy::cast_possible_truncation, reason = "rounding to single precision is what is asked for")]
pub(crate) fn from_f64(values: &[f64], dtype: Dtype, shape: Vec<usize>) -> OwnedTensor {
    let (dtype, bytes) = match dtype {
        Dtype::F64 => (Dtype::F64, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        _ => (Dtype::F32, values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect()),
    };
    OwnedTensor { dtype, shape, bytes }
}

/// Half precision as single precision, exactly, whichever half it is.
pub(crate) fn single(tensor: &OwnedTensor) -> Option<OwnedTensor> {
    match tensor.dtype {
        Dtype::F16 | Dtype::BF16 => {
            to_f64(tensor).map(|values| from_f64(&values, Dtype::F32, tensor.shape.clone()))
        }
        _ => None,
    }
}

/// 32-bit integers as 64-bit ones, as counters are kept.
pub(crate) fn long(tensor: &OwnedTensor) -> OwnedTensor {
    let wide = words(&tensor.bytes, |w| i64::from(i32::from_le_bytes(w)));
    let bytes = wide.iter().flat_map(|v| v.to_le_bytes()).collect();
    OwnedTensor { dtype: Dtype::I64, shape: tensor.shape.clone(), bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, bytes: Vec<u8>) -> OwnedTensor {
        OwnedTensor { dtype, shape: vec![bytes.len() / size_of(dtype).unwrap()], bytes }
    }

    #[test]
    fn halves_become_singles_exactly() {
        // 1.5, -2, the smallest subnormal, infinity.
        let f16s = tensor(Dtype::F16, vec![0x00, 0x3e, 0x00, 0xc0, 0x01, 0x00, 0x00, 0x7c]);
        let values = to_f64(&single(&f16s).unwrap()).unwrap();
        assert_eq!(values, [1.5, -2.0, 2_f64.powi(-24), f64::INFINITY]);
        let bf16s = tensor(Dtype::BF16, vec![0xc0, 0x3f, 0x00, 0xc0]);
        assert_eq!(to_f64(&single(&bf16s).unwrap()).unwrap(), [1.5, -2.0]);
        assert_eq!(single(&tensor(Dtype::F32, vec![0; 4])), None);
    }

    #[test]
    fn counters_become_long() {
        let ints = tensor(Dtype::I32, (-7_i32).to_le_bytes().to_vec());
        assert_eq!(long(&ints).bytes, (-7_i64).to_le_bytes());
        assert_eq!(to_f64(&ints), None);
    }
}
