// The pass over the pixels of upsampled_cross_entropy: loss, its gradient, or its second order.
//
// Loss and gradient are one pass. A thread owns a column of pixels and up to 19 classes (more
// classes share a column between lanes) and walks down a band of rows. The softmax subtracts the
// interpolated maximum of the source row above and below, an upper bound that is linear in a cell
// as the logits are, so no pixel looks for its own maximum (where the bound is so loose that the
// sum would vanish, it does). The label's part of the gradient is gathered in shared memory, in the
// thread's own places. At the end of a cell the columns are summed into source pixels, which the
// second kernel collects from the blocks that share them, in a fixed order.
//
// Nothing that is loaded is waited for: labels of the whole band come first, and a row of logits is
// on its way while the pixels above it are gone through.
#pragma once

#include "columns.h"

namespace pinmem {
namespace upsampled_cross_entropy_op {

enum class Pass { loss, gradient, second };

/// Where thread i's value of a class lies among those of all threads: so that neither threads side
/// by side nor every fourth one share a bank.
__host__ __device__ constexpr int flushed_place(int thread) { return thread + thread / 4; }
inline constexpr int kFlushedPitch = flushed_place(kColumnThreads) + 1;
/// Columns a thread sums at once, and the classes it does that for.
inline constexpr int kEmitStep = 8;
inline constexpr int kEmitWarps = kColumnThreads / kWarp;

template <class A>
struct Task {
  Grid grid;
  Logits logits;
  const void* tangent;  // second order: lies as the logits do
  Labels labels;
  const void* class_weight;  // may be null
  Element class_weight_type;
  A exponent_scale, tangent_scale;
  A missing;         // a logit that becomes kMissing
  A* laid_out;       // source pixels of all blocks: [B,K,rows,columns]
  double* partials;  // loss and mass of every block

