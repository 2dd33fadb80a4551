// What a step asks of a device besides its collectives: one operation over many tensors, host memory that a GPU copies
// from by itself, and how much memory was in use.
#include "shim.h"

#include <c10/core/CachingDeviceAllocator.h>

#include <cstring>

static std::vector<at::Tensor> listed(at::Tensor* const* tensors, int n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (int i = 0; i < n; ++i) {
    out.push_back(*tensors[i]);
  }
  return out;
}

extern "C" {

// to *= factor
int mcl_many_scale(at::Tensor* const* to, int n, double factor) {
  MCL_GUARD({
    at::NoGradGuard no_grad;
    at::_foreach_mul_(listed(to, n), factor);
  })
}

// to += factor * from
int mcl_many_add(at::Tensor* const* to, at::Tensor* const* from, int n, double factor) {
  MCL_GUARD({
    at::NoGradGuard no_grad;
    at::_foreach_add_(listed(to, n), listed(from, n), factor);
  })
}

// to[i] += factors[i] * from[i]; factors: [n] on the device of the others. Nothing waits for the device.
int mcl_many_add_scaled(at::Tensor* const* to, at::Tensor* const* from, at::Tensor* factors, int n) {
  MCL_GUARD({
    at::NoGradGuard no_grad;
    at::_foreach_addcmul_(listed(to, n), listed(from, n), factors->unbind(0), 1);
  })
}

// to += weight * (towards - to)
int mcl_many_lerp(at::Tensor* const* to, at::Tensor* const* towards, int n, double weight) {
  MCL_GUARD({
    at::NoGradGuard no_grad;
    at::_foreach_lerp_(listed(to, n), listed(towards, n), weight);
  })
}

// L2 norm of each: [n] on their device. n > 0.
int mcl_many_norms(at::Tensor* const* tensors, int n, at::Tensor** out) {
  MCL_GUARD({
    at::NoGradGuard no_grad;
    *out = new at::Tensor(at::stack(at::_foreach_norm(listed(tensors, n), 2), 0));
  })
}

// Bytes in page-locked memory: a copy from there to a GPU needs neither the CPU nor a wait. Where there is no GPU, an error.
int mcl_pinned_bytes(const uint8_t* bytes, size_t size, at::Tensor** out) {
  MCL_GUARD({
    auto options = at::TensorOptions().dtype(at::kByte).pinned_memory(true);
    auto tensor = at::empty({static_cast<int64_t>(size)}, options);
    std::memcpy(tensor.data_ptr<uint8_t>(), bytes, size);
    *out = new at::Tensor(tensor);
  })
}

// Most bytes that tensors on CUDA device `index` have held at once, most that were taken from the device for them, and the
// device's own size.
int mcl_cuda_memory(int index, int64_t* peak, int64_t* reserved, int64_t* total) {
  MCL_GUARD({
    auto* allocator = at::getDeviceAllocator(at::kCUDA);
    *peak = 0;
    *reserved = 0;
    *total = 0;
    // Untouched so far: nothing is held.
    if (allocator->initialized()) {
      const auto stats = allocator->getDeviceStats(static_cast<at::DeviceIndex>(index));
      const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
      *peak = stats.allocated_bytes[all].peak;
      *reserved = stats.reserved_bytes[all].peak;
      *total = static_cast<int64_t>(allocator->getMemoryInfo(static_cast<at::DeviceIndex>(index)).second);
    }
  })
}

} // extern "C"
