#pragma once

#include "simd/memory_read.h"

namespace pinmem {

/// What every pass of memory_read_project reads, with the weight [W_q, W_c] [O,2C] and what the
/// memory gives through it, P = M W_c^T [K,O]. All are left operands of products, in panels; a pass
/// needs only some of them. Where the CPU multiplies pairs of bfloat16, the large ones come as
/// pairs instead, and null in full.
template <class T>
struct MemoryReadProject {
  using A = accumulator_t<T>;
  MemoryRead<T> read;
  int64_t outputs;
  const A* weight;  // W_q, [O, C]
  const uint32_t* weight_pairs;
  const A* slots_t;  // P^T, [O, K]
  const A* slots;    // P, [K, O]
  const A* back;     // [W_q; M]^T, [C, O + K]
  const uint32_t* back_pairs;
};

/// Tangents of the inputs for the second derivative, [Y_q, Y_c] that of the weight; null where
/// absent.
template <class T>
struct MemoryReadProjectTangents {
  using A = accumulator_t<T>;
  MemoryReadTangents<T> read;
  const A* weight;   // Y_q, [O, C]
  const A* slots_t;  // how P^T moves, [O, K]
  const A* slots;    // how P moves, [K, O]
  const A* back;     // [Y_q; V]^T, [C, O + K]
};

// Bytes of scratch memory that a call of the kernels below needs, aligned to 64.
PINMEM_KERNEL(template <class T>
              int64_t memory_read_project_scratch(int64_t channels, int64_t slots, int64_t outputs))

// Tiles [begin, end) of the outputs.
PINMEM_KERNEL(template <class T> void memory_read_project(const MemoryReadProject<T>& op,
                                                          int64_t begin, int64_t end, T* projected,
                                                          T* scores, char* scratch))

// Tiles [begin, end) of grad_query, and their share of the sums over pixels
//   [D; ds]^T [q, a]   [O + K, padded C + padded K]
// of which the other gradients are made. Null: not needed. Without `all`, only the parts ds^T q and
// D^T a are wanted.
PINMEM_KERNEL(template <class T> void memory_read_project_backward(
    const MemoryReadProject<T>& op, const MemoryReadCotangents<T>& grad, int64_t begin, int64_t end,
    T* grad_query, accumulator_t<T>* sums, bool all, char* scratch))

// Tiles [begin, end) of the maps, and their share of the sums, with moving parts marked by ':
//   [D; ds]^T [q', a, a']   [O + K, padded C + 2 padded K], in the last K rows and C columns with
//   ds'^T q added.
PINMEM_KERNEL(template <class T> void memory_read_project_double_backward(
    const MemoryReadProject<T>& op, const MemoryReadCotangents<T>& grad,
    const MemoryReadProjectTangents<T>& tangent, int64_t begin, int64_t end, T* projected_dot,
    T* scores_dot, T* grad_query, accumulator_t<T>* sums, char* scratch))

}  // namespace pinmem
