//! One digest for a whole state, whatever its slicing.
//!
//! The digest of a tensor is BLAKE3 over its name, dtype, shape and bytes, each preceded by its length;
//! the digest of a state is BLAKE3 over the tensors' digests in name order. So a state is digested slice
//! by slice, one slice in memory at a time, and two states are compared tensor by tensor. Invariant: no
//! name is counted twice. Left out: values (digests compare bits, not numbers).

use crate::slice::{SliceView, TensorRef};
use mcl_types::Digest;
use std::collections::BTreeMap;

/// Tells these digests from any other BLAKE3 of the same bytes.
const TENSOR_DOMAIN: &[u8] = b"mcl-tensor-1\0";
const STATE_DOMAIN: &[u8] = b"mcl-state-1\0";

/// The digest of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDigest {
    /// Its name.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Over name, dtype, shape and bytes.
    pub digest: Digest,
}

/// A name that two slices claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tensor `{name}` is in more than one slice, expected in exactly one: the slices are not of one state"
)]
pub struct DuplicateTensor {
    /// The name.
    pub name: String,
}

/// The digest of one tensor.
pub fn digest_tensor(name: &str, tensor: &TensorRef<'_>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(TENSOR_DOMAIN);
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(name.as_bytes());
    part(tensor.dtype.to_string().as_bytes());
    let shape: Vec<u8> = tensor.shape.iter().flat_map(|&d| (d as u64).to_le_bytes()).collect();
    part(&shape);
    part(tensor.bytes);
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

/// Gathers a state's digest slice by slice, in any order.
#[derive(Debug, Clone, Default)]
pub struct StateDigester {
    tensors: BTreeMap<String, (u64, Digest)>,
}

impl StateDigester {
    /// Nothing gathered yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds every tensor of a slice.
    ///
    /// # Errors
    /// When a name is there already.
    pub fn add(&mut self, slice: &SliceView<'_>) -> Result<(), DuplicateTensor> {
        for (name, tensor) in slice.tensors() {
            let entry = (tensor.bytes.len() as u64, digest_tensor(name, tensor));
            if self.tensors.insert(name.to_owned(), entry).is_some() {
                return Err(DuplicateTensor { name: name.to_owned() });
            }
        }
        Ok(())
    }

    /// The state's digest.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(STATE_DOMAIN);
        for (_, digest) in self.tensors.values() {
            hasher.update(digest.as_bytes());
        }
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }

    /// How many tensors were added.
    pub fn tensors(&self) -> u64 {
        self.tensors.len() as u64
    }

    /// How many bytes they hold.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().fold(0, |sum, (bytes, _)| sum.saturating_add(*bytes))
    }

    /// Each tensor's digest, in name order.
    pub fn into_list(self) -> Vec<TensorDigest> {
        let item = |(name, (bytes, digest))| TensorDigest { name, bytes, digest };
        self.tensors.into_iter().map(item).collect()
    }
}

/// The digest of the state that these slices make up.
///
/// # Errors
/// When a tensor is in two of them.
pub fn digest_state(slices: &[SliceView<'_>]) -> Result<Digest, DuplicateTensor> {
    let mut digester = StateDigester::new();
    for slice in slices {
        digester.add(slice)?;
    }
    Ok(digester.digest())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slice::write_slice;
    use crate::slicing::{TensorInfo, assign};
    use proptest::prelude::*;
    use safetensors::Dtype;

    type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

    fn slices(state: &[Tensor], parts: u32) -> Vec<Vec<u8>> {
        let info = |(name, dtype, shape, bytes): &Tensor| TensorInfo {
            name: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
            bytes: bytes.len() as u64,
        };
        let infos: Vec<TensorInfo> = state.iter().map(info).collect();
        let slice = |part: Vec<usize>| {
            let tensors: Vec<_> = part
                .into_iter()
                .map(|i| (state[i].0.clone(), state[i].1, state[i].2.clone(), state[i].3.as_slice()))
                .collect();
            write_slice(&tensors).unwrap()
        };
        assign(&infos, parts).into_iter().map(slice).collect()
    }

    fn digest(files: &[Vec<u8>]) -> Digest {
        let views: Vec<_> = files.iter().map(|f| SliceView::parse(f).unwrap()).collect();
        digest_state(&views).unwrap()
    }

    fn state() -> impl Strategy<Value = Vec<Tensor>> {
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..12).prop_map(|all| {
            let tensor =
                |(i, bytes): (usize, Vec<u8>)| (format!("t{i}"), Dtype::U8, vec![bytes.len()], bytes);
            all.into_iter().enumerate().map(tensor).collect()
        })
    }

    proptest! {
        #[test]
        fn the_slicing_does_not_show(state in state(), a in 1_u32..6, b in 1_u32..6) {
            prop_assert_eq!(digest(&slices(&state, a)), digest(&slices(&state, b)));
        }

        #[test]
        fn every_bit_and_every_name_shows(state in state(), at in any::<u16>(), bit in 0_u8..8) {
            let before = digest(&slices(&state, 2));
            let mut other = state.clone();
            let at = at as usize % other.len();
            match other[at].3.first_mut() {
                Some(byte) => *byte ^= 1 << bit,
                None => other[at].0.push('x'),
            }
            prop_assert_ne!(before, digest(&slices(&other, 2)));
        }
    }

    #[test]
    fn shape_and_dtype_show() {
        let state = |dtype, shape| vec![("w".to_owned(), dtype, shape, vec![0; 8])];
        let digests = [
            digest(&slices(&state(Dtype::F32, vec![2]), 1)),
            digest(&slices(&state(Dtype::F32, vec![2, 1]), 1)),
            digest(&slices(&state(Dtype::I32, vec![2]), 1)),
        ];
        assert_ne!(digests[0], digests[1]);
        assert_ne!(digests[0], digests[2]);
    }

    #[test]
    fn a_tensor_in_two_slices_is_an_error() {
        let file = write_slice(&[("w".into(), Dtype::U8, vec![1], &[1])]).unwrap();
        let view = SliceView::parse(&file).unwrap();
        assert_eq!(digest_state(&[view.clone(), view]), Err(DuplicateTensor { name: "w".into() }));
    }
}
