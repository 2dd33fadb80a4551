//! Ranks talking to each other: rendezvous [`Store`], [`Group`], gradient [`Reducer`].
//!
//! Role: the safe face of c10d. Invariants: every wait has a deadline; every failure is a value that names
//! the collective, the rank and the generation; a group is good for one generation and is dropped at its
//! first error, so that ranks not talking to the dead peer wake up too. Left out: who is in a group and
//! what to do after a failure, which the coordinator and the rank decide.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod group;
mod reducer;
mod store;

pub use group::{AbortHandle, CollectiveError, Group, Membership};
pub use mcl_collective_sys::{CudaError, NcclFactory, ReduceOp, load_cuda, load_nccl};
pub use reducer::{Reducer, backward, ready_order};
pub use store::Store;
