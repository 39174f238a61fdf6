// Tiles: some channels of kTilePixels pixels, in cache and in the accumulation type, whatever the
// dtype and memory format of the map. Row after row a channel's pixels; behind the map's end zeros.
#pragma once

#include <cstdint>

#include "simd/gemm.h"
#include "simd/pixels.h"
#include "simd/transpose.h"
#include "simd/vec.h"

namespace pinmem::PINMEM_ISA {

inline constexpr int kPixels = kTilePixels;

/// The larger of |x| and this divides x, as in torch.nn.functional.normalize.
inline constexpr double kSmallestNorm = 1e-12;

/// Where a tile lies: `count` pixels of run `image` from `first` on.
struct Place {
  int64_t image, first, count;
};

inline Place place_of(const Pixels& pixels, int64_t tile) {
  const int64_t tiles = (pixels.pixels + kPixels - 1) / kPixels;
  const int64_t first = tile % tiles * kPixels;
  const int64_t rest = pixels.pixels - first;
  return {tile / tiles, first, rest < kPixels ? rest : kPixels};
}

/// Some of the channels of a map [B,C,h,w] of T.
template <class T>
struct Channels {
  T* map;
  int64_t of, first, count;
};

template <class T>
PINMEM_INLINE Channels<T> all_channels(T* map, int64_t count) {
  return {map, count, 0, count};
}

/// The first of these channels at the first pixel of the tile.
template <class T>
PINMEM_INLINE T* corner(const Pixels& pixels, const Place& at, const Channels<T>& channels) {
  return pixels.channels_last
             ? channels.map + (at.image * pixels.pixels + at.first) * channels.of + channels.first
             : channels.map + (at.image * channels.of + channels.first) * pixels.pixels + at.first;
}

template <class A, class T>
inline void load_tile(const Pixels& pixels, const Place& at, const Channels<const T>& channels,
                      A* tile) {
  const T* from = corner(pixels, at, channels);
  if (pixels.channels_last) {
    transpose<A>(from, channels.of, at.count, channels.count, tile, int64_t{kPixels});
    if (at.count == kPixels) return;
    for (int64_t c = 0; c < channels.count; ++c) {
      for (int64_t p = at.count; p < kPixels; ++p) tile[c * kPixels + p] = A{0};
    }
    return;
  }
  for (int64_t c = 0; c < channels.count; ++c, from += pixels.pixels, tile += kPixels) {
    if (at.count == kPixels) {
#pragma GCC unroll 4
      for (int p = 0; p < kPixels; p += kLanes<A>) store<A>(tile + p, load<A>(from + p));
    } else {
      for (int64_t p = 0; p < kPixels; ++p) tile[p] = p < at.count ? to_acc<A>(from[p]) : A{0};
    }
  }
}

template <class A, class T>
inline void store_tile(const Pixels& pixels, const Place& at, const A* tile,
                       const Channels<T>& channels) {
  T* to = corner(pixels, at, channels);
  if (pixels.channels_last) {
    transpose<A>(tile, int64_t{kPixels}, channels.count, at.count, to, channels.of);
    return;
  }
  for (int64_t c = 0; c < channels.count; ++c, to += pixels.pixels, tile += kPixels) {
    if (at.count == kPixels) {
#pragma GCC unroll 4
      for (int p = 0; p < kPixels; p += kLanes<A>) store<A>(to + p, load<A>(tile + p));
    } else {
      for (int64_t p = 0; p < at.count; ++p) to[p] = from_acc<T>(tile[p]);
    }
  }
}

/// A tile with the channels of a pixel together: rows of `stride` elements.
template <class A>
inline void pixels_first(const A* tile, int64_t channels, A* rows, int64_t stride) {
  transpose<A>(tile, int64_t{kPixels}, channels, int64_t{kPixels}, rows, stride);
}

template <class A>
PINMEM_INLINE void fill(A* to, int64_t count, A value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

/// Rows summed into a sum of their own, so that rounding errors stay small over many channels.
inline constexpr int64_t kSumRows = 32;

/// sum[p] = sum over rows of u[r][p] * v[r][p].
template <class A>
inline void dot_columns(const A* u, const A* v, int64_t rows, A* sum) {
  for (int p = 0; p < kPixels; p += kStripe<A>) {
    Vec<A> left{}, right{};
    for (int64_t begin = 0; begin < rows; begin += kSumRows) {
      const int64_t end = begin + kSumRows < rows ? begin + kSumRows : rows;
      Vec<A> part_left{}, part_right{};
      for (int64_t i = begin * kPixels + p; i < end * kPixels + p; i += kPixels) {
        part_left += load<A>(u + i) * load<A>(v + i);
        part_right += load<A>(u + i + kLanes<A>) * load<A>(v + i + kLanes<A>);
      }
      left += part_left;
      right += part_right;
    }
    store<A>(sum + p, left);
    store<A>(sum + p + kLanes<A>, right);
  }
}

/// Calls body(i, p) for every vector of a tile: it begins at element i, its pixels at p.
template <class A, class Body>
PINMEM_INLINE void for_vectors(int64_t rows, const Body& body) {
  for (int64_t r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; p += kLanes<A>) body(r * kPixels + p, p);
  }
}

/// to += from.
template <class A>
inline void add_tile(const A* from, int64_t rows, A* to) {
  for_vectors<A>(rows,
                 [&](int64_t i, int) { store<A>(to + i, load<A>(to + i) + load<A>(from + i)); });
}

}  // namespace pinmem::PINMEM_ISA
