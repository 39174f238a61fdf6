// Loading and storing an element in the accumulation type. For kernel files only (see ../isa.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "dtypes.h"

namespace pinmem::PINMEM_ISA {

inline double load(double value) { return value; }
inline float load(float value) { return value; }
inline float load(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}

// Rounds to the nearest, ties to even; a NaN stays a NaN.
template <class T, class A>
inline T store(A value) {
  return static_cast<T>(value);
}
template <>
inline bfloat16 store<bfloat16, float>(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // Branchless, so that a loop of conversions vectorises.
  const uint32_t nan = 0x7fc0;
  return {static_cast<uint16_t>(value != value ? nan : rounded)};
}

}  // namespace pinmem::PINMEM_ISA
