//! libtorch as this process finds it: CUDA's half, devices, threads.

use anyhow::{Context, Result, bail};
use mcl_collective::{CudaError, NcclFactory};
use mcl_config::Precision;
use mcl_terminal::say;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// File name of the NCCL shim, beside the executable.
const NCCL_SHIM: &str = "libmcl_nccl.so";

/// Loads libtorch's CUDA half from where its CPU half was loaded; its absence is no fault.
pub(crate) fn load_cuda() -> Result<(), CudaError> {
    let folder = torch_folder().unwrap_or_else(|| PathBuf::from("."));
    mcl_collective::load_cuda(&folder)
}

/// The folder that the running libtorch_cpu came from.
fn torch_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|l| l.ends_with("/libtorch_cpu.so"))?;
    let path = line.get(line.find('/')?..)?;
    Path::new(path).parent().map(Path::to_owned)
}

/// The factory for NCCL groups; absent where its shim is not beside this executable.
pub(crate) fn nccl() -> Result<NcclFactory> {
    let own = std::env::current_exe().context("this executable's own path")?;
    let shim = own.parent().unwrap_or(Path::new(".")).join(NCCL_SHIM);
    mcl_collective::load_nccl(&shim).with_context(|| {
        format!("ranks on GPUs talk over NCCL: build {NCCL_SHIM} with `make nccl` and put it beside mcl-rank")
    })
}

/// `cpu`, `cpu:N` (a further CPU slot) or `cuda:N` as a device that exists.
pub(crate) fn device(name: &str) -> Result<Device> {
    let slot = name.strip_prefix("cpu:").is_some_and(|n| n.parse::<u32>().is_ok());
    if name == "cpu" || slot {
        return Ok(Device::Cpu);
    }
    let Some(index) = name.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()) else {
        bail!("device `{name}`: expected cpu, cpu:N or cuda:N");
    };
    let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    if index >= count {
        bail!("device `{name}`: this machine has {count} CUDA devices that libtorch can use");
    }
    Ok(Device::Cuda(index))
}

/// The kind of a job's weights.
pub(crate) const fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::F32 | Precision::Bf16 => Kind::Float,
        Precision::F64 => Kind::Double,
    }
}

/// Makes libtorch ready for a device. On a GPU cuDNN tries its kernels out at a shape's first use and keeps the fastest:
/// a run's shapes stay the same. Which one wins may differ from process to process, and bits with it.
pub(crate) fn tune(device: Device) {
    if device != Device::Cpu {
        tch::Cuda::cudnn_set_benchmark(true);
    }
}

/// Waits until a device has done what it was given: before a clock is read.
pub(crate) fn settle(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(i64::try_from(index).unwrap_or(0));
    }
}

/// Fixes the number of threads: part of what decides the bits.
pub(crate) fn set_threads(threads: u32) {
    tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
    tch::set_num_interop_threads(1);
}

/// Prints version and devices as JSON.
pub(crate) fn describe(cuda: &Result<(), CudaError>) -> Result<()> {
    let devices = tch::Cuda::device_count();
    let description = serde_json::json!({
        "libtorch": libtorch_version(),
        "folder": torch_folder(),
        "cuda": cuda.as_ref().err().map_or_else(|| "loaded".to_owned(), ToString::to_string),
        "cuda_devices": devices,
        "threads": tch::get_num_threads(),
    });
    say!("{description}")?;
    Ok(())
}

/// Version of the libtorch that this build was made for; tch refuses another at build time.
pub(crate) const fn libtorch_version() -> &'static str {
    "2.11.0"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_slots_are_the_cpu_and_nonsense_is_named() {
        assert_eq!(device("cpu").unwrap(), Device::Cpu);
        assert_eq!(device("cpu:3").unwrap(), Device::Cpu);
        for bad in ["cpu:", "cpu:x", "gpu", "cuda:99"] {
            assert!(device(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }
}
