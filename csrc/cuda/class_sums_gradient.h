// The gradient of class_sums for the features, first and second order: a sum over the channels of a
// pixel, and a combination of its vectors with the factors that follow from that. A block takes a
// tile of pixels. In NCHW it lies in shared memory, and a thread takes what it has copied itself.
#pragma once

#include "class_sums_tile.h"

namespace pinmem {
namespace class_sums_op {

template <class T>
struct Gradient {
  using A = accumulator_t<T>;
  Tiles<T> tiles;
  SoftLabels soft;
  const T* features;
  const T* tangent;    // second order
  const A* grad_sums;  // [K,C]
  T* gradient;
};

/// gradient = cotangent * e + feature * x + tangent * v, per pixel.
template <class A>
struct Factors {
  A cotangent, feature, tangent;
};

/// The sums over channels that the factors follow from: x.x, x.e, x.v, v.e.
template <class A>
struct Products {
  A xx, xe, xv, ve;
};

template <bool kSecond, class A>
__device__ __forceinline__ Factors<A> factors_of(const Products<A>& sums) {
  bool linear;
  const A r = inverse_norm(sums.xx, linear);
  if (!kSecond) return {r, linear ? A(0) : -r * r * (r * sums.xe), A(0)};
  if (linear) return {0, 0, 0};
  const A qe = r * sums.xe, qv = r * sums.xv;
  return {-r * r * qv, r * r * (r * (3 * qv * qe - sums.ve)), -r * r * qe};
}

/// All classes of a group of pixels.
template <class T>
using GradientClasses = GroupClasses<accumulator_t<T>, Vector16<T>::size, 4 * Vector16<T>::size, 1>;

/// What the threads of a block tell each other of a tile.
template <class T>
struct GradientExchange {
  using A = accumulator_t<T>;
  static constexpr int kPixels = kMostGroups * Vector16<T>::size;
  Products<A> products[kWarps][kPixels];
  Factors<A> factors[kPixels];
};

/// channels_last: a warp a pixel, which it reads itself.
template <class T, bool kSecond>
__device__ void gradient_by_pixel(const Gradient<T>& task, const PixelTile& tile,
                                  const GradientClasses<T>* classes) {
  using A = accumulator_t<T>;
  constexpr int kSize = Vector16<T>::size;
  const Tiles<T>& tiles = task.tiles;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int p = static_cast<int>(threadIdx.x) / kWarp; p < tile.count; p += kWarps) {
    const auto& found = classes[p / kSize];
    const int64_t at = tiles.runs.offset(tile.image, tile.begin + p, 0, tiles.channels);
    Products<A> sums{0, 0, 0, 0};
    A x[kSize], v[kSize] = {}, e[kSize];
    const auto load = [&](int c) {
      load_vector<T, A>(task.features + at + c, tiles.channels - c, tiles.aligned, x);
      if (kSecond) load_vector<T, A>(task.tangent + at + c, tiles.channels - c, tiles.aligned, v);
#pragma unroll
      for (int i = 0; i < kSize; ++i) e[i] = 0;
      for (int slot = 0; slot < found.count; ++slot) {
        const A weight = found.weight[slot][0][p % kSize];
        if (weight == 0) continue;
        A row[kSize];
        load_elements(task.grad_sums + static_cast<int64_t>(found.label[slot]) * tiles.channels + c,
                      tiles.channels - c, tiles.aligned, row);
#pragma unroll
        for (int i = 0; i < kSize; ++i) e[i] += weight * row[i];
      }
    };
    for (int c = lane * kSize; c < tiles.channels; c += kWarp * kSize) {
      load(c);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        sums.xx += x[i] * x[i];
        sums.xe += x[i] * e[i];
        if (kSecond) sums.xv += x[i] * v[i];
        if (kSecond) sums.ve += v[i] * e[i];
      }
    }
    sums.xx = warp_sum(sums.xx);
    sums.xe = warp_sum(sums.xe);
    if (kSecond) sums.xv = warp_sum(sums.xv);
    if (kSecond) sums.ve = warp_sum(sums.ve);
    const Factors<A> factors = factors_of<kSecond>(sums);
    T* to = task.gradient + at;
    for (int c = lane * kSize; c < tiles.channels; c += kWarp * kSize) {
      // Of a feature that fits one step the registers still hold it.
      if (tiles.channels > kWarp * kSize) load(c);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        x[i] = factors.cotangent * e[i] + factors.feature * x[i];
        if (kSecond) x[i] += factors.tangent * v[i];
      }
      store_vector<T, A>(to + c, tiles.channels - c, tiles.aligned, x);
    }
  }
}

