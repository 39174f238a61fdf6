// The sums of class_sums, and their derivative along a tangent of the features.
//
// A block brings a tile of pixels to shared memory once and takes their norms. A warp then finds
// the classes of a group of pixels, mostly one, and their weights. Last, every thread owns a
// channel and goes through the groups: a multiply-add a pixel, with a register for the sum of the
// class at hand, which it adds to the block's sums when the class changes. All threads see the
// same classes, so they never diverge, and no two write to the same place.
#pragma once

#include "class_sums_tile.h"

namespace pinmem {
namespace class_sums_op {

inline constexpr int kSlots = 8;

template <class T>
struct Sums {
  using A = accumulator_t<T>;
  Tiles<T> tiles;
  SoftLabels soft;
  int num_classes;
  const T* features;
  const T* tangent;  // second order: lies as the features do
  int64_t tiles_each;
  bool shared_sums;
  A* partials;  // of every block: sums [K,C], then masses [K]

  __host__ __device__ int64_t size() const {
    return static_cast<int64_t>(num_classes) * (tiles.channels + 1);
  }
};

/// x.x and x.v of the pixels of a tile, as each warp has them.
template <class A, int kPixels, int kTerms>
struct NormPartials {
  A at[kTerms][kWarps][kPixels];
};

/// Writes sums over the channels of this thread's own vectors; returns how many a pixel has.
template <class T, bool kSecond, int kPixels, class A>
__device__ __forceinline__ int norm_partials(const Tiles<T>& tiles, const T* features,
                                             const T* tangent,
                                             NormPartials<A, kPixels, kSecond ? 2 : 1>& partials) {
  constexpr int kSize = Vector16<T>::size;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  A x[kSize], v[kSize];
  if (tiles.runs.channels_last) {
    for (int p = warp; p < tiles.pixels(); p += kWarps) {
      A squared = 0, product = 0;
      for (int at = lane; at < tiles.vectors(); at += kWarp) {
        widen_vector<T, A>(features + p * tiles.pitch + at * kSize, x);
        if (kSecond) widen_vector<T, A>(tangent + p * tiles.pitch + at * kSize, v);
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          squared += x[i] * x[i];
          if (kSecond) product += x[i] * v[i];
        }
      }
      squared = warp_sum(squared);
      if (kSecond) product = warp_sum(product);
      if (lane == 0) {
        partials.at[0][0][p] = squared;
        if (kSecond) partials.at[kSecond ? 1 : 0][0][p] = product;
      }
    }
    return 1;
  }
  A squared[kSize] = {}, product[kSize] = {};
  tiles.each([&](int row, int group) {
    widen_vector<T, A>(features + row * tiles.pitch + group * kSize, x);
    if (kSecond) widen_vector<T, A>(tangent + row * tiles.pitch + group * kSize, v);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      squared[i] += x[i] * x[i];
      if (kSecond) product[i] += x[i] * v[i];
    }
  });
  sum_groups(tiles.groups, squared);
  if (kSecond) sum_groups(tiles.groups, product);
  if (lane < tiles.groups) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      partials.at[0][warp][lane * kSize + i] = squared[i];
      if (kSecond) partials.at[kSecond ? 1 : 0][warp][lane * kSize + i] = product[i];
    }
  }
  return kWarps;
}

