//! Ranks talking to each other: rendezvous [`Store`], [`Group`], gradient [`Reducer`].
//!
//! Role: the safe face of c10d. Invariants: every wait has a deadline; every failure is a value that names
//! the collective, the rank and the generation; a group is good for one generation and is dropped at its
//! first error, so that ranks not talking to the dead peer wake up too; a [`Lifeline`] ends any wait from
//! another thread. Left out: who is in a group and
//! what to do after a failure, which the coordinator and the rank decide.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod group;
mod lifeline;
mod reducer;
mod store;

pub use group::{CollectiveError, Group, Membership, batch_norm};
pub use lifeline::Lifeline;
pub use mcl_collective_sys::{
    Autocast, CudaError, DeviceMemory, EngineError, NcclFactory, ReduceOp, device_memory, exit_at_once,
    load_cuda, load_nccl, many, pinned, waited,
};
pub use reducer::{Reducer, autocast, backward, drop_gradient, on_gradient, ready_order};
pub use store::Store;
