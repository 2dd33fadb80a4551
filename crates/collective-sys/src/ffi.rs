//! Declarations of the shim's functions; `shim/*.cpp` is their documentation.

use std::ffi::{c_char, c_int, c_void};
use torch_sys::C_tensor;

macro_rules! opaque {
    ($($name:ident),*) => { $(
        #[repr(C)]
        pub struct $name { _private: [u8; 0] }
    )* };
}
opaque!(MclStore, MclGroup, MclWork, MclReducer);

unsafe extern "C" {
    pub fn mcl_last_error() -> *const c_char;
    pub fn mcl_waited_nanoseconds() -> i64;
    pub fn mcl_sizeof_gloo_group() -> usize;
    pub fn mcl_sizeof_gloo_options() -> usize;
    pub fn mcl_sizeof_gloo_work() -> usize;

    pub fn mcl_store_new(
        host: *const c_char,
        port: u16,
        listener: c_int,
        timeout_ms: i64,
        out: *mut *mut MclStore,
    ) -> c_int;
    pub fn mcl_store_prefix(store: *const MclStore, prefix: *const c_char, out: *mut *mut MclStore) -> c_int;
    pub fn mcl_store_port(store: *const MclStore, out: *mut u16) -> c_int;
    pub fn mcl_store_set_timeout(store: *const MclStore, timeout_ms: i64) -> c_int;
    pub fn mcl_store_set(store: *const MclStore, key: *const c_char, value: *const u8, size: usize) -> c_int;
    pub fn mcl_store_get(
        store: *const MclStore,
        key: *const c_char,
        buffer: *mut u8,
        capacity: usize,
        size: *mut usize,
    ) -> c_int;
    pub fn mcl_store_free(store: *mut MclStore);

    pub fn mcl_group_gloo(
        store: *const MclStore,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        host: *const c_char,
        out: *mut *mut MclGroup,
    ) -> c_int;
    pub fn mcl_group_add_nccl(
        group: *mut MclGroup,
        store: *const MclStore,
        factory: *mut c_void,
        timeout_ms: i64,
    ) -> c_int;
    pub fn mcl_group_abort(group: *const MclGroup) -> c_int;
    pub fn mcl_group_set_timeout(group: *const MclGroup, timeout_ms: i64) -> c_int;
    pub fn mcl_group_free(group: *mut MclGroup);

    pub fn mcl_all_reduce(
        group: *const MclGroup,
        tensor: *mut C_tensor,
        op: c_int,
        out: *mut *mut MclWork,
    ) -> c_int;
    pub fn mcl_broadcast(
        group: *const MclGroup,
        tensor: *mut C_tensor,
        root: c_int,
        out: *mut *mut MclWork,
    ) -> c_int;
    pub fn mcl_all_gather(
        group: *const MclGroup,
        output: *mut C_tensor,
        input: *mut C_tensor,
        out: *mut *mut MclWork,
    ) -> c_int;
    pub fn mcl_work_wait(work: *const MclWork, timeout_ms: i64) -> c_int;
    pub fn mcl_work_is_completed(work: *const MclWork) -> c_int;
    pub fn mcl_work_free(work: *mut MclWork);

    pub fn mcl_batch_norm(
        group: *const MclGroup,
        batches: *const *mut C_tensor,
        n: c_int,
        weight: *mut C_tensor,
        bias: *mut C_tensor,
        eps: f64,
        out: *mut *mut C_tensor,
        statistics: *mut *mut C_tensor,
    ) -> c_int;
    pub fn mcl_ready_order(
        loss: *mut C_tensor,
        params: *const *mut C_tensor,
        n: c_int,
        order: *mut i64,
        count: *mut c_int,
    ) -> c_int;
    pub fn mcl_autocast_enter(cuda: c_int) -> c_int;
    pub fn mcl_autocast_leave(cuda: c_int) -> c_int;
    pub fn mcl_drop_gradient(param: *mut C_tensor) -> c_int;
    pub fn mcl_on_gradient(param: *mut C_tensor, call: extern "C" fn()) -> c_int;
    pub fn mcl_reducer_new(
        group: *const MclGroup,
        params: *const *mut C_tensor,
        n: c_int,
        bucket_bytes: i64,
        first_bucket_bytes: i64,
        out: *mut *mut MclReducer,
    ) -> c_int;
    pub fn mcl_reducer_prepare_forward(reducer: *const MclReducer) -> c_int;
    pub fn mcl_reducer_prepare_backward(reducer: *const MclReducer) -> c_int;
    pub fn mcl_reducer_bucket_count(reducer: *const MclReducer) -> c_int;
    pub fn mcl_reducer_free(reducer: *mut MclReducer) -> c_int;
    pub fn mcl_backward(loss: *mut C_tensor) -> c_int;

    pub fn mcl_many_scale(to: *const *mut C_tensor, n: c_int, factor: f64) -> c_int;
    pub fn mcl_many_add(to: *const *mut C_tensor, from: *const *mut C_tensor, n: c_int, factor: f64)
    -> c_int;
    pub fn mcl_many_add_scaled(
        to: *const *mut C_tensor,
        from: *const *mut C_tensor,
        factors: *mut C_tensor,
        n: c_int,
    ) -> c_int;
    pub fn mcl_many_lerp(
        to: *const *mut C_tensor,
        towards: *const *mut C_tensor,
        n: c_int,
        weight: f64,
    ) -> c_int;
    pub fn mcl_many_norms(tensors: *const *mut C_tensor, n: c_int, out: *mut *mut C_tensor) -> c_int;
    pub fn mcl_pinned_bytes(bytes: *const u8, size: usize, out: *mut *mut C_tensor) -> c_int;
    pub fn mcl_cuda_memory(index: c_int, peak: *mut i64, reserved: *mut i64, total: *mut i64) -> c_int;
}
