// Geometry of bilinear resizing with align_corners=True, in exact integers, and how a resized map
// is cut into pieces.
#pragma once

#include "device.h"

namespace pinmem {

/// floor(a / b) of what is not negative: 64 bits only where 32 do not hold it.
__host__ __device__ inline int64_t divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

/// One tangent: `in` source pixels become `out`. Resized pixel y lies in `cell_of(y)`, between
/// the source pixels cell and cell + 1 (the last pixel at the end of the last cell).
struct Axis {
  int64_t in, out;

  __host__ __device__ bool flat() const { return in <= 1 || out <= 1; }
  __host__ __device__ int64_t cells() const { return in > 1 ? in - 1 : 1; }
  __host__ __device__ int64_t cell_of(int64_t y) const {
    if (flat()) return 0;
    const int64_t cell = divide(y * (in - 1), out - 1);
    return cell < in - 2 ? cell : in - 2;
  }
  /// The first resized pixel whose cell is at least this one.
  __host__ __device__ int64_t first_of(int64_t cell) const {
    if (cell <= 0) return 0;
    if (flat() || cell >= in - 1) return out;
    return divide(cell * (out - 1) + in - 2, in - 1);
  }
  /// How far from source pixel `cell` to the next resized pixel y lies, in [0,1].
  template <class A>
  __host__ __device__ A fraction(int64_t y, int64_t cell) const {
    if (flat()) return 0;
    return static_cast<A>(y * (in - 1) - cell * (out - 1)) / static_cast<A>(out - 1);
  }
};

/// An axis cut into pieces of resized pixels. Two pieces share source pixels where they meet, so
/// the source pixels of all pieces are laid out one after the other, the shared ones twice: source
/// pixel i of piece t lies at i + overlap * t.
struct Pieces {
  Axis axis;
  int64_t cells_each;   // whole cells a piece, or 0
  int64_t pixels_each;  // else pixels a piece
  int64_t count;

  __host__ __device__ int64_t overlap() const { return cells_each > 0 ? 1 : 2; }
  __host__ __device__ int64_t begin(int64_t t) const {
    if (t >= count) return axis.out;
    return cells_each > 0 ? axis.first_of(t * cells_each) : t * pixels_each;
  }
  /// The first source pixel that a piece owns.
  __host__ __device__ int64_t source_begin(int64_t t) const {
    if (t >= count) return axis.in;
    if (cells_each > 0) return t * cells_each;
    return t == 0 ? 0 : axis.cell_of(begin(t));
  }
  /// Behind the last source pixel that a piece adds to: those owned by the next one too.
  __host__ __device__ int64_t source_end(int64_t t) const {
    return source_begin(t + 1) + (t + 1 < count ? overlap() : 0);
  }
  __host__ __device__ int64_t laid_out() const { return axis.in + overlap() * (count - 1); }
  __host__ __device__ int64_t owner_of(int64_t i) const {
    const int64_t t =
        cells_each > 0 ? divide(i, cells_each) : divide(axis.first_of(i + 1) - 1, pixels_each);
    return t < count ? t : count - 1;
  }
};

/// Where a source pixel lies in the layout of Pieces: at `place`, and `extra` times more, each
/// `overlap` before the one before.
struct Places {
  int64_t place;
  int extra;
};

__host__ __device__ inline Places places_of(const Pieces& pieces, int64_t i) {
  const int64_t owner = pieces.owner_of(i);
  int extra = 0;
  for (int64_t t = owner; t > 0 && pieces.source_begin(t) > i - pieces.overlap(); --t) ++extra;
  return {i + pieces.overlap() * owner, extra};
}

/// Pieces of about this many pixels each: whole cells where these are small enough.
inline Pieces cut(Axis axis, int64_t pixels) {
  const int64_t cells = axis.cells();
  // A cell of more than 1.5 pieces is cut.
  if (2 * axis.out > 3 * pixels * cells) {
    return {axis, 0, pixels, (axis.out + pixels - 1) / pixels};
  }
  int64_t each = (2 * pixels * cells + axis.out) / (2 * axis.out);
  each = each < 1 ? 1 : each;
  return {axis, each, 0, (cells + each - 1) / each};
}

/// Pieces of at most this many pixels, cut anywhere.
inline Pieces cut_anywhere(Axis axis, int64_t pixels) {
  return {axis, 0, pixels, (axis.out + pixels - 1) / pixels};
}

}  // namespace pinmem
