#include "simd/memory_update.h"

#include "matrices.h"
#include "tensor.h"

namespace pinmem {
namespace {

void check_shaped(const char* name, const Tensor& tensor, const Tensor& memory, int64_t dim) {
  check_contiguous(name, tensor);
  STD_TORCH_CHECK(tensor.dim() == dim && tensor.size(0) == memory.size(0) &&
                      (dim == 1 || tensor.size(1) == memory.size(1)) &&
                      tensor.scalar_type() == memory.scalar_type(),
                  name, ": expected ", dim == 1 ? "[K]" : "[K,C]", " of the memory's type");
}

/// The inputs of every pass, checked.
template <class T>
MemoryUpdate<T> operands(const Tensor& memory, const Tensor& sums, const Tensor& mass,
                         const Tensor& weight, const Tensor& bias, double momentum) {
  STD_TORCH_CHECK(memory.dim() == 2 && memory.numel() > 0, "memory: expected [K >= 1, C >= 1]");
  check_contiguous("memory", memory);
  check_shaped("sums", sums, memory, 2);
  check_shaped("mass", mass, memory, 1);
  check_shaped("weight", weight, memory, 2);
  check_shaped("bias", bias, memory, 1);
  return {memory.size(0), memory.size(1),  read<T>(memory), read<T>(sums),
          read<T>(mass),  read<T>(weight), read<T>(bias),   momentum};
}

template <class T>
MemoryUpdateCotangents<T> cotangents(const Tensor& memory, const MaybeTensor& grad_memory,
                                     const MaybeTensor& grad_divergence,
                                     const MaybeTensor& grad_classification) {
  if (grad_memory) check_shaped("grad_memory", *grad_memory, memory, 2);
  return {read<T>(grad_memory), read<T>(grad_divergence), read<T>(grad_classification)};
}

template <class T>
Buffer<char> scratch_of(const MemoryUpdate<T>& op, int64_t matrices) {
  return Buffer<char>(PINMEM_CALL(memory_update_scratch<T>)(op.slots, op.channels, matrices));
}

Tensor scalar_like(const Tensor& tensor) { return empty({}, tensor.scalar_type()); }

Tensor matrix_like(const Tensor& tensor) {
  return empty({tensor.size(0), tensor.size(1)}, tensor.scalar_type());
}

/// The gradients of the five inputs.
struct Gradients {
  explicit Gradients(const Tensor& like)
      : memory(matrix_like(like)),
        sums(matrix_like(like)),
        mass(empty({like.size(0)}, like.scalar_type())),
        weight(matrix_like(like)),
        bias(empty({like.size(0)}, like.scalar_type())) {}

  template <class T>
  MemoryUpdateInputs<T> data() const {
    return {write<T>(memory), write<T>(sums), write<T>(mass), write<T>(weight), write<T>(bias)};
  }

  Tensor memory, sums, mass, weight, bias;
};

std::tuple<Tensor, Tensor, Tensor> memory_update(Tensor memory, Tensor sums, Tensor mass,
                                                 Tensor weight, Tensor bias, double momentum) {
  const Tensor new_memory = matrix_like(memory);
  const Tensor divergence = scalar_like(memory), classification = scalar_like(memory);
  dispatch_floats("memory", memory, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto op = operands<T>(memory, sums, mass, weight, bias, momentum);
    PINMEM_CALL(memory_update<T>)(op, write<T>(new_memory), write<T>(divergence),
                                  write<T>(classification), scratch_of(op, 2).data());
  });
  return {new_memory, divergence, classification};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> memory_update_backward(
    MaybeTensor grad_memory, MaybeTensor grad_divergence, MaybeTensor grad_classification,
    Tensor memory, Tensor sums, Tensor mass, Tensor weight, Tensor bias, double momentum) {
  const Gradients to(memory);
  dispatch_floats("memory", memory, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto op = operands<T>(memory, sums, mass, weight, bias, momentum);
    const auto grad = cotangents<T>(memory, grad_memory, grad_divergence, grad_classification);
    PINMEM_CALL(memory_update_backward<T>)(op, grad, to.data<T>(), scratch_of(op, 4).data());
  });
  return {to.memory, to.sums, to.mass, to.weight, to.bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
memory_update_double_backward(MaybeTensor memory_tangent, MaybeTensor sums_tangent,
                              MaybeTensor mass_tangent, MaybeTensor weight_tangent,
                              MaybeTensor bias_tangent, MaybeTensor grad_memory,
                              MaybeTensor grad_divergence, MaybeTensor grad_classification,
                              Tensor memory, Tensor sums, Tensor mass, Tensor weight, Tensor bias,
                              double momentum) {
  if (memory_tangent) check_shaped("memory_tangent", *memory_tangent, memory, 2);
  if (sums_tangent) check_shaped("sums_tangent", *sums_tangent, memory, 2);
  if (mass_tangent) check_shaped("mass_tangent", *mass_tangent, memory, 1);
  if (weight_tangent) check_shaped("weight_tangent", *weight_tangent, memory, 2);
  if (bias_tangent) check_shaped("bias_tangent", *bias_tangent, memory, 1);
  const Gradients to(memory);
  const Tensor new_memory_dot = matrix_like(memory);
  const Tensor divergence_dot = scalar_like(memory), classification_dot = scalar_like(memory);
  dispatch_floats("memory", memory, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto op = operands<T>(memory, sums, mass, weight, bias, momentum);
    const auto grad = cotangents<T>(memory, grad_memory, grad_divergence, grad_classification);
    const MemoryUpdateInputs<const T> tangent{read<T>(memory_tangent), read<T>(sums_tangent),
                                              read<T>(mass_tangent), read<T>(weight_tangent),
                                              read<T>(bias_tangent)};
    PINMEM_CALL(memory_update_double_backward<T>)(
        op, grad, tangent, write<T>(new_memory_dot), write<T>(divergence_dot),
        write<T>(classification_dot), to.data<T>(), scratch_of(op, 6).data());
  });
  return {new_memory_dot, divergence_dot, classification_dot, to.memory,
          to.sums,        to.mass,        to.weight,          to.bias};
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cpu, CPU, m) {
  m.impl("memory_update", TORCH_BOX(&pinmem::memory_update));
  m.impl("memory_update_backward", TORCH_BOX(&pinmem::memory_update_backward));
  m.impl("memory_update_double_backward", TORCH_BOX(&pinmem::memory_update_double_backward));
}
