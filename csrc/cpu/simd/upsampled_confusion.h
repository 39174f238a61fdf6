#pragma once

#include "dtypes.h"
#include "isa.h"
#include "simd/bilinear.h"

namespace pinmem {

// clang-format off
// Bytes of scratch memory a call of confusion_band needs.
PINMEM_KERNEL(template <class A> int64_t confusion_scratch(const Upsampling<A>& up))

// Adds the output pixels of the cells of source rows [first, last) of image `image` to `counts`
// [K + 1, K]: label (K for one that does not count) by the class whose upsampled logit is largest,
// the lowest of several.
PINMEM_KERNEL(template <class A, class T, class L> void confusion_band(
    const Upsampling<A>& up, const T* logits, const L* target, int64_t ignore_index, int64_t image,
    int64_t first, int64_t last, int64_t* counts, void* scratch))
// clang-format on

}  // namespace pinmem
