// What a block of a reading kernel does pixel by pixel: products over channels, softmax over slots.
#pragma once

#include "reading_block.h"

namespace pinmem {

/// Products over channels of a query x with itself, its direction v and a cotangent d.
enum PixelProduct { kXX, kXV, kXD, kVD, kPixelProducts };

/// Puts the products of every pixel of the tile into the numbers of the same place; v and d may be
/// absent: then theirs are 0.
template <class T, bool kSecond>
__device__ __forceinline__ void pixel_products(const ReadBlock<T>& block,
                                               const MapPart<const T>& direction,
                                               const MapPart<const T>& cotangent) {
  using A = accumulator_t<T>;
  constexpr int kVector = TileSize<T>::vector;
  const auto& task = block.task;
  const int thread = static_cast<int>(threadIdx.x);
  const bool has_d = static_cast<bool>(cotangent);
  const bool has_v = kSecond && static_cast<bool>(direction);
  A x[kVector], v[kVector], d[kVector];
#pragma unroll
  for (int e = 0; e < kVector; ++e) v[e] = d[e] = 0;
  const auto load = [&](const Place& place) {
    block.load(task.query, place, x);
    if (has_v) block.load(direction, place, v);
    if (has_d) block.load(cotangent, place, d);
  };
  if (task.runs.channels_last) {
    for (int pixel = thread / kWarp; pixel < block.tile.count; pixel += kReadWarps) {
      A sums[kPixelProducts] = {0, 0, 0, 0};
#pragma unroll 2
      for (int c = thread % kWarp * kVector; c < task.channels; c += kWarp * kVector) {
        load({pixel, c, task.channels - c});
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          sums[kXX] += x[e] * x[e];
          sums[kXD] += x[e] * d[e];
          if (kSecond) {
            sums[kXV] += x[e] * v[e];
            sums[kVD] += v[e] * d[e];
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kPixelProducts; ++i) {
        sums[i] = warp_sum(sums[i]);
        if (thread % kWarp == 0) block.number(i)[pixel] = sums[i];
      }
    }
    return;
  }
  // A thread has a few neighbouring pixels and every so many channels.
  const int vectors = task.plan.pixels / kVector, groups = kReadThreads / vectors;
  const int group = thread / vectors, pixel = (thread - group * vectors) * kVector;
  A sums[kPixelProducts][kVector];
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    for (int i = 0; i < kPixelProducts; ++i) sums[i][e] = 0;
  }
  if (pixel < block.tile.count) {
#pragma unroll 2
    for (int c = group; c < task.channels; c += groups) {
      load({pixel, c, block.tile.count - pixel});
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        sums[kXX][e] += x[e] * x[e];
        sums[kXD][e] += x[e] * d[e];
        if (kSecond) {
          sums[kXV][e] += x[e] * v[e];
          sums[kVD][e] += v[e] * d[e];
        }
      }
    }
  }
  A* shares = reinterpret_cast<A*>(block.buffers.tiles());  // [group][pixel]
#pragma unroll
  for (int i = 0; i < kPixelProducts; ++i) {
    if (!kSecond && (i == kXV || i == kVD)) continue;
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kVector; ++e) shares[group * task.plan.pixels + pixel + e] = sums[i][e];
    __syncthreads();
    if (thread >= task.plan.pixels) continue;
    A sum = 0;
    for (int g = 0; g < groups; ++g) sum += shares[g * task.plan.pixels + thread];
    block.number(i)[thread] = sum;
  }
}

/// A pixel as one of the threads that share its rows sees it. All threads of a warp go through the
/// same steps, also for pixels outside the map.
template <class T>
struct PixelRow {
  using A = accumulator_t<T>;
  const ReadBlock<T>& block;
  int pixel, lane, lanes;
  bool inside;
  int64_t place, step;  // of the first slot, and between slots, in a map of scores

  __device__ __forceinline__ explicit PixelRow(const ReadBlock<T>& block)
      : block(block),
        pixel(static_cast<int>(threadIdx.x) / block.task.plan.lanes),
        lane(static_cast<int>(threadIdx.x) % block.task.plan.lanes),
        lanes(block.task.plan.lanes),
        inside(pixel < block.tile.count),
        place(block.task.runs.offset(block.tile.image, block.tile.begin + pixel, 0,
                                     block.task.slots)),
        step(block.task.runs.channels_last ? 1 : block.task.runs.pixels) {}

  __device__ __forceinline__ A number(PixelNumber which) const {
    return block.number(which)[pixel];
  }
  __device__ __forceinline__ A* row(int which) const {
    return block.rows(which) + pixel * block.task.plan.row_pitch;
  }
  /// Calls body(k) for the thread's slots.
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
    if (!inside) return;
    for (int k = lane; k < block.task.slots; k += lanes) body(k);
  }
  __device__ __forceinline__ A sum(A value) const { return warp_sum(value, lanes); }
  __device__ __forceinline__ A max(A value) const { return warp_max(value, lanes); }
  /// A map of scores at slot k; 0 where it is absent.
  __device__ __forceinline__ A at(const T* map, int k) const {
    return map == nullptr ? A(0) : static_cast<A>(widen(map[place + k * step]));
  }
  __device__ __forceinline__ void put(T* map, int k, A value) const {
    if (map != nullptr) map[place + k * step] = narrow<T>(value);
  }

  /// Turns rows into elements of products, in place, with zeros behind the last slot and in pixels
  /// outside.
  __device__ __forceinline__ void narrow_rows(int count) const {
    const int padded = block.task.plan.padded_slots;
#pragma unroll 1
    for (int which = 0; which < count; ++which) {
      const A* from = row(which);
      T* to = reinterpret_cast<T*>(row(which));
#pragma unroll 1
      for (int begin = 0; begin < padded; begin += lanes) {
        const int k = begin + lane;
        const A value = inside && k < block.task.slots ? from[k] : A(0);
        __syncwarp();  // an element lies where another thread's number lay
        if (k < padded) to[k] = narrow<T>(value);
        __syncwarp();
      }
    }
  }
};

template <class A>
__device__ __forceinline__ A exponential(A value) {
  return fast_exp2(value * A(kLog2e));
}

}  // namespace pinmem
