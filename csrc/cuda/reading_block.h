// What a block of every reading kernel does with its tile of pixels (docs/math.md 1).
//
// Per pixel there are a few rows of `slots` numbers (scores, attention, their cotangents), which
// stay in shared memory, and vectors of channels, which never do: their tiles come and go.
#pragma once

#include "reading_tiles.h"

namespace pinmem {

/// How a block is laid out; by the shape alone.
struct ReadPlan {
  int pixels;        // of a tile
  int lanes;         // threads that share a pixel's rows
  int padded_slots;  // a multiple of kDepthStep
  int row_pitch;
  int stages;
};

/// What all passes read: scores come of the memory, contexts (projected ones with a weight) of the
/// values.
template <class T>
struct Reading {
  Runs runs;
  int64_t tiles;
  int channels, slots, outputs;
  ReadPlan plan;
  MapPart<const T> query;
  const T* gumbel;
  Matrix memory;  // [slots, channels]
  Matrix values;  // [slots, outputs]: the memory, or M W_c^T
  Matrix weight;  // [outputs, channels]: W_q, or absent
};

/// The numbers of a pixel, an array each.
enum PixelNumber { kInverseNorm, kTurn, kAlong, kMovedAlong };

/// Some neighbouring elements of a map: channels of a pixel, or pixels of a channel.
struct Place {
  int pixel, channel, count;
};

template <class T>
struct ReadBlock {
  using A = accumulator_t<T>;
  static constexpr int kVector = TileSize<T>::vector;

  const Reading<T>& task;
  PixelTile tile;
  Buffers<T> buffers;

  __device__ __forceinline__ ReadBlock(const Reading<T>& task, int64_t index)
      : task(task), tile(task.runs, index, task.plan.pixels), buffers{task.plan.stages} {}

  static int64_t shared_bytes(const ReadPlan& plan, int rows) {
    return Buffers<T>::bytes(plan.stages) +
           rows * plan.pixels * plan.row_pitch * static_cast<int64_t>(sizeof(A));
  }

  __device__ __forceinline__ A* number(int which) const {
    return buffers.numbers() + which * kTileRows;
  }
  __device__ __forceinline__ A* rows(int which) const {
    return reinterpret_cast<A*>(dynamic_shared<unsigned char>() +
                                Buffers<T>::bytes(task.plan.stages)) +
           which * task.plan.pixels * task.plan.row_pitch;
  }
  /// Rows, narrowed, as a left side: pixels by slots.
  __device__ __forceinline__ Operand<T> narrowed(int which) const {
    constexpr int kRatio = sizeof(A) / sizeof(T);
    return {reinterpret_cast<const T*>(rows(which)), task.plan.row_pitch * kRatio, true};
  }
  /// The same transposed: slots from `slot` on by pixels.
  __device__ __forceinline__ Operand<T> transposed(int which, int slot) const {
    const Operand<T> by_pixel = narrowed(which);
    return {by_pixel.data + slot, by_pixel.pitch, false};
  }
  /// The pixel of an element of a place.
  __device__ __forceinline__ int pixel_of(const Place& place, int element) const {
    return task.runs.channels_last ? place.pixel : place.pixel + element;
  }
  /// Calls body(place) for all elements of the tile's channels first .. first + channels.
  template <class Body>
  __device__ __forceinline__ void each_place(int first, int channels, const Body& body) const {
    const bool last = task.runs.channels_last;
    const int inner = last ? channels : tile.count, outer = last ? tile.count : channels;
    const int vectors = opaque((inner + kVector - 1) / kVector);
    for (int i = opaque(static_cast<int>(threadIdx.x)); i < outer * vectors; i += kReadThreads) {
      const int o = i / vectors, v = (i - o * vectors) * kVector;
      body(last ? Place{o, first + v, inner - v} : Place{v, first + o, inner - v});
    }
  }
  template <class P>
  __device__ __forceinline__ int64_t offset(const MapPart<P>& map, const Place& place) const {
    return task.runs.offset(opaque(tile.image), tile.begin + place.pixel, map.first + place.channel,
                            map.channels);
  }
  template <class P>
  __device__ __forceinline__ void load(const MapPart<P>& map, const Place& place,
                                       A (&to)[kVector]) const {
    load_vector<T, A>(map.data + offset(map, place), place.count, map.vectors, to);
  }
  __device__ __forceinline__ void store(const MapPart<T>& map, const Place& place,
                                        const A (&from)[kVector]) const {
    store_vector<T, A>(map.data + offset(map, place), place.count, map.vectors, from);
  }

