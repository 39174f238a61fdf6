// Work on torch's thread pool, in blocks of a fixed size. For glue only.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace pinmem {

inline int64_t num_blocks(int64_t count, int64_t block) { return (count + block - 1) / block; }

// Calls body(index, begin, end) for every block [begin, end) of `block` of the `count` items, in
// parallel. What a block is does not depend on the number of threads: where each block writes its
// own partial sum, at `index`, and the caller adds these in order, the result is bitwise the same
// at any number of threads. A block should be worth 20 microseconds or more. The body must not
// throw: check before.
template <class Body>
void for_blocks(int64_t count, int64_t block, const Body& body) {
  torch::stable::parallel_for(0, num_blocks(count, block), 1, [&](int64_t first, int64_t last) {
    for (int64_t index = first; index < last; ++index) {
      const int64_t begin = index * block;
      body(index, begin, begin + block < count ? begin + block : count);
    }
  });
}

}  // namespace pinmem
