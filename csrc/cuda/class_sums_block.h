// The sums of class_sums, and their derivative along a tangent of the features.
//
// A block brings a tile of pixels to shared memory once, takes their norms, and then every thread
// owns a channel: it goes through the pixels with a register for the class at hand, which it adds
// to the block's sums when the class changes. All threads see the same classes, so they never
// diverge, and no two write to the same place.
#pragma once

#include "class_sums_labels.h"
#include "features.h"

namespace pinmem {
namespace class_sums_op {

template <class T>
struct Sums {
  using A = accumulator_t<T>;
  Runs runs;
  SoftLabels soft;
  int channels, num_classes;
  int tile_pixels, pitch;  // of a tile in shared memory
  bool aligned;
  const T* features;
  const T* tangent;  // second order: lies as the features do
  int64_t tiles, tiles_each;
  bool shared_sums;
  A* partials;  // of every block: sums [K,C], then masses [K]

  __host__ __device__ int64_t size() const {
    return static_cast<int64_t>(num_classes) * (channels + 1);
  }
  __host__ __device__ int tile_elements() const {
    return runs.channels_last ? tile_pixels * pitch : channels * pitch;
  }
};

/// What a pixel's feature is multiplied with to be normalised (second order: and its tangent).
template <class A>
struct PixelScale {
  A feature, tangent;
};

/// Copies a tile of a map to shared memory as it lies: [pixel][channel] or [channel][pixel].
template <class T>
__device__ void load_tile(const Sums<T>& task, const PixelTile& tile, const T* from, T* to) {
  constexpr int kSize = Vector16<T>::size;
  const int inner = task.runs.channels_last ? task.channels : tile.count;
  const int outer = task.runs.channels_last ? tile.count : task.channels;
  const int64_t first = task.runs.offset(tile.image, tile.begin, 0, task.channels);
  const int64_t step = task.runs.channels_last ? task.channels : task.runs.pixels;
  // A tile's last vector may reach past its pixels only where the run does too.
  if (task.aligned && inner % kSize == 0) {
    const unsigned vectors = static_cast<unsigned>(inner) / kSize;
    for (unsigned i = threadIdx.x; i < vectors * outer; i += kThreads) {
      const unsigned o = i / vectors, v = (i - o * vectors) * kSize;
      const auto vector = *reinterpret_cast<const Vector16<T>*>(from + first + o * step + v);
      T* place = to + o * task.pitch + v;
      if (task.runs.channels_last) {
        *reinterpret_cast<Vector16<T>*>(place) = vector;
      } else {
#pragma unroll
        for (int k = 0; k < kSize; ++k) place[k] = vector.at[k];
      }
    }
    return;
  }
  for (unsigned i = threadIdx.x; i < static_cast<unsigned>(inner * outer); i += kThreads) {
    const unsigned o = i / static_cast<unsigned>(inner), n = i - o * inner;
    to[o * task.pitch + n] = from[first + o * step + n];
  }
}

template <class T, bool kSecond>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    class_sums_block(const __grid_constant__ Sums<T> task) {
  using A = accumulator_t<T>;
  __shared__ SoftLabel<A> soft[kTilePixels];
  __shared__ PixelScale<A> scales[kTilePixels];
  T* tile_features = dynamic_shared<T>();
  T* tile_tangent = tile_features + task.tile_elements();
  A* own = task.partials + blockIdx.x * task.size();
  A* sums = task.shared_sums
                ? reinterpret_cast<A*>(tile_features + (kSecond ? 2 : 1) * task.tile_elements())
                : own;
  const int size = static_cast<int>(task.size());
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int pixel_step = task.runs.channels_last ? task.pitch : 1;
  const int channel_step = task.runs.channels_last ? 1 : task.pitch;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) sums[i] = 0;

  const int64_t begin = blockIdx.x * task.tiles_each;
  const int64_t end = begin + task.tiles_each < task.tiles ? begin + task.tiles_each : task.tiles;
  for (int64_t index = begin; index < end; ++index) {
    const PixelTile tile(task.runs, index, task.tile_pixels);
    __syncthreads();
    load_tile(task, tile, task.features, tile_features);
    if (kSecond) load_tile(task, tile, task.tangent, tile_tangent);
    if (static_cast<int>(threadIdx.x) < tile.count) {
      soft[threadIdx.x] = task.soft.template load<A>(tile.image, tile.begin + threadIdx.x);
    }
    __syncthreads();
    for (int p = warp; p < tile.count; p += kThreads / kWarp) {
      A squared = 0, product = 0;
      for (int c = lane; c < task.channels; c += kWarp) {
        const int at = p * pixel_step + c * channel_step;
        const A x = widen(tile_features[at]);
        squared += x * x;
        if (kSecond) product += x * widen(tile_tangent[at]);
      }
      squared = warp_sum(squared);
      if (kSecond) product = warp_sum(product);
      bool linear;
      const A r = inverse_norm(squared, linear);
      if (lane == 0) {
        scales[p].feature = !kSecond ? r : linear ? A(0) : -r * r * (r * product);
        scales[p].tangent = r;
      }
    }
    __syncthreads();
    // Channel C stands for the constant 1: its sums are the masses.
    for (int c = static_cast<int>(threadIdx.x); c < task.channels + (kSecond ? 0 : 1);
         c += kThreads) {
      A* to = sums + (c < task.channels ? c : task.num_classes * task.channels);
      const int class_step = c < task.channels ? task.channels : 1;
      int at_hand = -1;
      A sum = 0;
      for (int p = 0; p < tile.count; ++p) {
        A q = 1;
        if (c < task.channels) {
          const int at = p * pixel_step + c * channel_step;
          q = scales[p].feature * widen(tile_features[at]);
          if (kSecond) q += scales[p].tangent * widen(tile_tangent[at]);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int label = soft[p].label[e];
          if (label < 0) continue;
          if (label != at_hand) {
            if (at_hand >= 0) to[at_hand * class_step] += sum;
            at_hand = label;
            sum = 0;
          }
          sum += soft[p].weight[e] * q;
        }
      }
      if (at_hand >= 0) to[at_hand * class_step] += sum;
    }
  }
  if (!task.shared_sums) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) own[i] = sums[i];
}

}  // namespace class_sums_op
}  // namespace pinmem
