//! Host memory on its way to the device: copies that nobody waits for.

use crate::ModelError;
use tch::{Device, Kind, Tensor};

/// A queued copy: what comes after in the device's queue sees the values, the host goes on at once.
const WAITS_NOT: bool = true;

/// `tensor` on `device`. From page-locked memory a GPU copies by itself, and libtorch keeps that memory from being used
/// again before; from other memory libtorch takes the bytes first.
///
/// # Errors
/// When the device is out of memory.
pub fn on_device(tensor: &Tensor, device: Device) -> Result<Tensor, ModelError> {
    if tensor.device() == device {
        return Ok(tensor.shallow_clone());
    }
    Ok(tensor.f_to_device_(device, tensor.kind(), WAITS_NOT, false)?)
}

/// Whole numbers on `device`: `[n]`.
///
/// # Errors
/// When host or device is out of memory.
pub fn numbers_on_device(numbers: &[i64], device: Device) -> Result<Tensor, ModelError> {
    let numbers = Tensor::f_from_slice(numbers)?;
    if device == Device::Cpu {
        return Ok(numbers);
    }
    // A copy from ordinary memory may wait until the device has done all that it was given.
    Ok(numbers.f_pin_memory(device)?.f_to_device_(device, Kind::Int64, WAITS_NOT, false)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_copied() {
        let pictures = Tensor::from_slice(&[1_u8, 2, 3]);
        assert_eq!(on_device(&pictures, Device::Cpu).unwrap().data_ptr(), pictures.data_ptr());
        let numbers = numbers_on_device(&[4, 5], Device::Cpu).unwrap();
        assert_eq!(Vec::<i64>::try_from(numbers).unwrap(), [4, 5]);
    }
}
