// Feature maps as runs of pixels, and sums over pixels in a fixed order.
#pragma once

#include "device.h"

namespace pinmem {

/// A map [B,C,h,w] as `images` runs of `pixels` pixels: in NCHW an image is a run; in channels_last
/// the whole batch is one.
struct Runs {
  int64_t images, pixels;
  bool channels_last;

  __host__ __device__ __forceinline__ int64_t offset(int64_t image, int64_t pixel, int64_t channel,
                                                     int64_t channels) const {
    return channels_last ? (image * pixels + pixel) * channels + channel
                         : (image * channels + channel) * pixels + pixel;
  }
  __host__ __device__ __forceinline__ int64_t tiles_a_run(int size) const {
    return (pixels + size - 1) / size;
  }
  __host__ __device__ __forceinline__ int64_t tiles(int size) const {
    return images * tiles_a_run(size);
  }
};

/// Some neighbouring pixels of a run.
struct PixelTile {
  int64_t image, begin;
  int count;

  __device__ __forceinline__ PixelTile(const Runs& runs, int64_t index, int size) {
    const auto a_run = static_cast<unsigned>(runs.tiles_a_run(size));
    const unsigned in_run = static_cast<unsigned>(index) % a_run;
    image = static_cast<unsigned>(index) / a_run;
    begin = static_cast<int64_t>(in_run) * size;
    count = static_cast<int>(runs.pixels - begin < size ? runs.pixels - begin : size);
  }
};

/// kSize elements from `from` on; those from `count` on are 0. Loads of 16 bytes where `aligned`.
template <class A, int kSize>
__device__ __forceinline__ void load_elements(const A* from, int64_t count, bool aligned,
                                              A (&to)[kSize]) {
  constexpr int kPart = Vector16<A>::size;
  if (kSize % kPart == 0 && aligned) {
#pragma unroll
    for (int i = 0; i < kSize; i += kPart) {
      const auto part = *reinterpret_cast<const Vector16<A>*>(from + i);
#pragma unroll
      for (int j = 0; j < kPart; ++j) to[i + j] = part.at[j];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) to[i] = i < count ? from[i] : A(0);
}

/// Elements `from` .. `from + Vector16<T>::size`, widened; those from `count` on are 0. One load
/// where `aligned`.
template <class T, class A>
__device__ __forceinline__ void load_vector(const T* from, int64_t count, bool aligned,
                                            A (&to)[Vector16<T>::size]) {
  if (aligned) {
    const auto vector = *reinterpret_cast<const Vector16<T>*>(from);
#pragma unroll
    for (int i = 0; i < Vector16<T>::size; ++i) to[i] = static_cast<A>(widen(vector.at[i]));
    return;
  }
#pragma unroll
  for (int i = 0; i < Vector16<T>::size; ++i) {
    to[i] = i < count ? static_cast<A>(widen(from[i])) : A(0);
  }
}

template <class T, class A>
__device__ __forceinline__ void store_vector(T* to, int64_t count, bool aligned,
                                             const A (&from)[Vector16<T>::size]) {
  if (aligned) {
    Vector16<T> vector;
#pragma unroll
    for (int i = 0; i < Vector16<T>::size; ++i) vector.at[i] = narrow<T>(from[i]);
    *reinterpret_cast<Vector16<T>*>(to) = vector;
    return;
  }
#pragma unroll
  for (int i = 0; i < Vector16<T>::size; ++i) {
    if (i < count) to[i] = narrow<T>(from[i]);
  }
}

inline constexpr int kSumColumns = 32;
inline constexpr int kSumRows = 16;
inline constexpr int kSumThreads = kSumColumns * kSumRows;

/// What a block of add_partials writes: `size` sums of `partials` rows of `stride` elements.
template <class A>
struct PartialSums {
  const A* partials;
  int64_t count, stride;
  int64_t split;  // sums before this go to `first`, the others to `second`
  int64_t size;
  void* first;
  void* second;
  Element first_type, second_type;

  __host__ __device__ int64_t blocks() const { return (size + kSumColumns - 1) / kSumColumns; }
};

/// Adds the partial sums of all blocks: row after row in 16 interleaved groups, then the groups.
template <class A>
__global__ void __launch_bounds__(kSumThreads)
    add_partials(const __grid_constant__ PartialSums<A> sums) {
  __shared__ A groups[kSumRows][kSumColumns];
  const int column = static_cast<int>(threadIdx.x) % kSumColumns;
  const int group = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumColumns + column;
  A sum = 0;
  if (i < sums.size) {
#pragma unroll 8
    for (int64_t row = group; row < sums.count; row += kSumRows) {
      sum += sums.partials[row * sums.stride + i];
    }
  }
  groups[group][column] = sum;
  __syncthreads();
  if (group != 0 || i >= sums.size) return;
  for (int other = 1; other < kSumRows; ++other) sum += groups[other][column];
  if (i < sums.split) {
    store_element(sums.first, sums.first_type, i, sum);
  } else {
    store_element(sums.second, sums.second_type, i - sums.split, sum);
  }
}

/// How pixel tiles are split between blocks that each write a partial sum of `size` elements: at
/// most 396 blocks, which a large GPU runs at once, and 64 MB. By the shape alone.
struct TileSplit {
  int64_t tiles_each, count;
};

inline TileSplit split_tiles(int64_t tiles, int64_t size) {
  int64_t most = (64 << 20) / (8 * size);
  most = most < 1 ? 1 : most > 396 ? 396 : most;
  int64_t each = (tiles + most - 1) / most;
  each = each < 1 ? 1 : each;
  return {each, (tiles + each - 1) / each};
}

}  // namespace pinmem
