#pragma once

#include "isa.h"

namespace pinmem {

// The place of the first of `count` labels outside [0, num_classes) that is not ignore_index, or
// -1. L is uint8_t or int64_t; num_classes >= 1.
PINMEM_KERNEL(template <class L> int64_t find_bad_label(const L* labels, int64_t count,
                                                        int64_t num_classes, int64_t ignore_index))

}  // namespace pinmem
