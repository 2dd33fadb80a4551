// The NCCL backend as a separate shared object: built where CUDA's headers are, loaded at run time.
#define USE_C10D_NCCL 1
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

extern "C" __attribute__((visibility("default"))) c10::intrusive_ptr<c10d::Backend> mcl_nccl_factory(
    const c10::intrusive_ptr<c10d::Store>& store,
    int rank,
    int size,
    int64_t timeout_ms) {
  auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
  options->timeout = std::chrono::milliseconds(timeout_ms);
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
}
