// The products that the reading ops are made of: a block's 256 threads multiply two tiles in shared
// memory and keep the sums in registers. Tensor cores for 16-bit elements, multiply-adds for
// others.
#pragma once

#include "reading_mma.h"

namespace pinmem {

inline constexpr int kReadThreads = 256;
inline constexpr int kReadWarps = kReadThreads / kWarp;

/// Sizes of tiles. A tile of sums has at most kTileRows x columns elements, and grows by a product
/// `depth` deep: 128 bytes.
template <class T>
struct TileSize {
  static constexpr int depth = 128 / sizeof(T);
  static constexpr int columns = sizeof(T) == 8 ? 32 : 64;
  static constexpr int vector = Vector16<T>::size;
};
inline constexpr int kTileRows = 64;
/// Depths of products are padded to this with zeros.
inline constexpr int kDepthStep = 16;
/// Pixels of a tile at least.
template <class T>
inline constexpr int kLeastPixels = sizeof(T) == 2 ? 16 : 8;

__host__ __device__ __forceinline__ constexpr int round_up(int value, int to) {
  return (value + to - 1) / to * to;
}

/// One side of a product in shared memory: rows (columns, on the right) along the sums, by depth.
/// Lines of `pitch` elements, an odd number of 16 bytes, so that neighbouring lines begin in
/// different banks. A line is a row, or where not `depth_inner` one depth of all rows.
template <class T>
struct Operand {
  const T* data;
  int pitch;
  bool depth_inner;

  __device__ __forceinline__ const T* at(int row, int depth) const {
    return data + (depth_inner ? row * pitch + depth : depth * pitch + row);
  }
};

/// Sums of `rows` x `columns` (at most the tile's), shared out to the threads as fits how the
/// operands lie: multiply-adds of neighbouring rows where their depth is not inner.
template <class T>
class Product {
 public:
  using A = accumulator_t<T>;
  static constexpr int kStep = 4;  // depths at once

  __device__ __forceinline__ Product(int rows, int columns, bool left_inner, bool right_inner)
      : rows_(rows), columns_(columns), left_inner_(left_inner), right_inner_(right_inner) {
    clear();
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 16; ++i) sums_[i / 4][i % 4] = 0;
  }

  __device__ __forceinline__ void add(const Operand<T>& left, const Operand<T>& right, int depth) {
    const Place place(*this);
    if (place.row >= rows_ || place.column >= columns_) return;
    // The sums a thread has along a row.
    const int wide = right_inner_ ? (columns_ + place.column_step - 1) / place.column_step : 4;
#pragma unroll 1
    for (int k = 0; k < depth; k += kStep) {
      A l[4][4], r[4][4];  // [depth][row]
      fetch(left, place.row, place.row_step, rows_, k, l);
      fetch(right, place.column, place.column_step, columns_, k, r);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j >= wide) break;
#pragma unroll
        for (int d = 0; d < 4; ++d) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums_[i][j] += l[d][i] * r[d][j];
        }
      }
    }
  }

  /// Calls body(row, column, sum) for the thread's share.
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) {
    const Place place(*this);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = place.row + i * place.row_step;
        const int column = place.column + j * place.column_step;
        if (row < rows_ && column < columns_) body(row, column, sums_[i][j]);
      }
    }
  }

 private:
  /// Which sums the thread has: up to 4 x 4, a warp 4 x 8 times that. Computed where it is needed,
  /// because it would take registers.
  struct Place {
    int row, row_step, column, column_step;

    __device__ __forceinline__ explicit Place(const Product& of) {
      const int thread = opaque(static_cast<int>(threadIdx.x));
      const int lane = thread % kWarp, warp = thread / kWarp;
      const int high_log2 = of.rows_ > 32 ? 2 : of.rows_ > 16 ? 1 : 0;
      const int i = (lane & 3) | ((warp & ((1 << high_log2) - 1)) << 2);
      const int j = (lane >> 2) | ((warp >> high_log2) << 3);
      row = of.left_inner_ ? i : 4 * i;
      row_step = of.left_inner_ ? 4 << high_log2 : 1;
      column = of.right_inner_ ? j : 4 * j;
      column_step = of.right_inner_ ? kReadThreads / 4 >> high_log2 : 1;
    }
  };

  /// Four depths of the four rows first, first + step ...; what lies past `end` is not read.
  static __device__ __forceinline__ void fetch(const Operand<T>& from, int first, int step, int end,
                                               int depth, A (&to)[4][4]) {
    constexpr int kPart = Vector16<A>::size;
    if (from.depth_inner) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (r > 0 && first + r * step >= end) break;
        const T* line = from.at(first + r * step, depth);
#pragma unroll
        for (int d = 0; d < 4; d += kPart) {
          const auto part = *reinterpret_cast<const Vector16<A>*>(line + d);
#pragma unroll
          for (int e = 0; e < kPart; ++e) to[d + e][r] = part.at[e];
        }
      }
    } else if (step == 1) {
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        const T* line = from.at(first, depth + d);
#pragma unroll
        for (int r = 0; r < 4; r += kPart) {
          const auto part = *reinterpret_cast<const Vector16<A>*>(line + r);
#pragma unroll
          for (int e = 0; e < kPart; ++e) to[d][r + e] = part.at[e];
        }
      }
    } else {
#pragma unroll
      for (int d = 0; d < 4; ++d) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          if (r == 0 || first + r * step < end) to[d][r] = *from.at(first + r * step, depth + d);
        }
      }
    }
  }

  int rows_, columns_;
  bool left_inner_, right_inner_;
  A sums_[4][4];
};