  /// Elements of dynamic shared memory, without tables of integers.
  __host__ __device__ int shared_elements(Pass pass) const {
    const int flushed = pass == Pass::loss ? 0 : 2 * grid.classes_a_lane * kFlushedPitch + kEmitStep;
    return (pass == Pass::second ? 2 : 1) * 3 * grid.staged_elements() + labels.last_entry() + 1 +
           flushed + grid.columns();
  }
};

/// Where a class has no logit: no share in any sum.
inline constexpr double kMissing = -1e30;

/// Column values of a source row, scaled, less their maximum over the classes, which is returned.
/// The difference is rounded once: of logits far from 0 no more is lost than of their differences.
template <class A, int kClasses>
__device__ __forceinline__ A shifted_values(const Grid& grid, const Column<A>& column, A scale,
                                            const A* staged, A (&values)[kClasses]) {
  column_values<A, kClasses>(grid, column, staged, values);
  A top = values[0];
#pragma unroll
  for (int c = 1; c < kClasses; ++c) top = larger(top, values[c]);
  top = group_max(grid, top) * scale;
#pragma unroll
  for (int c = 0; c < kClasses; ++c) values[c] = values[c] * scale - top;
  return top;
}

/// One class of a staged row at the thread's column.
template <class A>
__device__ __forceinline__ A column_value(const Grid& grid, const Column<A>& column,
                                          const A* staged, int k) {
  const A* left = staged + column.left + k;
  return left[0] + column.lx * (left[grid.staged_pitch()] - left[0]);
}

/// Sums flushed columns into source pixels and writes them. `starts[j]` is the first column of the
/// cell left of emitted source column j, `fractions` how far into its cell a column lies. A lane
/// takes a source column, and each warp every fourth class.
template <class A, int kClasses>
__device__ __forceinline__ void emit_row(const Task<A>& task, const Piece& piece, int source_row,
                                         const A* flushed, const A* fractions, const int* starts) {
  const Grid& grid = task.grid;
  constexpr int kEach = (kClasses + kEmitWarps - 1) / kEmitWarps;
  const int count = piece.emit_end - piece.emit_begin;
  const int64_t height = grid.bands.laid_out(), width = grid.strips.laid_out();
  const int64_t y = source_row + grid.bands.overlap() * piece.band;
  const int64_t x = piece.emit_begin + grid.strips.overlap() * piece.strip;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int log2 = grid.columns_log2;
  for (int group = 0; group < grid.groups; ++group) {
    const int first = group * kClasses + warp;
    if (first >= grid.num_classes) break;
    A* to = task.laid_out + (piece.image * int64_t{grid.num_classes} + first) * height * width +
            y * width + x;
    for (int j = static_cast<int>(threadIdx.x) % kWarp; j < count; j += kWarp) {
      const int begin = starts[j], middle = starts[j + 1], end = starts[j + 2];
      A sums[kEach] = {};
      for (int i = begin; i < end; i += kEmitStep) {
#pragma unroll
        for (int step = 0; step < kEmitStep; ++step) {
          const int column = i + step;
          if (column >= end) break;
          const A fraction = fractions[column];
          const A weight = column < middle ? fraction : 1 - fraction;
          const int thread = ((column >> log2) * kWarp) + (group << log2) + (column & ((1 << log2) - 1));
          const A* from = flushed + flushed_place(thread) + warp * kFlushedPitch;
#pragma unroll
          for (int m = 0; m < kEach; ++m) {
            if (m * kEmitWarps + warp < kClasses) {
              sums[m] += weight * from[m * kEmitWarps * kFlushedPitch];
            }
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kEach; ++m) {
        const int c = m * kEmitWarps + warp;
        if (c < kClasses && group * kClasses + c < grid.num_classes) {
          to[m * kEmitWarps * height * width + j] = sums[m];
        }
      }
    }
  }
}

#ifndef PINMEM_LOSS_BLOCKS
#define PINMEM_LOSS_BLOCKS 5
#endif
#ifndef PINMEM_GRADIENT_BLOCKS
#define PINMEM_GRADIENT_BLOCKS 4
#endif
constexpr int blocks_of(Pass pass) {
  return pass == Pass::loss ? PINMEM_LOSS_BLOCKS : pass == Pass::gradient ? PINMEM_GRADIENT_BLOCKS : 3;
}

/// One band of rows and strip of columns of one image.
template <class A, int kClasses, Pass kPass>
__global__ void __launch_bounds__(kColumnThreads, sizeof(A) == 8 ? 2 : blocks_of(kPass))
    cross_entropy_block(const __grid_constant__ Task<A> task) {
  __shared__ Piece piece;
  __shared__ BandRow<A> rows[kMostBandRows];
  __shared__ double scratch[kColumnThreads / kWarp];
  __shared__ StagingTable table;
  constexpr bool kGradient = kPass != Pass::loss;
  constexpr bool kSecond = kPass == Pass::second;

  const Grid& grid = task.grid;
  piece.find(grid, task.labels);
  const Column<A> column(grid, piece);
  const int row_elements = grid.staged_elements();
  A* staged = dynamic_shared<A>();  // three rows, and as many of the tangent
  A* weights = staged + (kSecond ? 6 : 3) * row_elements;
  A* flushed = weights + task.labels.last_entry() + 1;  // of two source rows
  A* fractions = flushed + (kGradient ? 2 * kClasses * kFlushedPitch + kEmitStep : 0);
  int* starts = reinterpret_cast<int*>(fractions + grid.columns());
  auto* band_labels = reinterpret_cast<uint16_t*>(starts + grid.most_emitted + 2) + threadIdx.x;
  const int own = flushed_place(static_cast<int>(threadIdx.x));

  Logits tangent = task.logits;
  if (kSecond) tangent.data = task.tangent;
  fill_staging_table(grid, piece, task.logits, table);
  RowAhead<A> ahead, tangent_ahead;
  ahead.fetch(grid, task.logits, table, piece.row_begin);
  if (kSecond) tangent_ahead.fetch(grid, tangent, table, piece.row_begin);

  // Labels and tables, and the classes that are not there.
  const auto label_width = static_cast<unsigned>(grid.strips.axis.out);
#pragma unroll 8
  for (int y = 0; y < piece.rows; ++y) {
    band_labels[y * kColumnThreads] = static_cast<uint16_t>(
        task.labels.entry(piece.labels, static_cast<unsigned>(y) * label_width + column.x));
  }
  fill_band_rows(grid, piece, rows);
  for (int i = static_cast<int>(threadIdx.x); i < (kSecond ? 6 : 3) * row_elements;
       i += kColumnThreads) {
    staged[i] = i < 3 * row_elements ? task.missing : A(0);
  }
  for (int label = static_cast<int>(threadIdx.x); label <= task.labels.last_entry();
       label += kColumnThreads) {
    weights[label] = !task.labels.counts(label) ? A(0)
                     : task.class_weight == nullptr
                         ? A(1)
                         : load_element<A>(task.class_weight, task.class_weight_type, label);
  }
  if (column.group == 0) fractions[column.column] = column.lx;
  if (kGradient) {
    const int end = piece.emit_end - piece.emit_begin + 2;
    for (int j = static_cast<int>(threadIdx.x); j < end; j += kColumnThreads) {
      const auto first = static_cast<int>(grid.strips.axis.first_of(piece.emit_begin - 1 + j));
      const int at = first - piece.x_begin;
      starts[j] = at < 0 ? 0 : at > piece.columns ? piece.columns : at;
    }
    for (int i = static_cast<int>(threadIdx.x); i < 2 * kClasses * kFlushedPitch + kEmitStep;
         i += kColumnThreads) {
      flushed[i] = 0;
    }
  }
  __syncthreads();

  A value[kClasses], rise[kClasses];                                    // of logits * log2(e) / tau
  A along[kSecond ? kClasses : 1], along_rise[kSecond ? kClasses : 1];  // of the tangent / tau
  A top[kGradient ? kClasses : 1], bottom[kGradient ? kClasses : 1];    // gradient, two source rows
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    rise[c] = 0;
    if (kSecond) along_rise[c] = 0;
    if (kGradient) top[c] = bottom[c] = 0;
  }
  const A scale = task.exponent_scale;
  // The rows above and below the pixels, and the next; what is staged stays while others read it.
  const A* above = staged;
  A* below = staged;
  const auto advance = [&](int row) {
    above = below;
    below = below + row_elements < staged + 3 * row_elements ? below + row_elements : staged;
    ahead.put(grid, piece, task.logits, table, below);
    if (kSecond) {
      tangent_ahead.put(grid, piece, tangent, table, below + 3 * row_elements);
    }
    __syncthreads();
    ahead.fetch(grid, task.logits, table, row + 1);
    if (kSecond) tangent_ahead.fetch(grid, tangent, table, row + 1);
  };
  advance(piece.row_begin);
  A shift_above = 0, shift_below = shifted_values<A, kClasses>(grid, column, scale, below, value);
  if constexpr (kSecond) {
    column_values<A, kClasses>(grid, column, below + 3 * row_elements, along);
#pragma unroll
    for (int c = 0; c < kClasses; ++c) along[c] *= task.tangent_scale;
  }

  A loss = 0, mass = 0;
  A* flushed_top = flushed + own;  // the gradient of the source row above, less its labels' part
  A* flushed_bottom = flushed_top + kClasses * kFlushedPitch;
  int y = 0;
  for (int row = piece.row_begin; row < piece.row_end; ++row) {
    if (y < piece.rows) {
      advance(row + 1);
      A next[kClasses];
      shift_above = shift_below;
      shift_below = shifted_values<A, kClasses>(grid, column, scale, below, next);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) rise[c] = next[c] - value[c];
      if constexpr (kSecond) {
        column_values<A, kClasses>(grid, column, below + 3 * row_elements, next);
#pragma unroll
        for (int c = 0; c < kClasses; ++c) {
          along_rise[c] = next[c] * task.tangent_scale - along[c];
        }
      }
    } else if (kGradient) {
      __syncthreads();
    }
    if (kPass == Pass::gradient) {
#pragma unroll
      for (int c = 0; c < kClasses; ++c) flushed_bottom[c * kFlushedPitch] = 0;
    }

    for (; y < piece.rows && rows[y].cell == row; ++y) {
      const A ly = rows[y].fraction;
      const int label = band_labels[y * kColumnThreads];
      const A weight = column.inside ? weights[label] : A(0);
      if (!__any_sync(kAllLanes, weight != 0)) continue;

      A power[kClasses], sum = 0, product = 0, shift = 0;
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        power[c] = fast_exp2(value[c] + ly * rise[c]);
        sum += power[c];
        if (kSecond) product += power[c] * (along[c] + ly * along_rise[c]);
      }
      sum = group_sum(grid, sum);
      if (kSecond) product = group_sum(grid, product);
      if (__any_sync(kAllLanes, sum < A(1e-18))) {
        // Rare: the logits are computed again, not kept for this.
        const A again = forget(ly);
        shift = A(kMissing);
#pragma unroll
        for (int c = 0; c < kClasses; ++c) shift = larger(shift, value[c] + again * rise[c]);
        shift = group_max(grid, shift);
        sum = product = 0;
#pragma unroll
        for (int c = 0; c < kClasses; ++c) {
          power[c] = fast_exp2(value[c] + again * rise[c] - shift);
          sum += power[c];
          if (kSecond) product += power[c] * (along[c] + again * along_rise[c]);
        }
        sum = group_sum(grid, sum);
        if (kSecond) product = group_sum(grid, product);
      }

      const A inverse = kGradient ? fast_reciprocal(sum) : A(0);
      const A mean = product * inverse;
      if (kGradient) {
        const A low = weight * inverse * ly, high = weight * inverse - low;
#pragma unroll
        for (int c = 0; c < kClasses; ++c) {
          A factor = power[c];
          if (kSecond) factor *= along[c] + ly * along_rise[c] - mean;
          top[c] += factor * high;
          bottom[c] += factor * low;
        }
      }
      if (column.group == 0 && weight != 0) {
        mass += weight;
        A here, there;
        if (kSecond) {
          here = column_value(grid, column, above + 3 * row_elements, label) * task.tangent_scale;
          there = column_value(grid, column, below + 3 * row_elements, label) * task.tangent_scale;
          loss += weight * (mean - (here + ly * (there - here)));
        } else {
          here = column_value(grid, column, above, label) * scale - shift_above;
          there = column_value(grid, column, below, label) * scale - shift_below;
          loss += weight * (fast_log2(sum) + shift - (here + ly * (there - here)));
        }
      }
      if (kPass == Pass::gradient && weight != 0) {
        const int c = label - column.group * kClasses;
        if (c >= 0 && c < kClasses) {
          flushed_top[c * kFlushedPitch] -= weight - weight * ly;
          flushed_bottom[c * kFlushedPitch] -= weight * ly;
        }
      }
    }

#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      value[c] += rise[c];
      if (kSecond) along[c] += along_rise[c];
      if (kGradient) {
        flushed_top[c * kFlushedPitch] = top[c] + (kSecond ? A(0) : flushed_top[c * kFlushedPitch]);
        top[c] = bottom[c];
        bottom[c] = 0;
      }
    }
    if (kGradient) {
      __syncthreads();
      emit_row<A, kClasses>(task, piece, row, flushed_top - own, fractions, starts);
      A* const done = flushed_top;
      flushed_top = flushed_bottom;
      flushed_bottom = done;
    }
  }

  const double block_loss = block_sum(static_cast<double>(loss), scratch);
  const double block_mass = block_sum(static_cast<double>(mass), scratch);
  if (threadIdx.x == 0) {
    task.partials[2 * blockIdx.x] = block_loss;
    task.partials[2 * blockIdx.x + 1] = block_mass;
  }
}

}  // namespace upsampled_cross_entropy_op
}  // namespace pinmem
