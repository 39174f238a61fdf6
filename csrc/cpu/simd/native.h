// Tiles that lie as their map does: what is large is then copied, never transposed, on its way in
// and out. `Last` (channels_last): rows of a pixel's channels, padded with zeros; otherwise a tile
// as in tile.h, rows of a channel's pixels.
#pragma once

#include <cstdint>

#include "simd/scratch.h"
#include "simd/tile.h"

namespace pinmem::PINMEM_ISA {

/// Copies `count` values with conversion, then zeros up to `length`.
template <class A, class T>
PINMEM_INLINE void load_row(const T* from, int64_t count, int64_t length, A* to) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store<A>(to + i, load<A>(from + i));
  if (i < count) {
    store<A>(to + i, load_first<A>(from + i, count - i));
    i += lanes;
  }
  for (; i < length; i += lanes) store<A>(to + i, Vec<A>{});
}

template <bool Last, class A, class T>
inline void load_native(const Pixels& pixels, const Place& at, const Channels<const T>& channels,
                        A* to) {
  const T* from = corner(pixels, at, channels);
  if constexpr (Last) {
    const int64_t stride = padded<A>(channels.count);
    for (int64_t p = 0; p < at.count; ++p, from += channels.of, to += stride) {
      load_row(from, channels.count, stride, to);
    }
    for (int64_t i = 0; i < (kPixels - at.count) * stride; ++i) to[i] = A{0};
  } else {
    for (int64_t c = 0; c < channels.count; ++c, from += pixels.pixels, to += kPixels) {
      load_row(from, at.count, kPixels, to);
    }
  }
}

/// A number per pixel, where vectors of a native tile begin: `row` and element `i` of it.
template <bool Last, class A>
PINMEM_INLINE Vec<A> per_pixel(const A* numbers, int64_t row, int64_t i) {
  return Last ? splat<A>(numbers[row]) : load<A>(numbers + i);
}

/// Stores value(row, i, at) for every vector of a native tile: element i of a row, at `at` from the
/// tile's beginning.
template <bool Last, class A, class T, class Value>
PINMEM_INLINE void store_native(const Pixels& pixels, const Place& at, const Channels<T>& channels,
                                const Value& value) {
  constexpr int64_t lanes = kLanes<A>;
  T* to = corner(pixels, at, channels);
  const int64_t rows = Last ? at.count : channels.count;
  const int64_t count = Last ? channels.count : at.count;
  const int64_t stride = Last ? padded<A>(channels.count) : kPixels;
  for (int64_t row = 0; row < rows; ++row, to += Last ? channels.of : pixels.pixels) {
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) store<A>(to + i, value(row, i, row * stride + i));
    if (i < count) store_first<A>(to + i, value(row, i, row * stride + i), count - i);
  }
}

/// Some channels of a tile's pixels in both orders: `tile` by channels, `rows` by pixels.
template <class A, bool Last>
struct BothWays {
  A *tile, *rows;

  BothWays(Scratch& scratch, int64_t channels)
      : tile(scratch.take<A>(channels * kPixels)),
        rows(scratch.take<A>(padded<A>(channels) * kPixels)) {
    fill(rows, padded<A>(channels) * kPixels, A{0});
  }

  A* native() const { return Last ? rows : tile; }

  /// Fills the one that was not loaded.
  void fill_other(int64_t channels) const {
    if constexpr (Last) {
      transpose<A>(rows, padded<A>(channels), int64_t{kPixels}, channels, tile, int64_t{kPixels});
    } else {
      transpose<A>(tile, int64_t{kPixels}, channels, int64_t{kPixels}, rows, padded<A>(channels));
    }
  }
};

/// The sums of the lanes of as many vectors, one in each lane.
template <class A>
PINMEM_INLINE Vec<A> reduce_each(Vec<A> (&parts)[kLanes<A>]) {
  transpose_square<A>(parts);
  Vec<A> total = parts[0];
#pragma GCC unroll 16
  for (int l = 1; l < kLanes<A>; ++l) total += parts[l];
  return total;
}

/// sum[p] = sum over channels of u v, both native; rows' padding counts, as zeros.
template <bool Last, class A>
inline void dot_pixels(const A* u, const A* v, int64_t channels, A* sum) {
  if constexpr (!Last) {
    dot_columns(u, v, channels, sum);
  } else {
    constexpr int lanes = kLanes<A>;
    const int64_t stride = padded<A>(channels);
    for (int64_t p = 0; p < kPixels; p += lanes) {
      Vec<A> parts[lanes];
      for (int64_t l = 0; l < lanes; ++l, u += stride, v += stride) {
        Vec<A> even{}, odd{};
        for (int64_t i = 0; i < stride; i += kStripe<A>) {
          even += load<A>(u + i) * load<A>(v + i);
          odd += load<A>(u + i + lanes) * load<A>(v + i + lanes);
        }
        parts[l] = even + odd;
      }
      store<A>(sum + p, reduce_each<A>(parts));
    }
  }
}

}  // namespace pinmem::PINMEM_ISA
