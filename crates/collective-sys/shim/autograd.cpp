// What hooks into autograd: DDP's Reducer, gradient-ready order, synchronised batch norm.
#include "shim.h"

#include <ATen/OpMathType.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

at::Tensor per_channel(const at::Tensor& v, const at::Tensor& x) {
  std::vector<int64_t> shape(x.dim(), 1);
  shape[1] = v.numel();
  return v.view(shape);
}

std::optional<at::Tensor> given(const at::Tensor* t) {
  return t ? std::optional<at::Tensor>(*t) : std::nullopt;
}

c10::intrusive_ptr<c10d::ProcessGroup> group_of(const c10::IValue& value) {
  return c10::static_intrusive_pointer_cast<c10d::ProcessGroup>(value.toCapsule());
}

// Batch norm whose statistics are those of all ranks' rows together; of this process's alone without a group. Ranks may
// hold different numbers of rows. Each rank's (mean, sum of squared deviations, count) is gathered and combined in rank
// order by every rank alike (Chan et al. 1979), so that all hold the same bits and nothing cancels. Two batches may be
// normalised side by side, each by its own statistics: they travel together, forward and backward.
struct BatchNorm : torch::autograd::Function<BatchNorm> {
  // Fills `statistics` [batches, 2, C] with each batch's mean and unbiased variance.
  static tensor_list forward(
      AutogradContext* ctx,
      const at::Tensor& first,
      const std::optional<at::Tensor>& second,
      const std::optional<at::Tensor>& weight,
      const std::optional<at::Tensor>& bias,
      at::Tensor statistics,
      double eps,
      const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
    tensor_list batches{first};
    if (second) {
      batches.push_back(*second);
    }
    const auto n = static_cast<int64_t>(batches.size());
    const int64_t channels = first.size(1);
    const auto stat_type = at::toOpMathType(first.scalar_type());
    tensor_list own;
    for (const auto& x : batches) {
      // One pass over memory, where var_mean takes ten times as long; the variance is the biased one.
      auto [mean, var] = at::batch_norm_update_stats(x.to(stat_type), std::nullopt, std::nullopt, /*momentum=*/0.0);
      const double rows = static_cast<double>(x.numel() / channels);
      own.insert(own.end(), {mean, var * rows, at::full({1}, rows, mean.options())});
    }
    auto all = at::cat(own).view({1, n, 2 * channels + 1});
    if (group) {
      all = gathered(all.view({-1}), group).view({group->getSize(), n, 2 * channels + 1});
    }
    auto counts = all.narrow(2, 2 * channels, 1);
    auto means = all.narrow(2, 0, channels);
    auto count = counts.sum(0);
    auto mean = (means * counts).sum(0) / count;
    auto deviation = means - mean;
    auto m2 = (all.narrow(2, channels, channels) + deviation * deviation * counts).sum(0);
    auto var = m2 / count;
    statistics.select(1, 0).copy_(mean);
    statistics.select(1, 1).copy_(m2 / (count - 1));

    tensor_list out, kept{weight.value_or(at::Tensor()), mean, var, count};
    for (int64_t i = 0; i < n; ++i) {
      out.push_back(std::get<0>(at::native_batch_norm(
          batches[i], weight, bias, mean[i], var[i], /*training=*/false, /*momentum=*/0.0, eps)));
      kept.push_back(batches[i]);
    }
    ctx->save_for_backward(kept);
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["biased"] = bias.has_value();
    if (group) {
      ctx->saved_data["group"] = c10::IValue::make_capsule(group);
    }
    return out;
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list grads) {
    auto saved = ctx->get_saved_variables();
    const auto& mean = saved[1];
    const auto& var = saved[2];
    const tensor_list batches(saved.begin() + 4, saved.end());
    const auto n = static_cast<int64_t>(batches.size());
    const double eps = ctx->saved_data["eps"].toDouble();
    const bool affine = saved[0].defined();
    const bool biased = ctx->saved_data["biased"].toBool();
    auto weight = affine ? saved[0] : at::ones_like(mean[0]);
    auto found = ctx->saved_data.find("group");
    const bool alone = found == ctx->saved_data.end();
    // Of half precision the engine's fused kernel computes inside in full precision: what follows would have to copy.
    const bool fused = alone && batches[0].scalar_type() != mean.scalar_type();

    tensor_list dx, sums;
    at::Tensor d_weight, d_bias;
    for (int64_t i = 0; i < n; ++i) {
      const auto& x = batches[i];
      grads[i] = grads[i].contiguous(x.suggest_memory_format());
      // Evaluation-mode backward gives sum(dy * xhat) and sum(dy) in one fused pass.
      auto none = std::optional<at::Tensor>();
      auto [d, w, b] = fused
          ? at::native_batch_norm_backward(
                grads[i], x, weight, none, none, mean[i], (var[i] + eps).rsqrt(), /*train=*/true, eps,
                {true, affine, biased})
          : at::native_batch_norm_backward(
                grads[i], x, weight, mean[i], var[i], none, none, /*train=*/false, eps, {false, true, true});
      dx.push_back(d);
      d_weight = i && w.defined() ? d_weight + w : w;
      d_bias = i && b.defined() ? d_bias + b : b;
      if (!fused) {
        sums.insert(sums.end(), {w, b});
      }
    }
    if (!fused) {
      auto total = at::cat(sums).to(mean.scalar_type());
      if (!alone) {
        // One gather and a sum in rank order: for so few numbers half the round trips of an all-reduce.
        total = gathered(total, group_of(found->second)).sum(0);
      }
      total = total.view({n, 2, mean.size(1)}) / saved[3].unsqueeze(1);
      auto inv = (var + eps).rsqrt();
      // dx = inv * w * (dy - mean_dy - xhat * mean_dy_xhat), written as a*dy + b*x + c a channel.
      auto a = inv * weight;
      auto b = -a * inv * total.select(1, 0);
      auto c = -a * total.select(1, 1) - b * mean;
      // Of half precision in full precision: b * x and c may cancel.
      const auto type = mean.scalar_type();
      for (int64_t i = 0; i < n; ++i) {
        const auto& x = batches[i];
        auto d = at::addcmul(per_channel(c[i], x), x.to(type), per_channel(b[i], x));
        dx[i] = d.addcmul_(grads[i].to(type), per_channel(a[i], x)).to(x.scalar_type());
      }
    }
    const at::Tensor none;
    return {dx[0], n > 1 ? dx[1] : none, affine ? d_weight : none, biased ? d_bias : none, none, none, none};
  }