template <class T, bool kSecond>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 || kSecond ? 2 : kBlocksAtOnce)
    class_sums_block(const __grid_constant__ Sums<T> task) {
  using A = accumulator_t<T>;
  constexpr int kSize = Vector16<T>::size;
  constexpr int kScales = kSecond ? 2 : 1;
  __shared__ GroupClasses<A, kSize, kSlots, kScales> classes[kMostGroups];
  __shared__ NormPartials<A, kMostGroups * kSize, kScales> partials;
  const Tiles<T>& tiles = task.tiles;
  T* tile_features = dynamic_shared<T>();
  T* tile_tangent = tile_features + tiles.elements();
  A* own = task.partials + blockIdx.x * task.size();
  A* sums = task.shared_sums
                ? reinterpret_cast<A*>(tile_features + (kSecond ? 2 : 1) * tiles.elements())
                : own;
  const int size = static_cast<int>(task.size());
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int channel_step = tiles.runs.channels_last ? 1 : tiles.pitch;
  const int pixel_step = tiles.runs.channels_last ? tiles.pitch : 1;
  A* masses = sums + task.num_classes * tiles.channels;

  const int64_t begin = blockIdx.x * task.tiles_each;
  const int64_t all = tiles.count();
  const int64_t end = begin + task.tiles_each < all ? begin + task.tiles_each : all;
  for (int64_t index = begin; index < end; ++index) {
    const PixelTile tile(tiles.runs, index, tiles.pixels());
    tiles.load(tile, task.features, tile_features);
    if (kSecond) tiles.load(tile, task.tangent, tile_tangent);
    if (index == begin) {
      for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) sums[i] = 0;
    }
    // A lane a tap of the warp's pixels.
    const int pixel = warp * kSize + lane / 4;
    Tap<A> tap{-1, 0};
    if (warp < tiles.groups && lane < 4 * kSize && pixel < tile.count) {
      tap = task.soft.template load<A>(tile.image, tile.begin + pixel, lane % 4);
    }
    wait_for_copies();
    const int parts = norm_partials<T, kSecond, kMostGroups * kSize>(tiles, tile_features,
                                                                     tile_tangent, partials);
    __syncthreads();
    A scale[kScales];
    if (warp < tiles.groups) {
      const int at = warp * kSize + lane / 4 % kSize;
      A squared = 0, product = 0;
      for (int i = 0; i < parts; ++i) {
        squared += partials.at[0][i][at];
        if (kSecond) product += partials.at[kScales - 1][i][at];
      }
      bool linear;
      const A r = inverse_norm(squared, linear);
      scale[kScales - 1] = r;
      if (kSecond) scale[0] = linear ? A(0) : -r * r * (r * product);
    }
    bool more = true;
    while (more) {
      if (warp < tiles.groups) classes[warp].gather(tap, scale);
      __syncthreads();
      for (int c = static_cast<int>(threadIdx.x); c < tiles.channels; c += kThreads) {
        A* to = sums + c;
        const T* from = tile_features + c * channel_step;
        const T* from_tangent = tile_tangent + c * channel_step;
        int at_hand = -1;
        A sum = 0, mass = 0;
        const auto flush = [&] {
          if (at_hand < 0) return;
          to[at_hand * tiles.channels] += sum;
          if (c == 0) masses[at_hand] += mass;
        };
        for (int group = 0; group < tiles.groups; ++group) {
          const auto& found = classes[group];
          const int count = found.count;
          if (count == 0) continue;
          A x[kSize], v[kSize];
          if (tiles.runs.channels_last) {
#pragma unroll
            for (int i = 0; i < kSize; ++i) {
              x[i] = widen(from[(group * kSize + i) * pixel_step]);
              if (kSecond) v[i] = widen(from_tangent[(group * kSize + i) * pixel_step]);
            }
          } else {
            widen_vector<T, A>(from + group * kSize, x);
            if (kSecond) widen_vector<T, A>(from_tangent + group * kSize, v);
          }
          for (int slot = 0; slot < count; ++slot) {
            const int label = found.label[slot];
            if (label != at_hand) {
              flush();
              at_hand = label;
              sum = mass = 0;
            }
            A term = 0;
#pragma unroll
            for (int i = 0; i < kSize; ++i) {
              term += found.weight[slot][0][i] * x[i];
              if (kSecond) term += found.weight[slot][kScales - 1][i] * v[i];
            }
            sum += term;
            if (c == 0) mass += found.mass[slot];
          }
        }
        flush();
      }
      more = false;
      for (int group = 0; group < tiles.groups; ++group) more = more || classes[group].more;
      __syncthreads();
    }
  }
  if (!task.shared_sums) return;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) own[i] = sums[i];
}

}  // namespace class_sums_op
}  // namespace pinmem
