// Transposing tiles, with conversion at load and store.
#pragma once

#include <cstdint>
#include <utility>

#include "simd/vec.h"

namespace pinmem::PINMEM_ISA {

/// Exchanges the off-diagonal Step x Step blocks of every 2 Step x 2 Step block of two rows.
template <class A, int Step, int... Lane>
PINMEM_INLINE void exchange(Vec<A>& upper, Vec<A>& lower, std::integer_sequence<int, Lane...>) {
  constexpr int lanes = kLanes<A>;
  const Vec<A> a = upper;
  const Vec<A> b = lower;
#if defined(__clang__) || __GNUC__ >= 12
  upper = __builtin_shufflevector(a, b, ((Lane & Step) ? Lane - Step + lanes : Lane)...);
  lower = __builtin_shufflevector(a, b, ((Lane & Step) ? Lane + lanes : Lane + Step)...);
#else
  using Lanes = Vec<IntOf<A>>;
  upper = __builtin_shuffle(a, b, Lanes{((Lane & Step) ? Lane - Step + lanes : Lane)...});
  lower = __builtin_shuffle(a, b, Lanes{((Lane & Step) ? Lane + lanes : Lane + Step)...});
#endif
}

template <class A, int Step = 1>
PINMEM_INLINE void transpose_square(Vec<A> (&rows)[kLanes<A>]) {
  if constexpr (Step < kLanes<A>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<A>; ++i) {
      if ((i & Step) == 0) {
        exchange<A, Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, kLanes<A>>());
      }
    }
    transpose_square<A, 2 * Step>(rows);
  }
}

/// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns, by way of A.
template <class A, class From, class To>
inline void transpose(const From* from, int64_t from_stride, int64_t rows, int64_t columns, To* to,
                      int64_t to_stride) {
  constexpr int64_t lanes = kLanes<A>;
  const int64_t whole_rows = rows - rows % lanes;
  const int64_t whole_columns = columns - columns % lanes;
  for (int64_t i = 0; i < whole_rows; i += lanes) {
    for (int64_t j = 0; j < whole_columns; j += lanes) {
      Vec<A> tile[lanes];
#pragma GCC unroll 16
      for (int64_t l = 0; l < lanes; ++l) tile[l] = load<A>(from + (i + l) * from_stride + j);
      transpose_square<A>(tile);
#pragma GCC unroll 16
      for (int64_t l = 0; l < lanes; ++l) store<A>(to + (j + l) * to_stride + i, tile[l]);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) {
      to[j * to_stride + i] = from_acc<To>(to_acc<A>(from[i * from_stride + j]));
    }
  }
}

}  // namespace pinmem::PINMEM_ISA
