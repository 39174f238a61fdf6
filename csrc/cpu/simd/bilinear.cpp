#include "simd/bilinear.h"

namespace pinmem::PINMEM_ISA {

template <class A>
int64_t vector_lanes() {
  return kLanes<A>;
}

template int64_t vector_lanes<double>();
template int64_t vector_lanes<float>();

}  // namespace pinmem::PINMEM_ISA
