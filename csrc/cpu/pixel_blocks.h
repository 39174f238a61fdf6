// The pixels of a call as blocks of tiles, and sums over them. For glue only.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>

#include "matrices.h"
#include "parallel.h"
#include "simd/pixels.h"
#include "tensor.h"

namespace pinmem {

/// The pixels of maps that lie as `map` does. Where both memory formats are the same bytes, the one
/// that fills tiles.
inline Pixels pixels_of(const Map& map) {
  if (map.channels_last || map.pixels() == 1) return {1, map.batch * map.pixels(), true};
  return {map.batch, map.pixels(), false};
}

inline int64_t num_tiles(const Pixels& pixels) {
  return pixels.images * num_blocks(pixels.pixels, kTilePixels);
}

/// Calls body(block, begin, end, scratch) for every block of `block` of the `tiles`, in parallel,
/// each thread with scratch memory of its own. Threads take blocks as they come: what a block is
/// does not depend on them.
template <class Body>
void for_tiles(int64_t tiles, int64_t block, int64_t scratch_bytes, const Body& body) {
  const int64_t blocks = num_blocks(tiles, block);
  const auto threads = std::min<int64_t>(torch::stable::get_num_threads(), blocks);
  const int64_t bytes = num_blocks(scratch_bytes, 64) * 64;
  const Buffer<char> scratch(threads * bytes);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      for (int64_t i = next++; i < blocks; i = next++) {
        body(i, i * block, std::min(tiles, (i + 1) * block), scratch.data() + thread * bytes);
      }
    }
  });
}

/// Sums over pixels: each block of tiles has a matrix [rows, stride] of its own.
template <class A>
class PixelSums {
 public:
  /// For maps of `elements`: few enough blocks that their sums stay smaller than a map.
  PixelSums(int64_t tiles, int64_t rows, int64_t stride, int64_t elements)
      : rows_(rows),
        stride_(stride),
        block_(num_blocks(std::max<int64_t>(tiles, 1),
                          std::clamp<int64_t>(elements / (rows * stride), 1, 32))),
        blocks_(num_blocks(tiles, block_)),
        data_(std::max<int64_t>(blocks_, 1) * rows * stride) {}

  int64_t tiles_per_block() const { return block_; }
  A* of_block(int64_t i) const { return data_.data() + i * rows_ * stride_; }

  /// The sum over all blocks, in their order.
  Matrix<A> total() const {
    const int64_t size = rows_ * stride_;
    if (blocks_ == 0) std::memset(data_.data(), 0, static_cast<size_t>(size) * sizeof(A));
    for_blocks(size, 1 << 13, [&](int64_t, int64_t begin, int64_t end) {
      PINMEM_CALL(add_partials<A>)(data_.data(), blocks_, size, begin, end);
    });
    return {data_.data(), rows_, stride_, stride_, 1};
  }

 private:
  int64_t rows_, stride_, block_, blocks_;
  Buffer<A> data_;
};

}  // namespace pinmem