  // What every rank has, by rank: [ranks, numbers].
  static at::Tensor gathered(const at::Tensor& mine, const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
    auto all = at::empty({group->getSize() * mine.numel()}, mine.options());
    auto own = mine;
    mcl_wait(group->_allgather_base(all, own), mine.is_cpu());
    return all.view({group->getSize(), mine.numel()});
  }
};

struct ReadyRecorder : torch::autograd::PostAccumulateGradHook {
  std::vector<int64_t>* order;
  int64_t index;
  ReadyRecorder(std::vector<int64_t>* order, int64_t index) : order(order), index(index) {}
  void operator()(const torch::autograd::Variable&) override {
    order->push_back(index);
  }
};

struct CallingHook : torch::autograd::PostAccumulateGradHook {
  void (*call)();
  explicit CallingHook(void (*call)()) : call(call) {}
  void operator()(const torch::autograd::Variable&) override {
    call();
  }
};

// When the last gradient of a backward pass was there: what follows it is waiting for the Reducer's buckets.
using Clock = std::chrono::steady_clock;
std::atomic<Clock::rep> last_gradient{0};

struct LastGradientHook : torch::autograd::PostAccumulateGradHook {
  void operator()(const torch::autograd::Variable&) override {
    last_gradient = Clock::now().time_since_epoch().count();
  }
};

