// How the reading ops sum products of tiles that come to shared memory one after the other.
#pragma once

#include "reading_panels.h"

namespace pinmem {

/// What is added to sums: left x right. The left side comes from global memory, or where `rows` has
/// data lies in shared memory, all of it. `factors`, where not null, multiply the right side's
/// depths. Without a right side there is nothing to add.
template <class T>
struct Term {
  Panel left;
  Operand<T> rows;
  Panel right;
  const accumulator_t<T>* factors;

  __device__ __forceinline__ Term() : left{}, rows{nullptr, 0, false}, right{}, factors(nullptr) {}
  __device__ __forceinline__ Term(const Panel& left, const Panel& right,
                                  const accumulator_t<T>* factors = nullptr)
      : left(left), rows{nullptr, 0, false}, right(right), factors(factors) {}
  __device__ __forceinline__ Term(const Operand<T>& rows, const Panel& right,
                                  const accumulator_t<T>* factors = nullptr)
      : left{}, rows(rows), right(right), factors(factors) {}
};

/// The sums that a product consists of, and how its sides mostly lie; none where there are no rows.
struct Extent {
  int rows, columns;
  bool left_inner, right_inner;
};

/// Numbers of a pixel in shared memory, at most.
inline constexpr int kPixelNumbers = 4;

/// A block's shared memory: the product and its term at hand (they would take many registers),
/// numbers of pixels, and the term's tiles, `stages` pairs of a left and a right one.
template <class T>
struct Buffers {
  using A = accumulator_t<T>;
  int stages;

  struct Work {
    Extent extent;
    Term<T> term;
  };
  static constexpr int kWorkBytes = round_up(sizeof(Work), 16);
  static constexpr int kNumberBytes = kPixelNumbers * kTileRows * static_cast<int>(sizeof(A));

  static __device__ __forceinline__ Work& work() { return *dynamic_shared<Work>(); }
  static __device__ __forceinline__ A* numbers() {
    return reinterpret_cast<A*>(dynamic_shared<unsigned char>() + kWorkBytes);
  }
  static __device__ __forceinline__ T* tiles() {
    return reinterpret_cast<T*>(dynamic_shared<unsigned char>() + kWorkBytes + kNumberBytes);
  }
  static constexpr int kVector = TileSize<T>::vector;
  static constexpr int most(int rows) {
    const int inner = rows * (TileSize<T>::depth + kVector);
    const int outer = TileSize<T>::depth * (rows + kVector);
    return inner > outer ? inner : outer;
  }
  static constexpr int kLeft = most(kTileRows), kRight = most(TileSize<T>::columns);
  /// Sums on their way out lie where tiles lay: [pixel][channel] or [channel][pixel].
  static constexpr int kByPixel = TileSize<T>::columns + 16 / sizeof(A);
  static constexpr int kByChannel = kTileRows + 16 / sizeof(A);
  static constexpr int sum_bytes() {
    const int by_pixel = kTileRows * kByPixel, by_channel = TileSize<T>::columns * kByChannel;
    return (by_pixel > by_channel ? by_pixel : by_channel) * static_cast<int>(sizeof(A));
  }
  static constexpr int bytes(int stages) {
    const int tiles = stages * (kLeft + kRight) * static_cast<int>(sizeof(T));
    return kWorkBytes + kNumberBytes + (tiles > sum_bytes() ? tiles : sum_bytes());
  }

  __device__ __forceinline__ T* left(int stage) const { return tiles() + stage * (kLeft + kRight); }
  __device__ __forceinline__ T* right(int stage) const { return left(stage) + kLeft; }
};

/// Adds the term make(). A tile comes while the one before is multiplied, where there is a second
/// stage. Synchronises first: the buffers and rows may have been in use.
template <class T, class Make>
__device__ __forceinline__ void add_term(Product<T>& sums, const Buffers<T>& buffers,
                                         const Make& make) {
  constexpr int kDepth = TileSize<T>::depth, kColumns = TileSize<T>::columns;
  const Term<T>& term = buffers.work().term;
  __syncthreads();
  if (threadIdx.x == 0) buffers.work().term = make();
  __syncthreads();
  if (term.right.data == nullptr) return;
  const bool loads_left = term.rows.data == nullptr;
  const int depth = term.right.depth, last = (depth - 1) / kDepth;
  const auto load = [&](int step) {
    const int stage = buffers.stages == 2 ? step & 1 : 0;
    if (loads_left) load_panel<T, kTileRows>(term.left, step * kDepth, buffers.left(stage));
    load_panel<T, kColumns>(term.right, step * kDepth, buffers.right(stage));
    commit_copies();
  };
  const int ahead = buffers.stages - 1;
#pragma unroll 1
  for (int step = -ahead; step <= last; ++step) {
    if (ahead == 0 && step > 0) __syncthreads();
    if (step >= 0 && ahead == 1) {
      wait_for_copies();
      __syncthreads();
    }
    if (step + ahead <= last) load(step + ahead);
    if (step < 0) continue;
    if (ahead == 0) {
      wait_for_copies();
      __syncthreads();
    }
    const int stage = ahead == 1 ? step & 1 : 0;
    const int deep = step < last ? kDepth : depth - last * kDepth;
    const auto right = operand_at<T, kColumns>(term.right, buffers.right(stage));
    if (term.factors != nullptr) {
      scale_depths(right, buffers.right(stage), term.right.rows, deep,
                   term.factors + step * kDepth);
      __syncthreads();
    }
    Operand<T> left = term.rows;
    if (loads_left) {
      left = operand_at<T, kTileRows>(term.left, buffers.left(stage));
    } else {
      left.data = left.at(0, step * kDepth);
    }
    sums.add(left, right, round_up(deep, Product<T>::kStep));
  }
}

/// A tile of a product's sums.
struct SumTile {
  int row, rows, column, columns;
};

/// Forms all products of a pass, which says of each, by its number, what it is:
///   before(product): what has to be done first,
///   extent(product) -> Extent,
///   term(product, t, tile) -> Term, the t-th of kTerms, and added(product, t, tile, sums) after
///   it, end(product, tile, sums): what becomes of the sums.
/// All in one loop, so that a kernel has the text of a product once.
template <class T, class Pass>
__device__ __forceinline__ void form_products(const Buffers<T>& buffers, const Pass& pass) {
  constexpr int kColumns = TileSize<T>::columns;
  const Extent& extent = buffers.work().extent;
#pragma unroll 1
  for (int product = 0; product < Pass::kProducts; ++product) {
    pass.before(product);
    __syncthreads();
    if (threadIdx.x == 0) buffers.work().extent = pass.extent(product);
    __syncthreads();
#pragma unroll 1
    for (int row = 0; row < extent.rows; row += kTileRows) {
#pragma unroll 1
      for (int column = 0; column < extent.columns; column += kColumns) {
        const int rows = extent.rows - row, columns = extent.columns - column;
        const SumTile tile{row, rows < kTileRows ? rows : kTileRows, column,
                           columns < kColumns ? columns : kColumns};
        Product<T> sums(tile.rows, tile.columns, extent.left_inner, extent.right_inner);
#pragma unroll 1
        for (int t = 0; t < Pass::kTerms; ++t) {
          add_term(sums, buffers, [&] { return pass.term(product, t, tile); });
          pass.added(product, t, tile, sums);
        }
        pass.end(product, tile, sums);
      }
    }
  }
}

}  // namespace pinmem
