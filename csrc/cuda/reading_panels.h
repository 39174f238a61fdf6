// Where the sides of the reading ops' products lie: parts of maps and matrices, and their tiles in
// shared memory.
#pragma once

#include "features.h"
#include "reading_product.h"

namespace pinmem {

/// Rows of a contiguous matrix, or of a part of its columns, of the map's type or float32.
struct Matrix {
  const void* data;  // null: absent
  Element type;
  int64_t stride;
  bool vectors;  // lines of the map's type that begin at multiples of 16 bytes

  __host__ __device__ explicit operator bool() const { return data != nullptr; }
};

/// Some channels of a map of `channels`, from `first` on.
template <class P>
struct MapPart {
  P* data;  // null: absent
  int channels, first;
  bool vectors;

  __host__ __device__ explicit operator bool() const { return data != nullptr; }
  __device__ __forceinline__ int64_t offset(const Runs& runs, const PixelTile& tile,
                                            int channel) const {
    return runs.offset(tile.image, opaque(tile.begin), first + channel, channels);
  }
};

__device__ __forceinline__ const void* advance(const void* data, Element type, int64_t count) {
  const int log2 = type == Element::f64 ? 3 : type == Element::f32 ? 2 : 1;
  return static_cast<const unsigned char*>(data) + (count << log2);
}

/// One side of a product in global memory: `rows` by `depth`; lines of `stride` elements as in an
/// Operand.
struct Panel {
  const void* data;
  Element type;
  int64_t stride;
  int rows, depth;
  bool depth_inner, vectors;
};

/// Rows first .. first + rows of a matrix, its columns the depth.
__device__ __forceinline__ Panel rows_of(const Matrix& matrix, int first, int rows, int depth) {
  return {advance(matrix.data, matrix.type, first * matrix.stride),
          matrix.type,
          matrix.stride,
          rows,
          depth,
          true,
          matrix.vectors};
}
/// Columns first .. first + columns of a matrix, its rows the depth.
__device__ __forceinline__ Panel columns_of(const Matrix& matrix, int first, int columns,
                                            int depth) {
  return {advance(matrix.data, matrix.type, first),
          matrix.type,
          matrix.stride,
          columns,
          depth,
          false,
          matrix.vectors};
}

template <class T>
inline constexpr Element kElement = Element::f16;
template <>
inline constexpr Element kElement<double> = Element::f64;
template <>
inline constexpr Element kElement<float> = Element::f32;
template <>
inline constexpr Element kElement<bfloat16> = Element::bf16;

/// Pixels of a tile, the channels the depth.
template <class T>
__device__ __forceinline__ Panel pixels_of(const MapPart<const T>& map, const Runs& runs,
                                           const PixelTile& tile, int channels) {
  return {map.data + map.offset(runs, tile, 0),
          kElement<T>,
          runs.channels_last ? map.channels : runs.pixels,
          tile.count,
          channels,
          runs.channels_last,
          map.vectors};
}
/// Channels first .. first + channels of a tile, its pixels the depth.
template <class T>
__device__ __forceinline__ Panel channels_of(const MapPart<const T>& map, const Runs& runs,
                                             const PixelTile& tile, int first, int channels) {
  return {map.data + map.offset(runs, tile, first),
          kElement<T>,
          runs.channels_last ? map.channels : runs.pixels,
          channels,
          tile.count,
          !runs.channels_last,
          map.vectors};
}

/// An element of a matrix, of the type T or float32.
template <class T>
__device__ __forceinline__ accumulator_t<T> load_either(const void* data, Element type, int64_t i) {
  if (type != kElement<T>) return static_cast<const float*>(data)[i];
  return widen(static_cast<const T*>(data)[i]);
}

/// How many bits tell the vectors of a line apart.
__host__ __device__ constexpr int log2_of(int power) {
  return power <= 1 ? 0 : 1 + log2_of(power / 2);
}

/// A panel's tile of at most kRows rows, in shared memory at `data`.
template <class T, int kRows>
__device__ __forceinline__ Operand<T> operand_at(const Panel& panel, const T* data) {
  const int width = panel.depth_inner ? TileSize<T>::depth : kRows;
  return {data, width + TileSize<T>::vector, panel.depth_inner};
}

/// Copies a tile of a panel to shared memory, depths from `depth` on, with zeros behind the last.
template <class T, int kRows>
__device__ __forceinline__ void load_panel(const Panel& panel, int depth, T* to) {
  using A = accumulator_t<T>;
  constexpr int kVector = TileSize<T>::vector, kDepth = TileSize<T>::depth;
  const int left = panel.depth - depth;
  const int deep = left < kDepth ? left : kDepth, padded = round_up(deep, kDepthStep);
  const bool inner = panel.depth_inner;
  const int pitch = operand_at<T, kRows>(panel, to).pitch;
  const int lines = inner ? panel.rows : padded, valid_lines = inner ? panel.rows : deep;
  const int length = inner ? padded : panel.rows, valid_length = inner ? deep : panel.rows;
  const int64_t stride = panel.stride, first = inner ? depth : depth * stride;
  if (panel.vectors) {
    const T* from = static_cast<const T*>(panel.data) + first;
    const int log2 = inner ? log2_of(kDepth / kVector) : log2_of(kRows / kVector);
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < lines << log2; i += kReadThreads) {
      const int line = i >> log2, at = (i - (line << log2)) * kVector;
      if (at >= length) continue;
      const bool valid = line < valid_lines && at < valid_length;
      copy_async(to + line * pitch + at, valid ? from + line * stride + at : from, valid);
    }
    return;
  }
  const int log2 = inner ? log2_of(kDepth) : log2_of(kRows);
  const void* data = panel.data;
  const Element type = panel.type;
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < lines << log2; i += kReadThreads) {
    const int line = i >> log2, at = i - (line << log2);
    if (at >= length) continue;
    const bool valid = line < valid_lines && at < valid_length;
    const int64_t place = first + line * stride + at;
    to[line * pitch + at] = narrow<T>(valid ? load_either<T>(data, type, place) : A(0));
  }
}

/// Multiplies the depths of a tile with factors, in place.
template <class T>
__device__ __forceinline__ void scale_depths(const Operand<T>& tile, T* data, int rows, int depth,
                                             const accumulator_t<T>* factors) {
  constexpr int kVector = TileSize<T>::vector;
  const int lines = tile.depth_inner ? rows : depth;
  const int vectors = ((tile.depth_inner ? depth : rows) + kVector - 1) / kVector;
  for (int i = static_cast<int>(threadIdx.x); i < lines * vectors; i += kReadThreads) {
    const int line = i / vectors, at = (i - line * vectors) * kVector;
    auto& vector = *reinterpret_cast<Vector16<T>*>(data + line * tile.pitch + at);
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      const int d = tile.depth_inner ? at + e : line;
      if (d < depth) vector.at[e] = narrow<T>(widen(vector.at[e]) * factors[d]);
    }
  }
}

}  // namespace pinmem
