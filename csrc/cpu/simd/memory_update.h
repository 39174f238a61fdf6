#pragma once

#include "dtypes.h"
#include "isa.h"

namespace pinmem {

/// What every pass of memory_update reads: memory, sums and weight [K,C], mass and bias [K].
template <class T>
struct MemoryUpdate {
  int64_t slots, channels;
  const T *memory, *sums, *mass, *weight, *bias;
  double momentum;
};

/// Cotangents of the outputs, null where absent.
template <class T>
struct MemoryUpdateCotangents {
  const T *memory, *divergence, *classification;
};

/// The inputs' gradients or, null where absent, tangents.
template <class T>
struct MemoryUpdateInputs {
  T *memory, *sums, *mass, *weight, *bias;
};

// Bytes of scratch memory, aligned to 64, that a call of the kernels below needs, by the matrices
// [K,C] it works with: forward 2, backward 4, double backward 6.
PINMEM_KERNEL(template <class T>
              int64_t memory_update_scratch(int64_t slots, int64_t channels, int64_t matrices))

PINMEM_KERNEL(template <class T> void memory_update(const MemoryUpdate<T>& op, T* new_memory,
                                                    T* divergence, T* classification,
                                                    char* scratch))

PINMEM_KERNEL(template <class T> void memory_update_backward(const MemoryUpdate<T>& op,
                                                             const MemoryUpdateCotangents<T>& grad,
                                                             const MemoryUpdateInputs<T>& to,
                                                             char* scratch))

PINMEM_KERNEL(template <class T> void memory_update_double_backward(
    const MemoryUpdate<T>& op, const MemoryUpdateCotangents<T>& grad,
    const MemoryUpdateInputs<const T>& tangent, T* new_memory_dot, T* divergence_dot,
    T* classification_dot, const MemoryUpdateInputs<T>& to, char* scratch))

}  // namespace pinmem
