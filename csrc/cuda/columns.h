// How a block walks over upsampled logits: every thread owns a column of resized pixels and some
// classes and goes down a band of rows. Shared by upsampled_cross_entropy and upsampled_confusion.
//
// A column of one class is linear in y inside a cell: the thread keeps its value at the source row
// above and its rise to the one below in registers, so a pixel and class costs one multiply-add.
//
// Arrays in shared memory have a place for every class a thread could hold, and their strides are
// constants wherever a thread goes through its classes: addresses are then immediates.
#pragma once

#include <type_traits>

#include "upsampling.h"

namespace pinmem {

inline constexpr int kColumnThreads = 128;
inline constexpr int kMostBandRows = 64;

/// Logits [B,K,h,w] of any strides and element type.
struct Logits {
  const void* data;
  Element type;
  int64_t image, channel, row, column;  // strides
};

/// A matrix of outer x inner elements, neighbours along `inner`.
struct Extents {
  int outer, inner;
};

/// The shape of the work, the same for all blocks.
struct Grid {
  int64_t batch;
  int num_classes;
  int groups;        // lanes that share the classes of a column: a power of two
  int columns_log2;  // columns of a warp
  int classes_a_lane;
  Pieces bands, strips;
  int most_rows;                  // of a band
  int most_staged, most_emitted;  // source columns of a strip: read, and added to
  bool channels_last;
  Extents staging;

  __host__ __device__ int64_t blocks() const { return batch * bands.count * strips.count; }
  __host__ __device__ int columns() const { return kColumnThreads / groups; }
  /// From one staged source column to the next; odd, so that they lie in different banks.
  __host__ __device__ int staged_pitch() const { return (groups * classes_a_lane) | 1; }
  __host__ __device__ int staged_elements() const { return most_staged * staged_pitch(); }
};

/// A row of the band: the cell it lies in, and how far below the cell's upper source row.
template <class A>
struct BandRow {
  int cell;
  A fraction;
};

/// A block's band of rows and strip of columns. Lies in shared memory: what all threads know alike
/// should not fill the registers of each.
struct Piece {
  int image, band, strip;
  int y_begin, rows, x_begin, columns;
  int row_begin, row_end;       // source rows it adds to
  int emit_begin, emit_end;     // source columns it adds to
  int source_x, staged;         // source columns it reads
  const unsigned char* labels;  // of its first pixel

  /// Called by all threads; synchronises.
  __device__ void find(const Grid& grid, const Labels& all_labels) {
    if (threadIdx.x == 0) {
      unsigned index = blockIdx.x;
      const auto strips = static_cast<unsigned>(grid.strips.count);
      const auto bands = static_cast<unsigned>(grid.bands.count);
      strip = static_cast<int>(index % strips);
      index /= strips;
      band = static_cast<int>(index % bands);
      image = static_cast<int>(index / bands);
      y_begin = static_cast<int>(grid.bands.begin(band));
      rows = static_cast<int>(grid.bands.begin(band + 1)) - y_begin;
      row_begin = static_cast<int>(grid.bands.source_begin(band));
      row_end = static_cast<int>(grid.bands.source_end(band));
      x_begin = static_cast<int>(grid.strips.begin(strip));
      columns = static_cast<int>(grid.strips.begin(strip + 1)) - x_begin;
      emit_begin = static_cast<int>(grid.strips.source_begin(strip));
      emit_end = static_cast<int>(grid.strips.source_end(strip));
      const int64_t first = (image * grid.bands.axis.out + y_begin) * grid.strips.axis.out;
      labels = static_cast<const unsigned char*>(all_labels.data) +
               (first + x_begin) * (all_labels.wide ? 8 : 1);
      const Axis& axis = grid.strips.axis;
      source_x = static_cast<int>(axis.cell_of(x_begin));
      staged = static_cast<int>(axis.cell_of(x_begin + columns - 1)) - source_x + 2;
    }
    __syncthreads();
  }
};

/// A thread's column and share of the classes.
template <class A>
struct Column {
  int column, group;
  bool inside;  // else it repeats the strip's last pixel, without weight
  int x;        // from the strip's first pixel
  int left;     // where the values of its cell's left edge begin in a staged row
  A lx;

  __device__ Column(const Grid& grid, const Piece& piece) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    group = lane >> grid.columns_log2;
    column = (warp << grid.columns_log2) + lane - (group << grid.columns_log2);
    inside = column < piece.columns;
    x = inside ? column : piece.columns - 1;
    const int64_t cell = grid.strips.axis.cell_of(piece.x_begin + x);
    left = (static_cast<int>(cell) - piece.source_x) * grid.staged_pitch() +
           group * grid.classes_a_lane;
    lx = grid.strips.axis.fraction<A>(piece.x_begin + x, cell);
  }
};

