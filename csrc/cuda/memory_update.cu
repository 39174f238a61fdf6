// The momentum update of the memory and its two losses (docs/math.md 4).
//
// At K=19, C=256 an input is 20 KB and the whole op 0.2 million multiply-adds a pass: nothing but
// latency. Launches: 1 each way, 1 block, whose phases hand on their results in
// shared memory. The floor is the launch, 2 to 3 us. From 2^19 multiply-adds a product on, where
// one block would be slow, every phase is a launch of many blocks.
#include <algorithm>
#include <tuple>

#include "memory_update_phases.h"
#include "tensor.h"

namespace pinmem {
namespace {

using namespace memory_update_op;

constexpr int64_t kMostOneBlock = 1 << 19;
constexpr int64_t kMostBlocks = 1024;

struct Inputs {
  const Tensor &memory, &sums, &mass, &weight, &bias;
  double momentum;
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

void check_like(const char* name, const MaybeTensor& tensor, const Tensor& like) {
  if (!tensor) return;
  check_contiguous(name, *tensor);
  STD_TORCH_CHECK(tensor->scalar_type() == like.scalar_type() && tensor->numel() == like.numel(),
                  name, ": expected the type and size of the tensor it belongs to");
}

void check_loss(const char* name, const MaybeTensor& tensor, const Tensor& memory) {
  STD_TORCH_CHECK(
      !tensor || (tensor->scalar_type() == memory.scalar_type() && tensor->numel() == 1), name,
      ": expected a scalar of the memory's type");
}

void check_inputs(const Inputs& inputs) {
  const auto& [memory, sums, mass, weight, bias, momentum] = inputs;
  STD_TORCH_CHECK(memory.dim() == 2 && memory.numel() > 0, "memory: expected [K >= 1, C >= 1]");
  check_like("memory", memory, memory);
  check_like("sums", sums, memory);
  check_like("weight", weight, memory);
  STD_TORCH_CHECK(mass.numel() == memory.size(0) && mass.scalar_type() == memory.scalar_type(),
                  "mass: expected [K] of the memory's type");
  check_like("mass", mass, mass);
  check_like("bias", bias, mass);
}

Gradients empty_gradients(const Inputs& inputs) {
  const auto like = [](const Tensor& tensor) { return torch::stable::empty_like(tensor); };
  return {like(inputs.memory), like(inputs.sums), like(inputs.mass), like(inputs.weight),
          like(inputs.bias)};
}

template <class T>
Five<T*> gradients_of(const Gradients& gradients) {
  const auto& [memory, sums, mass, weight, bias] = gradients;
  return {write<T>(memory), write<T>(sums), write<T>(mass), write<T>(weight), write<T>(bias)};
}

/// Runs all phases of a pass; `fill` puts in what only this pass has.
template <Pass kPass, class Fill>
void run(const Inputs& inputs, const Fill& fill) {
  const auto& [memory, sums, mass, weight, bias, momentum] = inputs;
  const Stream stream(memory);
  dispatch_elements("memory", memory, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulator_t<T>;
    Update<T> task{};
    task.slots = static_cast<int>(memory.size(0));
    task.channels = static_cast<int>(memory.size(1));
    task.momentum = static_cast<A>(momentum);
    task.in = {read<T>(memory), read<T>(sums), read<T>(mass), read<T>(weight), read<T>(bias)};
    fill(task, type);

    constexpr int kThreads = threads_of(kPass);
    constexpr int kLast = kPass == Pass::forward ? kElements : kSlots;
    const int64_t results_bytes = task.results_size(kPass) * static_cast<int64_t>(sizeof(A));
    const bool one_block = task.pairs() * task.channels <= kMostOneBlock;
    const bool shared = one_block && results_bytes <= Stream::kMostShared;
    Scratch scratch;
    if (!shared) {
      const int64_t results = scratch.take<A>(task.results_size(kPass));
      scratch.allocate(memory);
      task.results = scratch.at<A>(results);
    }
    if (one_block) {
      task.last_phase = kLast;
      stream.launch(memory_update_phases<T, kPass>, 1, kThreads, shared ? results_bytes : 0, task);
      return;
    }
    const int64_t slots = task.slots * int64_t{kWarp}, pairs = task.pairs() * kWarp;
    const int64_t work[] = {slots, pairs, slots, task.elements(), slots};
    for (int phase = kUnit; phase <= kLast; ++phase) {
      task.first_phase = task.last_phase = phase;
      const int64_t blocks = std::min(ceil_div(work[phase], kThreads), kMostBlocks);
      stream.launch(memory_update_phases<T, kPass>, blocks, kThreads, 0, task);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> memory_update(Tensor memory, Tensor sums, Tensor mass,
                                                 Tensor weight, Tensor bias, double momentum) {
  const Inputs inputs{memory, sums, mass, weight, bias, momentum};
  check_inputs(inputs);
  const Tensor new_memory = torch::stable::empty_like(memory);
  const Tensor divergence = empty_beside(memory, {}, memory.scalar_type());
  const Tensor classification = empty_beside(memory, {}, memory.scalar_type());
  run<Pass::forward>(inputs, [&](auto& task, auto type) {
    using T = typename decltype(type)::type;
    task.new_memory = write<T>(new_memory);
    task.divergence = write<T>(divergence);
    task.classification = write<T>(classification);
  });
  return {new_memory, divergence, classification};
}

Gradients memory_update_backward(MaybeTensor grad_memory, MaybeTensor grad_divergence,
                                 MaybeTensor grad_classification, Tensor memory, Tensor sums,
                                 Tensor mass, Tensor weight, Tensor bias, double momentum) {
  const Inputs inputs{memory, sums, mass, weight, bias, momentum};
  check_inputs(inputs);
  check_like("grad_memory", grad_memory, memory);
  check_loss("grad_divergence", grad_divergence, memory);
  check_loss("grad_classification", grad_classification, memory);
  const Gradients gradients = empty_gradients(inputs);
  run<Pass::backward>(inputs, [&](auto& task, auto type) {
    using T = typename decltype(type)::type;
    task.grad_memory = read<T>(grad_memory);
    task.grad_divergence = read<T>(grad_divergence);
    task.grad_classification = read<T>(grad_classification);
    task.gradient = gradients_of<T>(gradients);
  });
  return gradients;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
memory_update_double_backward(MaybeTensor memory_tangent, MaybeTensor sums_tangent,
                              MaybeTensor mass_tangent, MaybeTensor weight_tangent,
                              MaybeTensor bias_tangent, MaybeTensor grad_memory,
                              MaybeTensor grad_divergence, MaybeTensor grad_classification,
                              Tensor memory, Tensor sums, Tensor mass, Tensor weight, Tensor bias,
                              double momentum) {
  const Inputs inputs{memory, sums, mass, weight, bias, momentum};
  check_inputs(inputs);
  check_like("memory_tangent", memory_tangent, memory);
  check_like("sums_tangent", sums_tangent, sums);
  check_like("mass_tangent", mass_tangent, mass);
  check_like("weight_tangent", weight_tangent, weight);
  check_like("bias_tangent", bias_tangent, bias);
  check_like("grad_memory", grad_memory, memory);
  check_loss("grad_divergence", grad_divergence, memory);
  check_loss("grad_classification", grad_classification, memory);
  const Tensor new_memory_dot = torch::stable::empty_like(memory);
  const Tensor divergence_dot = empty_beside(memory, {}, memory.scalar_type());
  const Tensor classification_dot = empty_beside(memory, {}, memory.scalar_type());
  const Gradients gradients = empty_gradients(inputs);
  run<Pass::second>(inputs, [&](auto& task, auto type) {
    using T = typename decltype(type)::type;
    task.tangent = {read<T>(memory_tangent), read<T>(sums_tangent), read<T>(mass_tangent),
                    read<T>(weight_tangent), read<T>(bias_tangent)};
    task.grad_memory = read<T>(grad_memory);
    task.grad_divergence = read<T>(grad_divergence);
    task.grad_classification = read<T>(grad_classification);
    task.new_memory = write<T>(new_memory_dot);
    task.divergence = write<T>(divergence_dot);
    task.classification = write<T>(classification_dot);
    task.gradient = gradients_of<T>(gradients);
  });
  return std::tuple_cat(std::make_tuple(new_memory_dot, divergence_dot, classification_dot),
                        gradients);
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cuda, PINMEM_CUDA_KEY, m) {
  m.impl("memory_update", TORCH_BOX(&pinmem::memory_update));
  m.impl("memory_update_backward", TORCH_BOX(&pinmem::memory_update_backward));
  m.impl("memory_update_double_backward", TORCH_BOX(&pinmem::memory_update_double_backward));
}
