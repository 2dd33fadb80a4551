//! CUDA and NCCL at run time: one binary for machines with and without GPUs.

use crate::handles::NcclFactory;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use std::ffi::c_void;
use std::path::{Path, PathBuf};

/// Why CUDA or NCCL is not to be had; none of these is a fault of a CPU machine.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The library is not there.
    #[error("{} is not there: this libtorch has no CUDA half", .0.display())]
    Absent(PathBuf),
    /// It is there and does not load.
    #[error("{} does not load: {reason}", path.display())]
    Unloadable {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        reason: String,
    },
}

fn open(path: &Path) -> Result<Library, CudaError> {
    if !path.is_file() {
        return Err(CudaError::Absent(path.to_owned()));
    }
    // SAFETY: loading libtorch_cuda or our NCCL shim runs their static initialisers, which register
    // kernels with the dispatcher; both come from the same build as the libtorch_cpu already loaded.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|e| CudaError::Unloadable { path: path.to_owned(), reason: e.to_string() })
}

/// Loads libtorch_cuda from `torch_lib` for the rest of the process. Must come before anything asks
/// libtorch whether there is CUDA: the answer is cached at first use.
///
/// # Errors
/// When the library is absent or does not load.
pub fn load_cuda(torch_lib: &Path) -> Result<(), CudaError> {
    let library = open(&torch_lib.join("libtorch_cuda.so"))?;
    // Never unloaded: kernels stay registered.
    std::mem::forget(library);
    Ok(())
}

/// Loads the NCCL shim and finds its factory.
///
/// # Errors
/// When it is absent, does not load, or lacks the factory.
pub fn load_nccl(shim: &Path) -> Result<NcclFactory, CudaError> {
    let library = open(shim)?;
    // SAFETY: the symbol's type is declared in shim/nccl.cpp.
    let symbol: Result<Symbol<*mut c_void>, _> = unsafe { library.get(b"mcl_nccl_factory\0") };
    let factory = symbol
        .map_err(|e| CudaError::Unloadable { path: shim.to_owned(), reason: e.to_string() })?
        .into_raw();
    std::mem::forget(library);
    Ok(NcclFactory(factory))
}
