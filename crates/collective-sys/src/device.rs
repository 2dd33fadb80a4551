//! Page-locked host memory, and how much memory a device has held.

use crate::ffi;
use crate::handles::{EngineError, check};
use std::ffi::c_int;
use std::ptr::null_mut;
use tch::{Device, Tensor};

/// Memory of a GPU, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Most that tensors of this process have held at once.
    pub peak: i64,
    /// Most that this process has taken from the device for them.
    pub reserved: i64,
    /// What the device has.
    pub total: i64,
}

/// What this process has held of a GPU's memory so far; none on a CPU.
///
/// # Errors
/// When libtorch's CUDA half is not loaded.
pub fn device_memory(device: Device) -> Result<Option<DeviceMemory>, EngineError> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let index = c_int::try_from(index).map_err(|_| EngineError::Other(format!("no CUDA device {index}")))?;
    let mut memory = DeviceMemory { peak: 0, reserved: 0, total: 0 };
    // SAFETY: the three pointers are to live numbers that nobody else uses.
    check(unsafe {
        ffi::mcl_cuda_memory(index, &raw mut memory.peak, &raw mut memory.reserved, &raw mut memory.total)
    })?;
    Ok(Some(memory))
}

/// The bytes as a tensor `[n]` in page-locked memory, from where a GPU copies without the CPU.
///
/// # Errors
/// Where there is no GPU.
pub fn pinned(bytes: &[u8]) -> Result<Tensor, EngineError> {
    let mut out = null_mut();
    // SAFETY: the shim reads `bytes.len()` bytes; on success `out` is a new tensor that Rust now owns.
    unsafe {
        check(ffi::mcl_pinned_bytes(bytes.as_ptr(), bytes.len(), &raw mut out))?;
        Ok(Tensor::from_ptr(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_there_is_no_such_memory_and_asking_is_no_crash() {
        assert_eq!(device_memory(Device::Cpu).unwrap(), None);
        if tch::Cuda::device_count() == 0 {
            // An error without libtorch's CUDA half; with it and no GPU, nothing is held.
            let nothing = DeviceMemory { peak: 0, reserved: 0, total: 0 };
            assert_eq!(device_memory(Device::Cuda(0)).ok().flatten().unwrap_or(nothing), nothing);
            assert!(pinned(&[1, 2, 3]).is_err());
        }
    }
}
