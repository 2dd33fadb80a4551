//! Owning handles over the shim.

use crate::ffi;
use std::ffi::{CStr, CString, c_int, c_void};
use std::net::TcpListener;
use std::os::fd::{IntoRawFd, RawFd};
use std::ptr::{NonNull, null, null_mut};
use tch::Tensor;
use torch_sys::C_tensor;

/// A store that is only connected to.
const NO_LISTENER: RawFd = -1;

/// What the engine said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// A peer, the network or a deadline.
    #[error("{0}")]
    Communication(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// How values are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// Added.
    Sum,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

pub(crate) fn check(code: c_int) -> Result<(), EngineError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the shim answers a pointer to a thread-local, NUL-terminated string that lives until the next
    // failing call on this thread; it is copied before any.
    let text = unsafe { CStr::from_ptr(ffi::mcl_last_error()) }.to_string_lossy().trim().to_owned();
    // c10d reports many broken connections as plain runtime errors; their words give them away.
    let told = ["onnection", "imed out", "imeout", "peer", "socket", "ECONN", "broken pipe"];
    if code == 2 || told.iter().any(|word| text.contains(word)) {
        Err(EngineError::Communication(text))
    } else {
        Err(EngineError::Other(text))
    }
}

fn c_string(text: &str) -> Result<CString, EngineError> {
    CString::new(text).map_err(|_| EngineError::Other(format!("`{text:?}` holds a NUL byte")))
}

pub(crate) fn raw(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

fn raws(tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(raw).collect()
}

pub(crate) fn count(n: usize) -> Result<c_int, EngineError> {
    c_int::try_from(n).map_err(|_| EngineError::Other(format!("{n} tensors are too many")))
}

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $free:path) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(NonNull<$raw>);

        // SAFETY: c10d's stores, groups, works and reducers are reference-counted and their methods used
        // here may be called from any thread; the handle owns its reference.
        unsafe impl Send for $name {}

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the pointer came from the shim's `new` and is freed once, here.
                unsafe { let _ = $free(self.0.as_ptr()); }
            }
        }

        impl $name {
            fn made(code: c_int, pointer: *mut $raw) -> Result<Self, EngineError> {
                check(code)?;
                NonNull::new(pointer).map(Self).ok_or_else(|| EngineError::Other("the engine answered null".into()))
            }
        }
    };
}

handle!(
    /// A key-value store that ranks meet at.
    Store, ffi::MclStore, ffi::mcl_store_free
);
handle!(
    /// Ranks that can talk to each other.
    Group, ffi::MclGroup, ffi::mcl_group_free
);
handle!(
    /// A collective under way.
    Work, ffi::MclWork, ffi::mcl_work_free
);
handle!(
    /// DDP's bucketed gradient all-reduce.
    Reducer, ffi::MclReducer, ffi::mcl_reducer_free
);

// SAFETY: every method called through a shared reference (set, get, prefix, port, the collectives, abort)
// is documented thread-safe by c10d; the group's abort is meant to be called from a control thread.
unsafe impl Sync for Store {}
// SAFETY: as for Store.
unsafe impl Sync for Group {}

/// Factory exported by the NCCL shim.
#[derive(Debug, Clone, Copy)]
pub struct NcclFactory(pub(crate) *mut c_void);

impl Store {
    /// A client of the store at `host:port`.
    ///
    /// # Errors
    /// When nothing answers within `timeout_ms`.
    pub fn connect(host: &str, port: u16, timeout_ms: i64) -> Result<Self, EngineError> {
        Self::tcp(host, port, NO_LISTENER, timeout_ms)
    }

    /// Serves a store on `listener`, which the engine closes with the store, and is its first client.
    ///
    /// # Errors
    /// When the socket cannot be listened at. What becomes of its descriptor then is the engine's business:
    /// closing it here too could close another one's.
    pub fn host(listener: TcpListener, timeout_ms: i64) -> Result<Self, EngineError> {
        let at = listener.local_addr().map_err(|e| EngineError::Other(format!("a listening socket: {e}")))?;
        Self::tcp(&at.ip().to_string(), at.port(), listener.into_raw_fd(), timeout_ms)
    }

