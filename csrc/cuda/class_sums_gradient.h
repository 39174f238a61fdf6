// The gradient of class_sums for the features, first and second order: a sum over the channels of a
// pixel, and a combination of its vectors with the factors that follow from that.
#pragma once

#include "class_sums_labels.h"
#include "features.h"

namespace pinmem {
namespace class_sums_op {

template <class T>
struct Gradient {
  using A = accumulator_t<T>;
  Runs runs;
  SoftLabels soft;
  int channels;
  bool aligned;
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

/// The cotangent of a normalised feature, channels c .. c + kSize: the sums' cotangents, weighted.
template <int kSize, class A>
__device__ __forceinline__ void cotangent_of(const SoftLabel<A>& soft, const A* grad_sums,
                                             int channels, int c, bool aligned, A (&e)[kSize]) {
  constexpr int kPart = Vector16<A>::size;
#pragma unroll
  for (int i = 0; i < kSize; ++i) e[i] = 0;
#pragma unroll
  for (int a = 0; a < 4; ++a) {
    if (soft.label[a] < 0) continue;
    const A* row = grad_sums + static_cast<int64_t>(soft.label[a]) * channels + c;
    if (kSize >= kPart && aligned) {
#pragma unroll
      for (int i = 0; i < kSize; i += kPart) {
        const auto part = *reinterpret_cast<const Vector16<A>*>(row + i);
#pragma unroll
        for (int j = 0; j < kPart && i + j < kSize; ++j) e[i + j] += soft.weight[a] * part.at[j];
      }
      continue;
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (c + i < channels) e[i] += soft.weight[a] * row[i];
    }
  }
}

template <bool kSecond, int kSize, class A>
__device__ __forceinline__ void add_products(const A (&x)[kSize], const A (&v)[kSize],
                                             const A (&e)[kSize], Products<A>& sums) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    sums.xx += x[i] * x[i];
    sums.xe += x[i] * e[i];
    if (kSecond) {
      sums.xv += x[i] * v[i];
      sums.ve += v[i] * e[i];
    }
  }
}

/// channels_last: a warp a pixel, 16 bytes a lane.
template <class T, bool kSecond>
__device__ void gradient_by_pixel(const Gradient<T>& task, const PixelTile& tile,
                                  const SoftLabel<accumulator_t<T>>* soft) {
  using A = accumulator_t<T>;
  constexpr int kSize = Vector16<T>::size;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int p = warp; p < tile.count; p += kThreads / kWarp) {
    const int64_t at = task.runs.offset(tile.image, tile.begin + p, 0, task.channels);
    Products<A> sums{0, 0, 0, 0};
    A x[kSize], v[kSize] = {}, e[kSize];
    const auto load = [&](int c) {
      load_vector<T, A>(task.features + at + c, task.channels - c, task.aligned, x);
      if (kSecond) {
        load_vector<T, A>(task.tangent + at + c, task.channels - c, task.aligned, v);
      }
      cotangent_of<kSize, A>(soft[p], task.grad_sums, task.channels, c, task.aligned, e);
    };
    for (int c = lane * kSize; c < task.channels; c += kWarp * kSize) {
      load(c);
      add_products<kSecond, kSize, A>(x, v, e, sums);
    }
    sums.xx = warp_sum(sums.xx);
    sums.xe = warp_sum(sums.xe);
    if (kSecond) {
      sums.xv = warp_sum(sums.xv);
      sums.ve = warp_sum(sums.ve);
    }
    const Factors<A> factors = factors_of<kSecond>(sums);
    for (int c = lane * kSize; c < task.channels; c += kWarp * kSize) {
      // Of a feature that fits one step the registers still hold it.
      if (task.channels > kWarp * kSize) load(c);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        x[i] = factors.cotangent * e[i] + factors.feature * x[i];
        if (kSecond) x[i] += factors.tangent * v[i];
      }
      store_vector<T, A>(task.gradient + at + c, task.channels - c, task.aligned, x);
    }
  }
}

/// NCHW: a lane a pixel, the warps share the channels.
template <class T, bool kSecond>
__device__ void gradient_by_plane(const Gradient<T>& task, const PixelTile& tile,
                                  const SoftLabel<accumulator_t<T>>* soft) {
  using A = accumulator_t<T>;
  constexpr int kWarps = kThreads / kWarp;
  __shared__ Products<A> shares[kWarps][kTilePixels];
  const int p = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const bool inside = p < tile.count;
  const SoftLabel<A> label = soft[inside ? p : 0];
  const int64_t at = task.runs.offset(tile.image, tile.begin + p, 0, task.channels);
  Products<A> sums{0, 0, 0, 0};
  A x[1], v[1] = {0}, e[1];
  const auto load = [&](int c) {
    x[0] = widen(task.features[at + c * task.runs.pixels]);
    if (kSecond) v[0] = widen(task.tangent[at + c * task.runs.pixels]);
    cotangent_of<1, A>(label, task.grad_sums, task.channels, c, false, e);
  };
  if (inside) {
#pragma unroll 4
    for (int c = warp; c < task.channels; c += kWarps) {
      load(c);
      add_products<kSecond, 1, A>(x, v, e, sums);
    }
  }
  shares[warp][p] = sums;
  __syncthreads();
  sums = shares[0][p];
  for (int other = 1; other < kWarps; ++other) {
    sums.xx += shares[other][p].xx;
    sums.xe += shares[other][p].xe;
    sums.xv += shares[other][p].xv;
    sums.ve += shares[other][p].ve;
  }
  if (!inside) return;
  const Factors<A> factors = factors_of<kSecond>(sums);
#pragma unroll 4
  for (int c = warp; c < task.channels; c += kWarps) {
    load(c);
    A value = factors.cotangent * e[0] + factors.feature * x[0];
    if (kSecond) value += factors.tangent * v[0];
    task.gradient[at + c * task.runs.pixels] = narrow<T>(value);
  }
}

template <class T, bool kSecond>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    class_sums_gradient(const __grid_constant__ Gradient<T> task) {
  using A = accumulator_t<T>;
  __shared__ SoftLabel<A> soft[kTilePixels];
  const PixelTile tile(task.runs, blockIdx.x, kTilePixels);
  if (static_cast<int>(threadIdx.x) < tile.count) {
    soft[threadIdx.x] = task.soft.template load<A>(tile.image, tile.begin + threadIdx.x);
  }
  __syncthreads();
  if (task.runs.channels_last) {
    gradient_by_pixel<T, kSecond>(task, tile, soft);
  } else {
    gradient_by_plane<T, kSecond>(task, tile, soft);
  }
}

}  // namespace class_sums_op
}  // namespace pinmem
