//! How much memory this process has held at most.

use anyhow::Result;
use mcl_collective::device_memory;
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};
use tch::Device;

/// In bytes, so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peak {
    /// Resident memory of the process (`VmHWM`).
    pub(crate) peak_bytes: i64,
    /// Tensors on the GPU; none on a CPU.
    pub(crate) gpu_peak_bytes: Option<i64>,
    /// Taken from the GPU for them, what lies idle between them included.
    pub(crate) gpu_reserved_bytes: Option<i64>,
}

impl Peak {
    pub(crate) fn of(device: Device) -> Result<Self> {
        let gpu = device_memory(device)?;
        Ok(Self {
            peak_bytes: getrusage(UsageWho::RUSAGE_SELF)?.max_rss() * 1024,
            gpu_peak_bytes: gpu.map(|m| m.peak),
            gpu_reserved_bytes: gpu.map(|m| m.reserved),
        })
    }

    /// What is scarce on the device: its own memory on a GPU, the process's on a CPU.
    pub(crate) fn scarce(self) -> i64 {
        self.gpu_peak_bytes.unwrap_or(self.peak_bytes)
    }

    /// Says it in the log.
    pub(crate) fn log(device: Device) {
        match Self::of(device) {
            Ok(peak) => {
                let (host, gpu) = (peak.peak_bytes >> 20, peak.gpu_peak_bytes.map(|b| b >> 20));
                tracing::info!(host_mib = host, gpu_mib = gpu, "most memory so far");
            }
            Err(error) => tracing::warn!(%error, "memory in use cannot be told"),
        }
    }
}
