#pragma once

#include "dtypes.h"
#include "isa.h"
#include "simd/pixels.h"

namespace pinmem {

/// What every pass of memory_read reads. The memory [K,C] comes as the left operand of products
/// with its rows as rows (`memory`) and with its columns as rows (`memory_t`), both in panels, and
/// as the right one (`memory_rows`), in padded rows. Where the CPU multiplies pairs of bfloat16 and
/// the map is of them, with an even number of channels, `memory_pairs` is `memory` as pairs, else
/// null.
template <class T>
struct MemoryRead {
  using A = accumulator_t<T>;
  Pixels pixels;
  int64_t channels, slots;
  const T* query;
  const T* gumbel;  // may be null
  const A* memory;
  const A* memory_t;
  const A* memory_rows;
  const uint32_t* memory_pairs;
};

/// Cotangents of the outputs, null where absent.
template <class T>
struct MemoryReadCotangents {
  const T* readout;
  const T* scores;
};

/// Tangents of the inputs for the second derivative, null where absent; the memory's in panels.
template <class T>
struct MemoryReadTangents {
  using A = accumulator_t<T>;
  const T* query;
  const A* memory;
  const A* memory_t;
};

// Bytes of scratch memory that a call of the kernels below needs, aligned to 64.
PINMEM_KERNEL(template <class T> int64_t memory_read_scratch(int64_t channels, int64_t slots))

// Tiles [begin, end) of the outputs.
PINMEM_KERNEL(template <class T> void memory_read(const MemoryRead<T>& op, int64_t begin,
                                                  int64_t end, T* readout, T* scores,
                                                  char* scratch))

// Tiles [begin, end) of grad_query, and their share of grad_memory, [K, padded C]. Null: not
// needed.
PINMEM_KERNEL(template <class T> void memory_read_backward(
    const MemoryRead<T>& op, const MemoryReadCotangents<T>& grad, int64_t begin, int64_t end,
    T* grad_query, accumulator_t<T>* grad_memory, char* scratch))

// Tiles [begin, end) of the maps, and their share of grad_memory.
PINMEM_KERNEL(template <class T> void memory_read_double_backward(
    const MemoryRead<T>& op, const MemoryReadCotangents<T>& grad,
    const MemoryReadTangents<T>& tangent, int64_t begin, int64_t end, T* readout_dot, T* scores_dot,
    T* grad_query, accumulator_t<T>* grad_memory, char* scratch))

}  // namespace pinmem