std::vector<at::Tensor> collect(at::Tensor* const* tensors, int n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (int i = 0; i < n; ++i) {
    out.push_back(*tensors[i]);
  }
  return out;
}

} // namespace

extern "C" {

// Normalises `n` batches (1 or 2) side by side, each by its own statistics, and answers those: [n, 2, C], mean and
// unbiased variance. group may be null (this process's rows alone); weight and bias may be null (no affine part).
int mcl_batch_norm(
    const MclGroup* group,
    at::Tensor* const* batches,
    int n,
    at::Tensor* weight,
    at::Tensor* bias,
    double eps,
    at::Tensor** out,
    at::Tensor** statistics) {
  MCL_GUARD({
    TORCH_CHECK(n == 1 || n == 2, "one batch or two are normalised at once, not ", n);
    auto x = collect(batches, n);
    for (auto& batch : x) {
      TORCH_CHECK(
          batch.dim() >= 2 && batch.size(1) == x[0].size(1) && batch.scalar_type() == x[0].scalar_type(),
          "batches side by side must have the same channels and kind");
    }
    auto options = x[0].options().dtype(at::toOpMathType(x[0].scalar_type())).requires_grad(false);
    auto kept = at::empty({n, 2, x[0].size(1)}, options);
    auto second = given(n > 1 ? batches[1] : nullptr);
    auto normalised =
        BatchNorm::apply(x[0], second, given(weight), given(bias), kept, eps, group ? group->group : nullptr);
    for (int i = 0; i < n; ++i) {
      out[i] = new at::Tensor(normalised[i]);
    }
    *statistics = new at::Tensor(kept);
  })
}

// Runs backward from `loss` and writes into `order` the indices of the parameters whose gradients came,
// in the order they came; `count` is how many did.
int mcl_ready_order(at::Tensor* loss, at::Tensor* const* params, int n, int64_t* order, int* count) {
  MCL_GUARD({
    auto tensors = collect(params, n);
    std::vector<int64_t> seen;
    for (int i = 0; i < n; ++i) {
      torch::autograd::impl::set_post_acc_grad_hooks(tensors[i], std::make_unique<ReadyRecorder>(&seen, i));
    }
    struct Unhook {
      std::vector<at::Tensor>& tensors;
      ~Unhook() {
        for (auto& t : tensors) {
          torch::autograd::impl::set_post_acc_grad_hooks(t, nullptr);
        }
      }
    } unhook{tensors};
    loss->backward();
    TORCH_CHECK(static_cast<int>(seen.size()) <= n, "a parameter's gradient came twice in one backward");
    std::copy(seen.begin(), seen.end(), order);
    *count = static_cast<int>(seen.size());
  })
}

// From now on `call` runs in every backward right after this parameter's gradient is there.
int mcl_on_gradient(at::Tensor* param, void (*call)()) {
  MCL_GUARD(torch::autograd::impl::set_post_acc_grad_hooks(*param, std::make_unique<CallingHook>(call)))
}

// From here on this thread's convolutions and matrix products on the device compute in bf16; trained weights are cast once.
int mcl_autocast_enter(int cuda) {
  MCL_GUARD({
    const auto device = cuda ? at::kCUDA : at::kCPU;
    at::autocast::set_autocast_dtype(device, at::kBFloat16);
    at::autocast::increment_nesting();
    at::autocast::set_autocast_enabled(device, true);
  })
}

// Undoes one mcl_autocast_enter; the outermost drops the cast weights, which the next update would make stale.
int mcl_autocast_leave(int cuda) {
  MCL_GUARD({
    if (at::autocast::decrement_nesting() == 0) {
      at::autocast::clear_cache();
      at::autocast::set_autocast_enabled(cuda ? at::kCUDA : at::kCPU, false);
    }
  })
}

// A backward pass gives its gradient anew instead of adding to an old one.
int mcl_drop_gradient(at::Tensor* param) {
  MCL_GUARD(param->mutable_grad().reset())
}

// `params` in gradient-ready order: the buckets are then those that a rebuild would make.
int mcl_reducer_new(
    const MclGroup* group,
    at::Tensor* const* params,
    int n,
    int64_t bucket_bytes,
    int64_t first_bucket_bytes,
    MclReducer** out) {
  MCL_GUARD({
    auto tensors = collect(params, n);
    c10d::verify_params_across_processes(group->group, tensors, std::nullopt);
    // A gradient that exists becomes a view of its bucket now and is divided by the world's size in place; one that comes
    // to be in the first backward would be multiplied by the reciprocal on its way in: other bits in a fresh process.
    for (auto& tensor : tensors) {
      if (!tensor.grad().defined()) {
        tensor.mutable_grad() = at::zeros_like(tensor);
      }
    }
    std::vector<int64_t> indices(n);
    std::iota(indices.begin(), indices.end(), 0);
    auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(
        tensors,
        {static_cast<size_t>(first_bucket_bytes), static_cast<size_t>(bucket_bytes)},
        std::vector<bool>(n, false),
        indices));
    auto reducer = std::make_shared<c10d::Reducer>(
        tensors,
        buckets,
        group->group,
        std::vector<bool>(n, false),
        bucket_bytes,
        /*find_unused_parameters=*/false,
        /*gradient_as_bucket_view=*/true,
        std::unordered_map<size_t, std::string>{},
        first_bucket_bytes,
        /*skip_all_reduce_unused_params=*/false,
        /*use_python_reducer=*/false,
        std::vector<int64_t>{});
    auto logger = std::make_shared<c10d::Logger>(reducer);
    reducer->set_logger(logger);
    logger->set_construction_data_and_log("mcl", std::vector<int>{}, -1, false, false, false);
    if (n > 0) {
      torch::autograd::impl::set_post_acc_grad_hooks(tensors.back(), std::make_unique<LastGradientHook>());
    }
    *out = new MclReducer{reducer, logger};
  })
}

