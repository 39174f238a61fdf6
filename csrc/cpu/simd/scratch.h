// Scratch memory for kernels.
#pragma once

#include <cstdint>

namespace pinmem::PINMEM_ISA {

/// Hands out pieces of a block of scratch memory, each aligned to a vector.
struct Scratch {
  char* next;
  template <class A>
  A* take(int64_t count) {
    A* piece = reinterpret_cast<A*>(next);
    next += (count * static_cast<int64_t>(sizeof(A)) + 63) / 64 * 64;
    return piece;
  }
};

}  // namespace pinmem::PINMEM_ISA