  /// Lays sums [pixels, channels] where tiles lay, as maps lie.
  __device__ __forceinline__ void lay_out(Product<T>& sums) const {
    A* to = reinterpret_cast<A*>(buffers.tiles());
    const bool last = task.runs.channels_last;
    __syncthreads();
    sums.each([&](int pixel, int channel, A& sum) {
      to[last ? pixel * Buffers<T>::kByPixel + channel : channel * Buffers<T>::kByChannel + pixel] =
          sum;
    });
    __syncthreads();
  }
  __device__ __forceinline__ const A* laid_out(int pixel, int channel) const {
    return reinterpret_cast<const A*>(buffers.tiles()) +
           (task.runs.channels_last ? pixel * Buffers<T>::kByPixel + channel
                                    : channel * Buffers<T>::kByChannel + pixel);
  }
  /// Lays out the sums of channels first .. and calls body(place, sums) for all of them.
  template <class Body>
  __device__ __forceinline__ void each_sum(Product<T>& sums, int first, int channels,
                                           const Body& body) const {
    lay_out(sums);
    each_place(first, channels, [&](const Place& place) {
      constexpr int kPart = Vector16<A>::size;
      const A* from = laid_out(place.pixel, place.channel - first);
      A values[kVector];
#pragma unroll
      for (int i = 0; i < kVector; i += kPart) {
        const auto part = *reinterpret_cast<const Vector16<A>*>(from + i);
#pragma unroll
        for (int e = 0; e < kPart; ++e) values[i + e] = part.at[e];
      }
      body(place, values);
    });
  }
  /// Adds to the numbers `which` a pixel's product of laid out sums with channels first .. of a
  /// map, divided by the query's norm.
  __device__ __forceinline__ void add_product(int which, const MapPart<const T>& map, int first,
                                              int channels) const {
    const int lanes = task.plan.lanes, thread = opaque(static_cast<int>(threadIdx.x));
    const int pixel = thread / lanes, lane = thread - pixel * lanes;
    A sum = 0;
    if (pixel < tile.count) {
#pragma unroll 4
      for (int c = lane; c < channels; c += lanes) {
        sum += *laid_out(pixel, c) * widen(map.data[offset(map, {pixel, first + c, 1})]);
      }
    }
    sum = warp_sum(sum, lanes);
    if (pixel < tile.count && lane == 0) number(which)[pixel] += number(kInverseNorm)[pixel] * sum;
  }

  /// Rows: pixels by slots, over channels.
  __device__ __forceinline__ Extent row_extent() const {
    return {task.plan.pixels, task.slots, task.runs.channels_last, true};
  }
  __device__ __forceinline__ Term<T> row_term(const MapPart<const T>& map, const Matrix& matrix,
                                              int depth, const SumTile& at) const {
    if (!map || !matrix) return {};
    return {pixels_of<T>(map, task.runs, tile, depth),
            rows_of(matrix, at.column, at.columns, depth)};
  }
  __device__ __forceinline__ void end_rows(int which, const SumTile& at, Product<T>& sums) const {
    A* to = rows(which) + at.column;
    sums.each([&](int pixel, int k, A& sum) { to[pixel * task.plan.row_pitch + k] = sum; });
  }

  /// A block's share of a sum over pixels: slots by channels.
  __device__ __forceinline__ Extent share_extent(int channels) const {
    return {task.plan.padded_slots, channels, false, !task.runs.channels_last};
  }
  __device__ __forceinline__ Term<T> share_term(int which, const MapPart<const T>& map,
                                                const SumTile& at,
                                                const A* factors = nullptr) const {
    if (!map) return {};
    return {transposed(which, at.row), channels_of<T>(map, task.runs, tile, at.column, at.columns),
            factors};
  }
  __device__ __forceinline__ void end_share(A* share, int channels, bool fresh, const SumTile& at,
                                            Product<T>& sums) const {
    share += at.row * channels + at.column;
    const int slots = task.slots - at.row;
    sums.each([&](int k, int c, A& sum) {
      if (k >= slots) return;
      A& place = share[k * channels + c];
      place = fresh ? sum : place + sum;
    });
  }

  /// A map: pixels by channels, over rows or another map's channels.
  __device__ __forceinline__ Term<T> slots_term(int which, const Matrix& matrix,
                                                const SumTile& at) const {
    if (!matrix) return {};
    return {narrowed(which), columns_of(matrix, at.column, at.columns, task.slots)};
  }
};

}  // namespace pinmem