int mcl_reducer_prepare_forward(const MclReducer* r) {
  MCL_GUARD({
    r->reducer->prepare_for_forward();
    auto shape = [&] {
      std::vector<std::vector<const void*>> buckets;
      for (auto& bucket : r->reducer->get_grad_buckets(/*return_zero_tensors=*/true)) {
        buckets.emplace_back();
        for (auto& p : bucket.getParameters()) {
          buckets.back().push_back(p.unsafeGetTensorImpl());
        }
      }
      return buckets;
    };
    if (r->reducer->should_rebuild_buckets()) {
      auto before = shape();
      if (r->reducer->rebuild_buckets()) {
        TORCH_CHECK(before == shape(), "gradient buckets changed with the rebuild: recorded order and real order differ");
      }
    }
  })
}

int mcl_reducer_prepare_backward(const MclReducer* r) {
  MCL_GUARD(r->reducer->prepare_for_backward({}))
}

int mcl_reducer_bucket_count(const MclReducer* r) {
  try {
    return static_cast<int>(r->reducer->get_grad_buckets(true).size());
  } catch (...) {
    return -1;
  }
}

int mcl_reducer_free(MclReducer* r) {
  MCL_GUARD({
    r->reducer->remove_autograd_hooks();
    delete r;
  })
}

// Backward with the exceptions of hooks (a bucket's all-reduce, a synchronised norm) told apart.
int mcl_backward(at::Tensor* loss) {
  MCL_GUARD({
    last_gradient = 0;
    loss->backward();
    if (auto then = last_gradient.load(); then != 0) {
      auto rest = Clock::now().time_since_epoch() - Clock::duration(then);
      mcl_waited += std::chrono::duration_cast<std::chrono::nanoseconds>(rest).count();
    }
  })
}

} // extern "C"
