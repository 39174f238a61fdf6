// A tile of a feature map in shared memory, for class_sums and its gradient.
//
// In NCHW a row of the tile is a channel of up to eight groups of pixels, each 16 bytes; in
// channels_last it is a pixel. All is copied asynchronously, 16 bytes per thread where vectors are
// aligned, and a thread then reads what it has copied itself before others do.
#pragma once

#include "class_sums_labels.h"
#include "features.h"

namespace pinmem {
namespace class_sums_op {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / kWarp;
inline constexpr int kMostGroups = 8;
/// Blocks at once on a multiprocessor, as many as shared memory has room for.
inline constexpr int kBlocksAtOnce = 3;

template <class T>
struct Tiles {
  static constexpr int kSize = Vector16<T>::size;
  Runs runs;
  int channels;
  int groups;  // of kSize pixels: a power of two, at most kMostGroups
  int pitch;   // of a row
  bool aligned;

  __host__ __device__ int pixels() const { return groups * kSize; }
  __host__ __device__ int vectors() const { return (channels + kSize - 1) / kSize; }
  __host__ __device__ int elements() const {
    return (runs.channels_last ? pixels() : channels) * pitch;
  }
  __host__ __device__ int64_t count() const { return runs.tiles(pixels()); }

  /// Calls take(row, vector in the row) for what is this thread's: in NCHW always the same group
  /// of pixels, in channels_last whole pixels of its warp.
  template <class Take>
  __device__ __forceinline__ void each(const Take& take) const {
    const int thread = static_cast<int>(threadIdx.x);
    if (runs.channels_last) {
      for (int row = thread / kWarp; row < pixels(); row += kWarps) {
        for (int v = thread % kWarp; v < vectors(); v += kWarp) take(row, v);
      }
      return;
    }
    const int group = thread % groups;
#pragma unroll 4
    for (int row = thread / groups; row < channels; row += kThreads / groups) take(row, group);
  }

  /// Starts to copy a tile; there are zeros past the last pixel and channel.
  __device__ __forceinline__ void load(const PixelTile& tile, const T* from, T* to) const {
    const T* first = from + runs.offset(tile.image, tile.begin, 0, channels);
    const int64_t step = runs.channels_last ? channels : runs.pixels;
    each([&](int row, int v) {
      const int in_pixel = row < tile.count ? channels : 0;
      const int inside = runs.channels_last ? in_pixel : tile.count;
      const T* source = first + row * step + v * kSize;
      T* place = to + row * pitch + v * kSize;
      const int valid = inside - v * kSize;
      if (aligned && valid >= kSize) return copy16_async(place, source);
#pragma unroll
      for (int i = 0; i < kSize; ++i) place[i] = i < valid ? source[i] : T{};
    });
  }
};

template <class T, class A>
__device__ __forceinline__ void widen_vector(const T* from, A (&to)[Vector16<T>::size]) {
  const auto vector = *reinterpret_cast<const Vector16<T>*>(from);
#pragma unroll
  for (int i = 0; i < Vector16<T>::size; ++i) to[i] = widen(vector.at[i]);
}

/// Sums of each of kCount values over the lanes with the same group of pixels.
template <class A, int kCount>
__device__ __forceinline__ void sum_groups(int groups, A (&values)[kCount]) {
  for (int offset = groups; offset < kWarp; offset *= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(kAllLanes, values[i], offset);
  }
}

}  // namespace class_sums_op
}  // namespace pinmem