    fn tcp(host: &str, port: u16, listener: RawFd, timeout_ms: i64) -> Result<Self, EngineError> {
        let host = c_string(host)?;
        let mut out = null_mut();
        // SAFETY: `host` outlives the call; a listener is given away to the engine; `out` is written on success only.
        let code = unsafe { ffi::mcl_store_new(host.as_ptr(), port, listener, timeout_ms, &raw mut out) };
        Self::made(code, out)
    }

    /// The same store with every key under `prefix`.
    ///
    /// # Errors
    /// Never in practice; the engine may refuse.
    pub fn prefixed(&self, prefix: &str) -> Result<Self, EngineError> {
        let prefix = c_string(prefix)?;
        let mut out = null_mut();
        // SAFETY: self's pointer is live.
        let code = unsafe { ffi::mcl_store_prefix(self.0.as_ptr(), prefix.as_ptr(), &raw mut out) };
        Self::made(code, out)
    }

    /// Bounds later waits for keys.
    ///
    /// # Errors
    /// Never in practice; the engine may refuse.
    pub fn set_timeout(&self, timeout_ms: i64) -> Result<(), EngineError> {
        // SAFETY: self's pointer is live.
        check(unsafe { ffi::mcl_store_set_timeout(self.0.as_ptr(), timeout_ms) })
    }

    /// The port a server listens at.
    ///
    /// # Errors
    /// For a prefixed store.
    pub fn port(&self) -> Result<u16, EngineError> {
        let mut port = 0;
        // SAFETY: self's pointer is live.
        check(unsafe { ffi::mcl_store_port(self.0.as_ptr(), &raw mut port) })?;
        Ok(port)
    }

