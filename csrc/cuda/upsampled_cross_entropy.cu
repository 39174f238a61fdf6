// Cross-entropy of bilinearly upsampled logits (docs/math.md 2).
//
// At 8x768x768, K=19, from 192x192, float32: reads 22 MB of logits and 5 MB of labels, writes 22 MB
// of gradient, and 30 MB of it once more on the way, mostly inside the L2 cache. 90 million exp2,
// which the special-function units of 132 multiprocessors need 25 us for: the floor. Around each
// stand 4 multiply-adds: 1 for the logit, 1 for the sum, 2 for the gradient; what a cell and a
// pixel need besides makes about 11 instructions a pixel and class at 4x upsampling, 8 at 16x.
// Launches: 2 forward, 1 backward, 2 second order.
#include <algorithm>
#include <tuple>

#include "columns_glue.h"
#include "upsampled_cross_entropy_block.h"
#include "upsampled_cross_entropy_finish.h"

namespace pinmem {
namespace {

using namespace upsampled_cross_entropy_op;

/// As many as run at once on a large GPU.
constexpr int64_t kMostFinishBlocks = 1024;

template <class A, int kClasses, Pass kPass>
void run_block(const Stream& stream, const Task<A>& task) {
  const int64_t shared =
      task.shared_elements(kPass) * static_cast<int64_t>(sizeof(A)) +
      (task.grid.most_emitted + 2) * static_cast<int64_t>(sizeof(int)) +
      task.grid.most_rows * kColumnThreads * static_cast<int64_t>(sizeof(uint16_t));
  stream.launch(cross_entropy_block<A, kClasses, kPass>, task.grid.blocks(), kColumnThreads, shared,
                task);
}

template <class A, Pass kPass>
void run_blocks(const Stream& stream, const Task<A>& task) {
  if constexpr (sizeof(A) == 4) {
    if (task.grid.classes_a_lane == 19) return run_block<A, 19, kPass>(stream, task);
  }
  run_block<A, 8, kPass>(stream, task);
}

/// Arguments of all passes that go over the pixels.
struct Arguments {
  const Tensor& logits;
  const Tensor& target;
  const MaybeTensor& class_weight;
  double temperature;
  int64_t ignore_index;
};

/// Runs both kernels; `gradient` may be null. The loss is scaled as the pass needs it.
template <class A, Pass kPass>
void run(const Arguments& arguments, const Tensor* tangent, const Tensor* grad_loss,
         const Tensor& loss, const Tensor* gradient) {
  const auto& [logits, target, class_weight, temperature, ignore_index] = arguments;
  const Stream stream(logits);
  const Map map = map_of("logits", logits);
  Task<A> task{};
  task.labels = labels_of("target", target, map.batch, map.channels, ignore_index);
  task.grid =
      make_grid(map.batch, map.channels, {map.height, target.size(1)}, {map.width, target.size(2)},
                classes_a_lane<A>(map.channels), map.channels_last);
  const Grid& grid = task.grid;
  check_groups(grid);
  task.logits = logits_of(map, logits);
  if (tangent != nullptr) task.tangent = tangent->const_data_ptr();
  if (class_weight) {
    STD_TORCH_CHECK(class_weight->dim() == 1 && class_weight->size(0) == map.channels,
                    "class_weight: expected [", map.channels, "]");
    check_contiguous("class_weight", *class_weight);
    task.class_weight = class_weight->const_data_ptr();
    task.class_weight_type = element_of("class_weight", *class_weight);
  }
  task.exponent_scale = static_cast<A>(kLog2e / temperature);
  task.tangent_scale = static_cast<A>(1 / temperature);
  task.missing = static_cast<A>(std::max(kMissing * temperature / kLog2e, -1e38));

  Scratch scratch;
  const int64_t partials = scratch.take<double>(2 * grid.blocks());
  const int64_t laid_out =
      scratch.take<A>(kPass == Pass::loss ? 0
                                          : map.batch * map.channels * grid.bands.laid_out() *
                                                grid.strips.laid_out());
  scratch.allocate(logits);
  task.partials = scratch.at<double>(partials);
  task.laid_out = scratch.at<A>(laid_out);
  run_blocks<A, kPass>(stream, task);

  Finish<A> finish{};
  finish.grid = grid;
  finish.laid_out = task.laid_out;
  finish.partials = task.partials;
  finish.loss_scale = kPass == Pass::second ? 1 : kLn2;
  finish.gradient_scale = 1 / temperature;
  finish.loss = write<A>(loss);
  if (grad_loss != nullptr) finish.grad_loss = read<A>(*grad_loss);
  if (gradient != nullptr) {
    finish.gradient = gradient->mutable_data_ptr();
    finish.gradient_type = element_of("gradient", *gradient);
  }
  const int64_t blocks = std::clamp<int64_t>(finish.pieces(), 1, kMostFinishBlocks);
  stream.launch(cross_entropy_finish<A>, blocks, kFinishThreads, 0, finish);
}

std::tuple<Tensor, Tensor> upsampled_cross_entropy(Tensor logits, Tensor target,
                                                   MaybeTensor class_weight, double temperature,
                                                   int64_t ignore_index, bool need_grad) {
  return dispatch_accumulator(logits, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using A = typename decltype(type)::type;
    const Map map = map_of("logits", logits);
    const Arguments arguments{logits, target, class_weight, temperature, ignore_index};
    const Tensor loss = empty_beside(logits, {}, scalar_type<A>());
    if (!need_grad) {
      run<A, Pass::loss>(arguments, nullptr, nullptr, loss, nullptr);
      return {loss, empty_beside(logits, {0}, scalar_type<A>())};
    }
    const Tensor unit_grad = empty_map_beside(logits, map, map.channels, scalar_type<A>());
    run<A, Pass::gradient>(arguments, nullptr, nullptr, loss, &unit_grad);
    return {loss, unit_grad};
  });
}

Tensor upsampled_cross_entropy_backward(Tensor grad_loss, Tensor unit_grad, Tensor logits, Tensor,
                                        MaybeTensor, double, int64_t) {
  const Map map = map_of("logits", logits);
  check_map("unit_grad", unit_grad, map, map.channels);
  const Tensor grad_logits = empty_map_beside(logits, map, map.channels, logits.scalar_type());
  const Stream stream(logits);
  dispatch_elements("logits", logits, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulator_t<T>;
    const int64_t count = logits.numel();
    const A* from = read<A>(unit_grad);
    T* to = write<T>(grad_logits);
    stream.launch(scale_by<A, T>, ceil_div(count, Vector16<A>::size * 256), 256, 0, from,
                  read<A>(grad_loss), to, count, aligned16(from) && aligned16(to));
  });
  return grad_logits;
}

