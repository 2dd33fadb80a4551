// Handles and the exception fence of the shim. Nothing C++ throws may cross into Rust: every exported
// function runs inside MCL_GUARD and answers a code; the text of the last error is per thread.
#pragma once
#define USE_C10D_GLOO 1
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>
#include <torch/torch.h>

#include <sched.h>

#include <atomic>
#include <chrono>
#include <string>

// 0 is success. 2 is a failure of communication (a peer, the network, a deadline); 1 is anything else.
enum McCode : int { MCL_OK = 0, MCL_OTHER = 1, MCL_COMMUNICATION = 2 };

void mcl_set_error(const std::string& text);

// Nanoseconds that this process's threads have waited in collectives that block them.
extern std::atomic<int64_t> mcl_waited;

#define MCL_GUARD(...)                          \
  try {                                         \
    __VA_ARGS__;                                \
    return MCL_OK;                              \
  } catch (const c10::DistError& e) {           \
    mcl_set_error(e.what_without_backtrace());  \
    return MCL_COMMUNICATION;                   \
  } catch (const c10::Error& e) {               \
    mcl_set_error(e.what_without_backtrace());  \
    return MCL_OTHER;                           \
  } catch (const std::exception& e) {           \
    mcl_set_error(e.what());                    \
    return MCL_OTHER;                           \
  } catch (...) {                               \
    mcl_set_error("unknown C++ exception");     \
    return MCL_OTHER;                           \
  }

// Waits for a small collective. Blocking at once costs two wake-ups of an idle core, which on virtual machines
// is most of a collective's time; so this thread first yields to gloo's for a while. On CUDA waiting only
// orders streams and there is nothing to poll for.
inline void mcl_wait(const c10::intrusive_ptr<c10d::Work>& work, bool host, std::chrono::milliseconds timeout = kNoTimeout) {
  using clock = std::chrono::steady_clock;
  const auto begin = clock::now();
  struct Count {
    clock::time_point begin;
    ~Count() {
      mcl_waited += std::chrono::duration_cast<std::chrono::nanoseconds>(clock::now() - begin).count();
    }
  } count{begin};
  if (host) {
    const auto until = begin + std::chrono::milliseconds(5);
    while (!work->isCompleted() && clock::now() < until) {
      sched_yield();
    }
  }
  work->wait(timeout);
}

struct MclStore {
  c10::intrusive_ptr<c10d::Store> store;
};

struct MclGroup {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  // Null on CPU.
  c10::intrusive_ptr<c10d::Backend> nccl;
};

struct MclWork {
  c10::intrusive_ptr<c10d::Work> work;
  // Whether its tensors lie in host memory.
  bool host;
};

// The logger is declared after the reducer so that it dies first.
struct MclReducer {
  std::shared_ptr<c10d::Reducer> reducer;
  std::shared_ptr<c10d::Logger> logger;
};