/// Sums over the lanes that share a column.
template <class A>
__device__ __forceinline__ A group_sum(const Grid& grid, A value) {
  for (int offset = 1 << grid.columns_log2; offset < kWarp; offset *= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

template <class A>
__device__ __forceinline__ A group_max(const Grid& grid, A value) {
  for (int offset = 1 << grid.columns_log2; offset < kWarp; offset *= 2) {
    value = larger(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

template <class A>
__device__ void fill_band_rows(const Grid& grid, const Piece& piece, BandRow<A>* rows) {
  const Axis& axis = grid.bands.axis;
  for (int i = static_cast<int>(threadIdx.x); i < piece.rows; i += kColumnThreads) {
    const int64_t cell = axis.cell_of(piece.y_begin + i);
    rows[i] = {static_cast<int>(cell), axis.fraction<A>(piece.y_begin + i, cell)};
  }
}

/// A row of source pixels on its way to shared memory, [column][class]: loads start early, and
/// their values are put down when they are needed. Elements past kAhead a thread are loaded then.
inline constexpr int kAhead = 6;

/// Where a thread's elements of a staged row come from, less the row, and where they go; the same
/// for all rows, and read by the thread that wrote it.
struct StagingTable {
  int64_t from[kAhead][kColumnThreads];
  int to[kAhead][kColumnThreads];
};

struct StagedElement {
  int64_t from;
  int to;  // -1: there is none
};

__device__ __forceinline__ StagedElement staged_element(const Grid& grid, const Piece& piece,
                                                        const Logits& logits, int index) {
  if (index >= grid.staging.outer * grid.staging.inner) return {0, -1};
  const int outer = index / grid.staging.inner, inner = index - outer * grid.staging.inner;
  const int k = grid.channels_last ? inner : outer;
  const int j = grid.channels_last ? outer : inner;
  if (j >= piece.staged) return {0, -1};
  const int last = static_cast<int>(grid.strips.axis.in) - 1;
  const int x = piece.source_x + j < last ? piece.source_x + j : last;
  return {piece.image * logits.image + k * logits.channel + x * logits.column,
          j * grid.staged_pitch() + k};
}

__device__ __forceinline__ void fill_staging_table(const Grid& grid, const Piece& piece,
                                                   const Logits& logits, StagingTable& table) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int i = 0; i < kAhead; ++i) {
    const StagedElement element = staged_element(grid, piece, logits, thread + i * kColumnThreads);
    table.from[i][thread] = element.from;
    table.to[i][thread] = element.to;
  }
}

__device__ __forceinline__ float element_of_bits(uint32_t bits, Element type) {
  if (type == Element::f32) return bits_to_float(bits);
  if (type == Element::bf16) return bits_to_float(bits << 16);
  return widen_half(static_cast<uint16_t>(bits));
}
__device__ __forceinline__ double element_of_bits(uint64_t bits, Element) {
  double value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

template <class A>
struct RowAhead {
  using Raw = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;
  Raw raw[kAhead];
  int64_t row_offset;

  __device__ __forceinline__ void fetch(const Grid& grid, const Logits& logits,
                                        const StagingTable& table, int row) {
    const int last = static_cast<int>(grid.bands.axis.in) - 1;
    row_offset = (row < last ? row : last) * logits.row;
    const int thread = static_cast<int>(threadIdx.x);
    if (logits.type == Element::f32 || logits.type == Element::f64) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (table.to[i][thread] < 0) continue;
        raw[i] = static_cast<const Raw*>(logits.data)[table.from[i][thread] + row_offset];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (table.to[i][thread] < 0) continue;
        raw[i] = static_cast<const uint16_t*>(logits.data)[table.from[i][thread] + row_offset];
      }
    }
  }

  __device__ __forceinline__ void put(const Grid& grid, const Piece& piece, const Logits& logits,
                                      const StagingTable& table, A* staged) const {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int to = table.to[i][thread];
      if (to < 0) continue;
      staged[to] = element_of_bits(raw[i], logits.type);
    }
#pragma unroll 1
    for (int i = kAhead * kColumnThreads; i < grid.staging.outer * grid.staging.inner;
         i += kColumnThreads) {
      const StagedElement element = staged_element(grid, piece, logits, i + thread);
      if (element.to < 0) continue;
      staged[element.to] = load_element<A>(logits.data, logits.type, element.from + row_offset);
    }
  }
};

/// The values of a staged row at the thread's column.
template <class A, int kClasses>
__device__ __forceinline__ void column_values(const Grid& grid, const Column<A>& column,
                                              const A* staged, A (&values)[kClasses]) {
  const A* left = staged + column.left;
  const A* right = left + grid.staged_pitch();
#pragma unroll
  for (int c = 0; c < kClasses; ++c) values[c] = left[c] + column.lx * (right[c] - left[c]);
}

}  // namespace pinmem