std::tuple<Tensor, Tensor> upsampled_cross_entropy_double_backward(
    Tensor logits_tangent, Tensor grad_loss, Tensor, Tensor logits, Tensor target,
    MaybeTensor class_weight, double temperature, int64_t ignore_index) {
  return dispatch_accumulator(logits, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using A = typename decltype(type)::type;
    const Map map = map_of("logits", logits);
    check_map("logits_tangent", logits_tangent, map, map.channels);
    STD_TORCH_CHECK(logits_tangent.scalar_type() == logits.scalar_type(),
                    "logits_tangent: expected the type of the logits");
    const Arguments arguments{logits, target, class_weight, temperature, ignore_index};
    const Tensor loss_dot = empty_beside(logits, {}, scalar_type<A>());
    const Tensor grad_logits = empty_map_beside(logits, map, map.channels, logits.scalar_type());
    run<A, Pass::second>(arguments, &logits_tangent, &grad_loss, loss_dot, &grad_logits);
    return {loss_dot, grad_logits};
  });
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cuda, PINMEM_CUDA_KEY, m) {
  m.impl("upsampled_cross_entropy", TORCH_BOX(&pinmem::upsampled_cross_entropy));
  m.impl("upsampled_cross_entropy_backward", TORCH_BOX(&pinmem::upsampled_cross_entropy_backward));
  m.impl("upsampled_cross_entropy_double_backward",
         TORCH_BOX(&pinmem::upsampled_cross_entropy_double_backward));
}