/// NCHW: a thread goes through channels of one group of pixels. Synchronises.
template <class T, bool kSecond>
__device__ void gradient_by_plane(const Gradient<T>& task, const PixelTile& tile,
                                  const GradientClasses<T>* classes, const T* features,
                                  const T* tangent) {
  using A = accumulator_t<T>;
  constexpr int kSize = Vector16<T>::size;
  const Tiles<T>& tiles = task.tiles;
  const int thread = static_cast<int>(threadIdx.x);
  __shared__ GradientExchange<T> shared;
  const auto& found = classes[thread % tiles.groups];
  const int count = found.count;
  A x[kSize], v[kSize] = {}, e[kSize];
  const auto load = [&](int c, int group) {
    widen_vector<T, A>(features + c * tiles.pitch + group * kSize, x);
    if (kSecond) widen_vector<T, A>(tangent + c * tiles.pitch + group * kSize, v);
#pragma unroll
    for (int i = 0; i < kSize; ++i) e[i] = 0;
    for (int slot = 0; slot < count; ++slot) {
      const A value = task.grad_sums[static_cast<int64_t>(found.label[slot]) * tiles.channels + c];
#pragma unroll
      for (int i = 0; i < kSize; ++i) e[i] += found.weight[slot][0][i] * value;
    }
  };
  {
    A xx[kSize] = {}, xe[kSize] = {}, xv[kSize] = {}, ve[kSize] = {};
    tiles.each([&](int c, int group) {
      load(c, group);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        xx[i] += x[i] * x[i];
        xe[i] += x[i] * e[i];
        if (kSecond) xv[i] += x[i] * v[i];
        if (kSecond) ve[i] += v[i] * e[i];
      }
    });
    sum_groups(tiles.groups, xx);
    sum_groups(tiles.groups, xe);
    if (kSecond) sum_groups(tiles.groups, xv);
    if (kSecond) sum_groups(tiles.groups, ve);
    const int lane = thread % kWarp;
    if (lane < tiles.groups) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        shared.products[thread / kWarp][lane * kSize + i] = {xx[i], xe[i], xv[i], ve[i]};
      }
    }
  }
  __syncthreads();
  if (thread < tiles.pixels()) {
    Products<A> sums = shared.products[0][thread];
    for (int other = 1; other < kWarps; ++other) {
      const Products<A> partial = shared.products[other][thread];
      sums.xx += partial.xx;
      sums.xe += partial.xe;
      sums.xv += partial.xv;
      sums.ve += partial.ve;
    }
    shared.factors[thread] = factors_of<kSecond>(sums);
  }
  __syncthreads();
  Factors<A> factors[kSize];
#pragma unroll
  for (int i = 0; i < kSize; ++i) factors[i] = shared.factors[thread % tiles.groups * kSize + i];
  T* to = task.gradient + tiles.runs.offset(tile.image, tile.begin, 0, tiles.channels);
  tiles.each([&](int c, int group) {
    const int valid = tile.count - group * kSize;
    if (valid <= 0) return;
    load(c, group);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      x[i] = factors[i].cotangent * e[i] + factors[i].feature * x[i];
      if (kSecond) x[i] += factors[i].tangent * v[i];
    }
    store_vector<T, A>(to + c * tiles.runs.pixels + group * kSize, valid,
                       tiles.aligned && valid >= kSize, x);
  });
}

template <class T, bool kSecond, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8  ? 1
                                            : kChannelsLast ? 4
                                            : kSecond       ? 2
                                                            : kBlocksAtOnce)
    class_sums_gradient(const __grid_constant__ Gradient<T> task) {
  using A = accumulator_t<T>;
  constexpr int kSize = Vector16<T>::size;
  __shared__ GradientClasses<T> classes[kMostGroups];
  const Tiles<T>& tiles = task.tiles;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  T* features = dynamic_shared<T>();
  T* tangent = features + tiles.elements();
  const PixelTile tile(tiles.runs, blockIdx.x, tiles.pixels());
  if (!kChannelsLast) {
    tiles.load(tile, task.features, features);
    if (kSecond) tiles.load(tile, task.tangent, tangent);
  }
  if (warp < tiles.groups) {
    const int pixel = warp * kSize + lane / 4;
    Tap<A> tap{-1, 0};
    if (lane < 4 * kSize && pixel < tile.count) {
      tap = task.soft.template load<A>(tile.image, tile.begin + pixel, lane % 4);
    }
    const A scale[1] = {1};
    classes[warp].gather(tap, scale);
  }
  wait_for_copies();
  __syncthreads();
  if constexpr (kChannelsLast) {
    gradient_by_pixel<T, kSecond>(task, tile, classes);
  } else {
    gradient_by_plane<T, kSecond>(task, tile, classes, features, tangent);
  }
}

}  // namespace class_sums_op
}  // namespace pinmem