/// On tensor cores a warp has 16 rows, and 8 columns of every `groups_` x 8.
template <class T>
class Fragments {
 public:
  static constexpr int kStep = kDepthStep;

  __device__ __forceinline__ Fragments(int rows, int columns, bool, bool)
      : rows_(rows), columns_(columns) {
    clear();
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 16; ++i) sums_[i / 4][i % 4] = 0;
  }

  __device__ __forceinline__ void add(const Operand<T>& left, const Operand<T>& right, int depth) {
    const Place place(*this);
    const auto column_of = [&](int t) { return place.column + t * place.column_step; };
    const int lane = place.lane, line = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
    if (column_of(0) >= columns_) return;
    constexpr int kBytes = sizeof(T);
    FragmentRow from_left = fragment_row(left.depth_inner ? left.at(place.row + low + line, high)
                                                          : left.at(place.row + low, high + line));
    // Of two groups of columns the lower lanes say where the first lies.
    FragmentRow from_right[2];
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int second = column_of(2 * t + 1);
      const int column = high == 0 || second >= columns_ ? column_of(2 * t) : second;
      from_right[t] = fragment_row(right.depth_inner ? right.at(column + line, low)
                                                     : right.at(column, low + line));
    }
    const int left_step = kDepthStep * kBytes * (left.depth_inner ? 1 : left.pitch);
    const int right_step = kDepthStep * kBytes * (right.depth_inner ? 1 : right.pitch);
#pragma unroll 2
    for (int k = 0; k < depth; k += kStep) {
      uint32_t a[4], b[4];
      load_fragments(from_left, !left.depth_inner, a);
      from_left += left_step;
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        if (column_of(2 * t) >= columns_) break;
        load_fragments(from_right[t], !right.depth_inner, b);
        from_right[t] += right_step;
        multiply_fragments<T>(sums_[2 * t], a, b[0], b[1]);
        if (column_of(2 * t + 1) < columns_) multiply_fragments<T>(sums_[2 * t + 1], a, b[2], b[3]);
      }
    }
  }

  template <class Body>
  __device__ __forceinline__ void each(const Body& body) {
    const Place place(*this);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = place.row + place.lane / 4 + i / 2 * 8;
        const int column = place.column + t * place.column_step + place.lane % 4 * 2 + i % 2;
        if (row < rows_ && column < columns_) body(row, column, sums_[t][i]);
      }
    }
  }

 private:
  /// Of a warp: 16 rows, and every so many columns 8.
  struct Place {
    int lane, row, column, column_step;

    __device__ __forceinline__ explicit Place(const Fragments& of) {
      const int thread = opaque(static_cast<int>(threadIdx.x)), warp = thread / kWarp;
      const int strips = (of.rows_ + 15) / 16;
      const int groups = strips == 3 ? 2 : kReadWarps >> (strips >> 1);
      const int group = strips == 3 ? warp * 11 >> 5 : warp >> (strips >> 1);
      lane = thread % kWarp;
      row = 16 * (strips == 3 ? warp - 3 * group : warp - group * strips);
      column = 8 * (group < groups ? group : TileSize<T>::columns);  // one warp too many
      column_step = 8 * groups;
    }
  };

  int rows_, columns_;
  float sums_[4][4];
};

template <>
class Product<bfloat16> : public Fragments<bfloat16> {
  using Fragments<bfloat16>::Fragments;
};
template <>
class Product<float16> : public Fragments<float16> {
  using Fragments<float16>::Fragments;
};

}  // namespace pinmem