    /// Sets a key.
    ///
    /// # Errors
    /// When the store's host is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), EngineError> {
        let key = c_string(key)?;
        // SAFETY: `value` outlives the call, which copies it.
        check(unsafe { ffi::mcl_store_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// Waits for a key, at most the store's timeout.
    ///
    /// # Errors
    /// When it does not come, or is longer than 64 KiB.
    pub fn get(&self, key: &str) -> Result<Vec<u8>, EngineError> {
        let key = c_string(key)?;
        let mut buffer = vec![0; 1 << 16];
        let mut size = 0;
        // SAFETY: the shim writes at most `buffer.len()` bytes.
        check(unsafe {
            ffi::mcl_store_get(
                self.0.as_ptr(),
                key.as_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut size,
            )
        })?;
        if size > buffer.len() {
            return Err(EngineError::Other(format!(
                "store value of {size} bytes, expected at most {}",
                buffer.len()
            )));
        }
        buffer.truncate(size);
        Ok(buffer)
    }
}

impl Group {
    /// A Gloo group over `store`; `host` is this rank's own address, which peers connect to.
    ///
    /// # Errors
    /// When not all ranks arrive within the timeout.
    pub fn gloo(
        store: &Store,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        host: &str,
    ) -> Result<Self, EngineError> {
        let host = c_string(host)?;
        let mut out = null_mut();
        // SAFETY: the store's pointer is live; the group keeps its own reference.
        let code = unsafe {
            ffi::mcl_group_gloo(store.0.as_ptr(), rank, size, timeout_ms, host.as_ptr(), &raw mut out)
        };
        Self::made(code, out)
    }

    /// Adds NCCL for CUDA tensors.
    ///
    /// # Errors
    /// When there is no GPU, or the ranks do not meet.
    pub fn add_nccl(
        &mut self,
        store: &Store,
        factory: NcclFactory,
        timeout_ms: i64,
    ) -> Result<(), EngineError> {
        // SAFETY: the factory is the symbol that `load_nccl` found in the shim built with these headers.
        check(unsafe { ffi::mcl_group_add_nccl(self.0.as_ptr(), store.0.as_ptr(), factory.0, timeout_ms) })
    }

    /// Ends NCCL's collectives, here and at the peers; callable from another thread. Gloo's end through
    /// [`crate::SocketBaseline::shut_down_newer`].
    ///
    /// # Errors
    /// When the engine refuses.
    pub fn abort(&self) -> Result<(), EngineError> {
        // SAFETY: self's pointer is live; NCCL's abort is meant to be called from another thread.
        check(unsafe { ffi::mcl_group_abort(self.0.as_ptr()) })
    }

    /// Deadline of the collectives that start from now on, those inside backward among them.
    ///
    /// # Errors
    /// When a backend has no such thing.
    pub fn set_timeout(&self, timeout_ms: i64) -> Result<(), EngineError> {
        // SAFETY: self's pointer is live; called between collectives by the thread that starts them.
        check(unsafe { ffi::mcl_group_set_timeout(self.0.as_ptr(), timeout_ms) })
    }

    /// Starts an all-reduce in place.
    ///
    /// # Errors
    /// When a peer is gone.
    pub fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Work, EngineError> {
        let op = match op {
            ReduceOp::Sum => 0,
            ReduceOp::Max => 1,
            ReduceOp::Min => 2,
        };
        let mut out = null_mut();
        // SAFETY: the tensor is live; c10d keeps its own reference while the work runs.
        let code = unsafe { ffi::mcl_all_reduce(self.0.as_ptr(), raw(tensor), op, &raw mut out) };
        Work::made(code, out)
    }

    /// Starts a broadcast in place from `root`.
    ///
    /// # Errors
    /// When a peer is gone.
    pub fn broadcast(&self, tensor: &Tensor, root: c_int) -> Result<Work, EngineError> {
        let mut out = null_mut();
        // SAFETY: as in `all_reduce`.
        let code = unsafe { ffi::mcl_broadcast(self.0.as_ptr(), raw(tensor), root, &raw mut out) };
        Work::made(code, out)
    }

    /// Starts a gather of every rank's `input` into `output`, contiguous `[world, ..input]`.
    ///
    /// # Errors
    /// When a peer is gone or the shapes do not fit.
    pub fn all_gather(&self, output: &Tensor, input: &Tensor) -> Result<Work, EngineError> {
        let mut out = null_mut();
        // SAFETY: as in `all_reduce`.
        let code = unsafe { ffi::mcl_all_gather(self.0.as_ptr(), raw(output), raw(input), &raw mut out) };
        Work::made(code, out)
    }
}

impl Work {
    /// Waits, at most `timeout_ms` (negative: the group's timeout).
    ///
    /// # Errors
    /// When a peer is gone, the group was aborted or time is up.
    pub fn wait(&self, timeout_ms: i64) -> Result<(), EngineError> {
        // SAFETY: self's pointer is live.
        check(unsafe { ffi::mcl_work_wait(self.0.as_ptr(), timeout_ms) })
    }

    /// Whether it is over.
    pub fn is_completed(&self) -> bool {
        // SAFETY: self's pointer is live.
        unsafe { ffi::mcl_work_is_completed(self.0.as_ptr()) != 0 }
    }
}

impl Reducer {
    /// Buckets for `params`, given in gradient-ready order.
    ///
    /// # Errors
    /// When a rank's parameters have other shapes, or a peer is gone.
    pub fn new(
        group: &Group,
        params: &[Tensor],
        bucket_bytes: i64,
        first_bucket_bytes: i64,
    ) -> Result<Self, EngineError> {
        let pointers = raws(params);
        let n = count(params.len())?;
        let mut out = null_mut();
        // SAFETY: `pointers` holds n live tensors; the reducer keeps its own references.
        let code = unsafe {
            ffi::mcl_reducer_new(
                group.0.as_ptr(),
                pointers.as_ptr(),
                n,
                bucket_bytes,
                first_bucket_bytes,
                &raw mut out,
            )
        };
        Self::made(code, out)
    }

    /// Before the forward pass of a step.
    ///
    /// # Errors
    /// When the buckets would change, which would change the order of additions.
    pub fn prepare_forward(&self) -> Result<(), EngineError> {
        // SAFETY: self's pointer is live.
        check(unsafe { ffi::mcl_reducer_prepare_forward(self.0.as_ptr()) })
    }

    /// Before the backward pass whose gradients are to be reduced.
    ///
    /// # Errors
    /// When the last step's reduction never finished.
    pub fn prepare_backward(&self) -> Result<(), EngineError> {
        // SAFETY: self's pointer is live.
        check(unsafe { ffi::mcl_reducer_prepare_backward(self.0.as_ptr()) })
    }

    /// How many buckets there are.
    pub fn buckets(&self) -> usize {
        // SAFETY: self's pointer is live.
        usize::try_from(unsafe { ffi::mcl_reducer_bucket_count(self.0.as_ptr()) }).unwrap_or(0)
    }
}

/// Calls `call` in every backward from now on, right after `param`'s gradient is there.
///
/// # Errors
/// When `param` is no leaf of a graph.
pub fn on_gradient(param: &Tensor, call: extern "C" fn()) -> Result<(), EngineError> {
    // SAFETY: the tensor is live; a plain function outlives every hook.
    check(unsafe { ffi::mcl_on_gradient(raw(param), call) })
}

/// Lets go of a parameter's gradient.
///
/// # Errors
/// Whatever autograd says.
pub fn drop_gradient(param: &Tensor) -> Result<(), EngineError> {
    // SAFETY: the tensor is live.
    check(unsafe { ffi::mcl_drop_gradient(raw(param)) })
}

/// How long this process's threads have waited in blocking collectives since its start, all together.
pub fn waited() -> std::time::Duration {
    // SAFETY: a plain function without arguments.
    std::time::Duration::from_nanos(unsafe { ffi::mcl_waited_nanoseconds() }.try_into().unwrap_or(0))
}

/// Backward pass from a scalar.
///
/// # Errors
/// [`EngineError::Communication`] when a collective inside it failed.
pub fn backward(loss: &Tensor) -> Result<(), EngineError> {
    // SAFETY: the tensor is live.
    check(unsafe { ffi::mcl_backward(raw(loss)) })
}

/// Runs backward from `loss`; the indices of `params` whose gradients came, in that order.
///
/// # Errors
/// Whatever autograd says.
pub fn ready_order(loss: &Tensor, params: &[Tensor]) -> Result<Vec<usize>, EngineError> {
    let pointers = raws(params);
    let n = count(params.len())?;
    let mut order = vec![0_i64; params.len()];
    let mut found = 0;
    // SAFETY: `pointers` holds n live tensors; `order` has room for n indices, and the shim writes no more.
    check(unsafe {
        ffi::mcl_ready_order(raw(loss), pointers.as_ptr(), n, order.as_mut_ptr(), &raw mut found)
    })?;
    order.truncate(usize::try_from(found).unwrap_or(0));
    Ok(order.into_iter().filter_map(|i| usize::try_from(i).ok()).collect())
}

/// Batch norm over all ranks' rows, or this process's alone without a group, of one or two batches side by side: each is
/// normalised by its own statistics, in its place, and their numbers travel together. `[n, C]` or `[n, C, h, w]`, any n a
/// rank. Answers the statistics, [batches, 2, C]: mean and unbiased variance.
///
/// # Errors
/// When a peer is gone or shapes do not fit.
pub fn batch_norm(
    group: Option<&Group>,
    batches: &mut [Tensor],
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor, EngineError> {
    let optional = |t: Option<&Tensor>| t.map_or(null_mut(), raw);
    let pointers = raws(batches);
    let mut out = vec![null_mut(); pointers.len()];
    let mut statistics = null_mut();
    // SAFETY: all tensors are live; `out` has room for as many tensors as there are batches; the autograd node keeps an
    // owning pointer to the group.
    check(unsafe {
        ffi::mcl_batch_norm(
            group.map_or(null(), |group| group.0.as_ptr().cast_const()),
            pointers.as_ptr(),
            count(pointers.len())?,
            optional(weight),
            optional(bias),
            eps,
            out.as_mut_ptr(),
            &raw mut statistics,
        )
    })?;
    for (batch, out) in batches.iter_mut().zip(out) {
        // SAFETY: on success every entry is a new tensor that Rust now owns.
        *batch = unsafe { Tensor::from_ptr(out) };
    }
    // SAFETY: as above.
    Ok(unsafe { Tensor::from_ptr(statistics) })
}

/// Sizes of ProcessGroupGloo, its Options and its AsyncWork as the shim was compiled.
pub fn gloo_sizes() -> [usize; 3] {
    // SAFETY: plain functions without arguments.
    unsafe { [ffi::mcl_sizeof_gloo_group(), ffi::mcl_sizeof_gloo_options(), ffi::mcl_sizeof_gloo_work()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gloo_stand_in_headers_have_real_gloo_sizes() {
        assert_eq!(gloo_sizes(), [488, 176, 784]);
    }
}
