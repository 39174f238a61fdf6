// Element types that glue and kernels share. Plain data: conversions are the kernels' (simd/).
#pragma once

#include <cstdint>

namespace pinmem {

struct bfloat16 {
  uint16_t bits;
};

// The type that sums are formed in: double for double, else float.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

}  // namespace pinmem
