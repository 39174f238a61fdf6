// Tiles as pairs of bfloat16, the operands of PairMultiplyAdd (gemm.h).
#pragma once

#include <cstdint>

#include "simd/tile.h"

namespace pinmem::PINMEM_ISA {

/// Every value rounded to bfloat16, in the upper half of its lane.
PINMEM_INLINE Vec<uint32_t> round_up_half(Vec<float> v) {
  const auto u = bit_cast<Vec<uint32_t>>(v);
  const auto rounded = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
  return v == v ? rounded : (u & 0u) + 0x7fc00000u;
}

/// Pairs of rows, the right operand of products over the rows: [rows / 2 rounded up, kPixels].
inline void pair_rows(const float* tile, int64_t rows, uint32_t* pairs) {
  for (int64_t row = 0; row < rows; row += 2) {
    for (int p = 0; p < kPixels;
         p += kLanes<float>, tile += kLanes<float>, pairs += kLanes<float>) {
      auto pair = round_up_half(load<float>(tile)) >> 16;
      if (row + 1 < rows) pair |= round_up_half(load<float>(tile + kPixels));
      store<uint32_t>(pairs, pair);
    }
    tile += kPixels;
  }
}

/// Pairs of an even number of a map's channels, just as they are stored: [channels / 2, kPixels].
inline void load_pairs(const Pixels& pixels, const Place& at,
                       const Channels<const bfloat16>& channels, uint32_t* pairs) {
  const bfloat16* from = corner(pixels, at, channels);
  const int64_t rows = channels.count / 2;
  if (pixels.channels_last) {
    transpose<uint32_t>(reinterpret_cast<const uint32_t*>(from), channels.of / 2, at.count, rows,
                        pairs, int64_t{kPixels});
    for (int64_t row = 0; at.count < kPixels && row < rows; ++row) {
      fill(pairs + row * kPixels + at.count, kPixels - at.count, uint32_t{0});
    }
    return;
  }
  const auto half = [&](const bfloat16* row, int64_t p) {
    const int64_t rest = at.count - p;
    if (rest >= kLanes<float>) return bit_cast<Vec<uint32_t>>(load<float>(row + p));
    return bit_cast<Vec<uint32_t>>(rest > 0 ? load_first<float>(row + p, rest) : Vec<float>{});
  };
  for (int64_t row = 0; row < rows; ++row, from += 2 * pixels.pixels, pairs += kPixels) {
    for (int p = 0; p < kPixels; p += kLanes<float>) {
      store<uint32_t>(pairs + p, half(from, p) >> 16 | half(from + pixels.pixels, p));
    }
  }
}

/// sum[p] = the sum of the squares of a pixel's pairs.
inline void square_pairs(const uint32_t* pairs, int64_t rows, float* sum) {
  for (int p = 0; p < kPixels; p += kLanes<float>) {
    Vec<float> total{};
    for (int64_t row = 0; row < rows; ++row) {
      const auto pair = load<uint32_t>(pairs + row * kPixels + p);
      PairMultiplyAdd::step(total, pair, pair);
    }
    store<float>(sum + p, total);
  }
}

/// Pairs of pixels, the left operand of products over the pixels: [rows, kPixels / 2].
inline void pair_pixels(const float* tile, int64_t rows, uint32_t* pairs) {
  auto* halves = reinterpret_cast<char*>(pairs);
  for (int64_t i = 0; i < rows * kPixels; i += kLanes<float>) {
    bfloat16 lanes[kLanes<float>];
    store<float>(lanes, load<float>(tile + i));
    std::memcpy(halves + 2 * i, lanes, sizeof(lanes));
  }
}

}  // namespace pinmem::PINMEM_ISA
