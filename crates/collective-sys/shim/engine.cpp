// Rendezvous store, process group and the collectives.
#include "shim.h"

#include <cstring>

using milliseconds = std::chrono::milliseconds;
using GroupType = c10d::ProcessGroup::BackendType;

static thread_local std::string last_error;
std::atomic<int64_t> mcl_waited{0};

void mcl_set_error(const std::string& text) {
  last_error = text;
}

extern "C" {

const char* mcl_last_error() {
  return last_error.c_str();
}

int64_t mcl_waited_nanoseconds() {
  return mcl_waited.load();
}

// Sizes that the gloo stand-in headers must not change; a test compares them with real gloo's.
size_t mcl_sizeof_gloo_group() {
  return sizeof(c10d::ProcessGroupGloo);
}
size_t mcl_sizeof_gloo_options() {
  return sizeof(c10d::ProcessGroupGloo::Options);
}
size_t mcl_sizeof_gloo_work() {
  return sizeof(c10d::ProcessGroupGloo::AsyncWork);
}

// Connects to host:port. With `listener` >= 0 it first serves a store on that socket, which is bound there, and owns it.
int mcl_store_new(const char* host, uint16_t port, int listener, int64_t timeout_ms, MclStore** out) {
  MCL_GUARD({
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = listener >= 0;
    if (listener >= 0) {
      options.masterListenFd = listener;
    }
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    *out = new MclStore{c10::make_intrusive<c10d::TCPStore>(std::string(host), options)};
  })
}

int mcl_store_prefix(const MclStore* store, const char* prefix, MclStore** out) {
  MCL_GUARD(*out = new MclStore{c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), store->store)})
}

int mcl_store_port(const MclStore* store, uint16_t* out) {
  MCL_GUARD({
    auto* tcp = dynamic_cast<c10d::TCPStore*>(store->store.get());
    TORCH_CHECK(tcp != nullptr, "only a TCP store has a port");
    *out = static_cast<uint16_t>(tcp->getPort());
  })
}

int mcl_store_set_timeout(const MclStore* store, int64_t timeout_ms) {
  MCL_GUARD(store->store->setTimeout(milliseconds(timeout_ms)))
}

int mcl_store_set(const MclStore* store, const char* key, const uint8_t* value, size_t size) {
  MCL_GUARD(store->store->set(key, std::vector<uint8_t>(value, value + size)))
}

// Waits for the key until the store's timeout; copies at most `capacity` bytes, answers the full size.
int mcl_store_get(const MclStore* store, const char* key, uint8_t* buffer, size_t capacity, size_t* size) {
  MCL_GUARD({
    auto value = store->store->get(key);
    *size = value.size();
    if (!value.empty()) {
      std::memcpy(buffer, value.data(), std::min(capacity, value.size()));
    }
  })
}

void mcl_store_free(MclStore* store) {
  delete store;
}

int mcl_group_gloo(const MclStore* store, int rank, int size, int64_t timeout_ms, const char* host, MclGroup** out) {
  MCL_GUARD({
    auto group = c10::make_intrusive<c10d::ProcessGroup>(store->store, rank, size);
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout_ms));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(host));
    options->threads = 2;
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store->store, rank, size, options);
    group->setDefaultBackend(GroupType::GLOO);
    group->setBackend(at::kCPU, GroupType::GLOO, gloo);
    *out = new MclGroup{group, nullptr};
  })
}

typedef c10::intrusive_ptr<c10d::Backend> (*NcclFactory)(
    const c10::intrusive_ptr<c10d::Store>&, int, int, int64_t);

// Adds the NCCL backend made by the separately loaded shim; CUDA tensors then travel over it.
int mcl_group_add_nccl(MclGroup* group, const MclStore* store, void* factory, int64_t timeout_ms) {
  MCL_GUARD({
    auto make = reinterpret_cast<NcclFactory>(factory);
    auto backend = make(store->store, group->group->getRank(), group->group->getSize(), timeout_ms);
    group->group->setBackend(at::kCUDA, GroupType::NCCL, backend);
    group->group->setDefaultBackend(GroupType::NCCL);
    group->nccl = backend;
  })
}

// Ends NCCL's collectives, here and at the peers; callable from any thread. Gloo has nothing like it: its
// sockets are shut down from outside (sockets.rs).
int mcl_group_abort(const MclGroup* group) {
  MCL_GUARD({
    if (group->nccl) {
      group->nccl->abort();
    }
  })
}

// For Gloo's collectives that start from now on. NCCL's waits do not block, so its own deadline stays.
int mcl_group_set_timeout(const MclGroup* group, int64_t timeout_ms) {
  MCL_GUARD(group->group->getBackend(at::kCPU)->setTimeout(milliseconds(timeout_ms)))
}

void mcl_group_free(MclGroup* group) {
  delete group;
}

// op: 0 sum, 1 max, 2 min.
int mcl_all_reduce(const MclGroup* group, at::Tensor* tensor, int op, MclWork** out) {
  MCL_GUARD({
    c10d::AllreduceOptions options;
    options.reduceOp = op == 1 ? c10d::ReduceOp::MAX : op == 2 ? c10d::ReduceOp::MIN : c10d::ReduceOp::SUM;
    std::vector<at::Tensor> tensors{*tensor};
    *out = new MclWork{group->group->allreduce(tensors, options), tensor->is_cpu()};
  })
}

int mcl_broadcast(const MclGroup* group, at::Tensor* tensor, int root, MclWork** out) {
  MCL_GUARD({
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<at::Tensor> tensors{*tensor};
    *out = new MclWork{group->group->broadcast(tensors, options), tensor->is_cpu()};
  })
}

// output: contiguous [world, ...input's shape].
int mcl_all_gather(const MclGroup* group, at::Tensor* output, at::Tensor* input, MclWork** out) {
  MCL_GUARD(*out = new MclWork{group->group->_allgather_base(*output, *input), input->is_cpu()})
}

int mcl_work_wait(const MclWork* work, int64_t timeout_ms) {
  try {
    mcl_wait(work->work, work->host, timeout_ms < 0 ? kNoTimeout : milliseconds(timeout_ms));
    return MCL_OK;
  } catch (const c10::Error& e) {
    mcl_set_error(e.what_without_backtrace());
  } catch (const std::exception& e) {
    mcl_set_error(e.what());
  } catch (...) {
    mcl_set_error("unknown C++ exception");
  }
  // Whatever ends a wait, the peers did not deliver.
  return MCL_COMMUNICATION;
}

int mcl_work_is_completed(const MclWork* work) {
  return work->work->isCompleted() ? 1 : 0;
}

void mcl_work_free(MclWork* work) {
  delete work;
}

} // extern "C"
