//! DDP's gradient all-reduce, overlapping the backward pass.

use crate::group::{CollectiveError, Group, Membership, told};
use mcl_collective_sys as sys;
use tch::{Device, Tensor};

/// Bytes of gradients a bucket holds before its all-reduce starts; PyTorch's own default.
const BUCKET_BYTES: i64 = 25 << 20;
/// The first bucket is smaller, so that communication starts early; PyTorch's own default.
const FIRST_BUCKET_BYTES: i64 = 1 << 20;

/// Averages gradients over the group during backward, bucket by bucket.
///
/// The buckets are built from the recorded order in which gradients become ready, so that the engine's own
/// rebuild after the first step changes nothing: the order of additions, and so the bits, are the same
/// in a run's first step and in its thousandth.
#[derive(Debug)]
pub struct Reducer {
    inner: sys::Reducer,
    membership: Membership,
}

impl Reducer {
    /// Buckets for `params`, which stand in gradient-ready order (see [`ready_order`]) and are equal in
    /// number, order and shape on all ranks.
    ///
    /// # Errors
    /// When they are not, or a peer is lost.
    pub fn new(group: &Group, params: &[Tensor]) -> Result<Self, CollectiveError> {
        let membership = group.membership();
        sys::Reducer::new(&group.inner, params, BUCKET_BYTES, FIRST_BUCKET_BYTES)
            .map(|inner| Self { inner, membership })
            .map_err(|e| told("gradient reducer", membership, e))
    }

    /// Call before a step's forward pass.
    ///
    /// # Errors
    /// When the engine's bucket rebuild would change the order of additions.
    pub fn prepare_forward(&self) -> Result<(), CollectiveError> {
        self.inner.prepare_forward().map_err(|e| told("gradient reducer", self.membership, e))
    }

    /// Call before the backward pass whose gradients are to be averaged.
    ///
    /// # Errors
    /// When the last step's reduction never finished.
    pub fn prepare_backward(&self) -> Result<(), CollectiveError> {
        self.inner.prepare_backward().map_err(|e| told("gradient reducer", self.membership, e))
    }

    /// How many buckets there are.
    pub fn buckets(&self) -> usize {
        self.inner.buckets()
    }
}

/// Backward pass from the scalar `loss`; collectives inside it may fail.
///
/// # Errors
/// [`CollectiveError::Peer`] when one did.
pub fn backward(loss: &Tensor, membership: Membership) -> Result<(), CollectiveError> {
    sys::backward(loss).map_err(|e| told("backward", membership, e))
}

/// Convolutions and matrix products of this thread compute in bf16 while the answer lives.
///
/// # Errors
/// When the engine cannot, on this device.
pub fn autocast(device: Device) -> Result<sys::Autocast, CollectiveError> {
    sys::Autocast::bf16(device).map_err(|e| told("autocast", Membership::alone(), e))
}

/// Calls `call` in every backward from now on, right after `param`'s gradient is there.
///
/// # Errors
/// When `param` is no leaf of a graph.
pub fn on_gradient(param: &Tensor, call: extern "C" fn()) -> Result<(), CollectiveError> {
    sys::on_gradient(param, call).map_err(|e| told("gradient hook", Membership::alone(), e))
}

/// `param` has no gradient from now on, until the next backward pass gives it one.
///
/// # Errors
/// When the engine refuses.
pub fn drop_gradient(param: &Tensor) -> Result<(), CollectiveError> {
    sys::drop_gradient(param).map_err(|e| told("gradient", Membership::alone(), e))
}

/// Runs backward from `loss` and answers the indices of those `params` that got a gradient, in the order in
/// which they got it.
///
/// # Errors
/// Whatever autograd says.
pub fn ready_order(
    loss: &Tensor,
    params: &[Tensor],
    membership: Membership,
) -> Result<Vec<usize>, CollectiveError> {
    sys::ready_order(loss, params).map_err(|e| told("gradient order", membership, e))
}
