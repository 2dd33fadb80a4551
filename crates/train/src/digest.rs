//! Digests of a state, and who disagrees.

use crate::TrainError;
use mcl_collective::Group;
use mcl_types::Digest;
use tch::{Device, Kind, Tensor};

/// BLAKE3 over (name, kind, shape, bytes) of tensors in the order given.
///
/// # Errors
/// When a tensor cannot be copied to host memory.
pub fn digest_of<'a>(state: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<Digest, TrainError> {
    let mut hash = blake3::Hasher::new();
    for (name, tensor) in state {
        hash.update(name.as_bytes());
        hash.update(format!("\0{:?}{:?}\0", tensor.kind(), tensor.size()).as_bytes());
        hash.update(&bytes_of(tensor)?);
    }
    Ok(Digest::from_bytes(*hash.finalize().as_bytes()))
}

/// A tensor's elements as little-endian bytes, row-major.
///
/// # Errors
/// When it cannot be copied to host memory.
pub fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>, TrainError> {
    let host = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let count = host.numel();
    let mut bytes = vec![0_u8; count * host.kind().elt_size_in_bytes()];
    host.f_copy_data_u8(&mut bytes, count)?;
    Ok(bytes)
}

/// Ranks whose digest differs from rank 0's, by one gather; empty where all agree.
///
/// # Errors
/// When a peer is lost.
pub fn disagreement(group: &Group, mine: Digest, device: Device) -> Result<Vec<u32>, TrainError> {
    let bytes: Vec<i64> = mine.as_bytes().iter().map(|b| i64::from(*b)).collect();
    let all = group.all_gather(&Tensor::f_from_slice(&bytes)?.f_to_device(device)?)?;
    let all: Vec<Vec<i64>> = Vec::try_from(all.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?)?;
    let first = all.first().cloned().unwrap_or_default();
    let differs = all.iter().zip(0_u32..).filter(|(digest, _)| **digest != first);
    Ok(differs.map(|(_, rank)| rank).collect())
}
