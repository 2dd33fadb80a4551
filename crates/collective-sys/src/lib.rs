//! The C++ shim over c10d and its safe handles: the one crate with unsafe code.
//!
//! Role: rendezvous store, Gloo (and, where its shim is loaded, NCCL) process group, DDP's Reducer,
//! synchronised batch norm, gradient-ready order, autocast, operations over many tensors at once, page-locked memory,
//! and shutting down the sockets that the engine opened.
//! Invariants: no C++ exception crosses into Rust (the shim
//! catches all and answers a code); every handle frees what it owns. Left out: deadlines, policies and
//! typed errors of the collectives, which `mcl-collective` adds.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod autocast;
mod cuda;
mod device;
mod exit;
mod ffi;
mod handles;
pub mod many;
mod sockets;

pub use autocast::Autocast;
pub use cuda::{CudaError, load_cuda, load_nccl};
pub use device::{DeviceMemory, device_memory, pinned};
pub use exit::exit_at_once;
pub use handles::{
    EngineError, Group, NcclFactory, ReduceOp, Reducer, Store, Work, backward, batch_norm, drop_gradient,
    gloo_sizes, on_gradient, ready_order, waited,
};
pub use sockets::SocketBaseline;
