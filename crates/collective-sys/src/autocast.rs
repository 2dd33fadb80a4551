//! Half precision where it is safe, for as long as a guard lives.

use crate::ffi;
use crate::handles::{EngineError, check};
use std::marker::PhantomData;
use tch::Device;

/// While it lives, convolutions and matrix products of this thread on its device compute in bf16 and answer in bf16;
/// weights stay as they are, and trained ones are cast once. The engine keeps a list of operations that stay in full precision.
#[derive(Debug)]
pub struct Autocast {
    cuda: bool,
    // The engine's switch is the thread's.
    _thread: PhantomData<*const ()>,
}

impl Autocast {
    /// Switches it on; guards nest.
    ///
    /// # Errors
    /// When the engine does not know bf16 on the device.
    pub fn bf16(device: Device) -> Result<Self, EngineError> {
        let cuda = device.is_cuda();
        // SAFETY: plain values; the shim catches what the engine throws.
        check(unsafe { ffi::mcl_autocast_enter(cuda.into()) })?;
        Ok(Self { cuda, _thread: PhantomData })
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: undoes what `bf16` did on this same thread. It fails in nothing that could be told here.
        let _ = unsafe { ffi::mcl_autocast_leave(self.cuda.into()) };
    }
}
