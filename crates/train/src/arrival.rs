//! Pictures on their way from host memory to the device.

use crate::TrainError;
use tch::{Device, Tensor};

/// The pictures on `device`. To a GPU the copy is only queued: from page-locked memory the GPU makes it by itself, and
/// libtorch keeps that memory from being used again before; from other memory libtorch takes the bytes first. What comes
/// after in the device's queue sees them, so nothing has to wait.
pub(crate) fn on_device(pictures: &Tensor, device: Device) -> Result<Tensor, TrainError> {
    if pictures.device() == device {
        return Ok(pictures.shallow_clone());
    }
    let waits_not = true;
    Ok(pictures.f_to_device_(device, pictures.kind(), waits_not, false)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_that_are_there_are_not_copied() {
        let pictures = Tensor::from_slice(&[1_u8, 2, 3]);
        assert_eq!(on_device(&pictures, Device::Cpu).unwrap().data_ptr(), pictures.data_ptr());
    }
}
