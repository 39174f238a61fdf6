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

#include "upsampled_cross_entropy_emit.h"

namespace pinmem {
namespace upsampled_cross_entropy_op {

/// Where a class has no logit: no share in any sum.
inline constexpr double kMissing = -1e30;

/// Column values of a source row, scaled, less their maximum over the classes. The difference is
/// rounded once: of logits far from 0 no more is lost than of their differences.
template <class A, int kClasses>
__device__ __forceinline__ void shifted_values(const Grid& grid, const Column<A>& column, A scale,
                                               const A* staged, A (&values)[kClasses]) {
  column_values<A, kClasses>(grid, column, staged, values);
  A top = values[0];
#pragma unroll
  for (int c = 1; c < kClasses; ++c) top = larger(top, values[c]);
  top = group_max(grid, top) * scale;
#pragma unroll
  for (int c = 0; c < kClasses; ++c) values[c] = values[c] * scale - top;
}

/// Blocks at once on a multiprocessor, as many as the registers allow without spilling and, in the
/// gradient on compute capability 8, as shared memory has room for.
constexpr int blocks_at_once(Pass pass) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  constexpr int kGradientBlocks = 3;
#else
  constexpr int kGradientBlocks = 4;
#endif
  return pass == Pass::loss ? 5 : pass == Pass::gradient ? kGradientBlocks : 3;
}

/// One band of rows and strip of columns of one image.
template <class A, int kClasses, Pass kPass>
__global__ void __launch_bounds__(kColumnThreads, sizeof(A) == 8 ? 2 : blocks_at_once(kPass))
    cross_entropy_block(const __grid_constant__ Task<A> task) {
  __shared__ Piece piece;
  __shared__ BandRow<A> rows[kMostBandRows];
  __shared__ double scratch[kColumnThreads / kWarp];
  __shared__ StagingTable table;
  constexpr bool kGradient = kPass != Pass::loss;
  constexpr bool kSecond = kPass == Pass::second;
  constexpr int kPitch = flushed_pitch(kPass);

  const Grid& grid = task.grid;
  piece.find(grid, task.labels);
  const Column<A> column(grid, piece);
  const int row_elements = grid.staged_elements();
  A* staged = dynamic_shared<A>();  // two rows, and as many of the tangent
  A* weights = staged + (kSecond ? 4 : 2) * row_elements;
  A* flushed = weights + task.labels.last_entry() + 1;  // of two source rows
  A* fractions = flushed + 2 * kClasses * kPitch;
  int* starts = reinterpret_cast<int*>(fractions + grid.columns());
  auto* band_labels = reinterpret_cast<uint16_t*>(starts + grid.most_emitted + 2) + threadIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int own = kGradient ? flushed_place(thread) : thread;

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
  if (grid.groups * kClasses > grid.num_classes) {
    for (int i = static_cast<int>(threadIdx.x); i < (kSecond ? 4 : 2) * row_elements;
         i += kColumnThreads) {
      staged[i] = i < 2 * row_elements ? task.missing : A(0);
    }
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
  }
#pragma unroll
  for (int c = 0; c < kClasses; ++c) flushed[own + c * kPitch] = 0;
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
  // Of two rows in turn one is written while slower threads still read the other.
  const auto advance = [&](int row) {
    A* place = staged + (row & 1) * row_elements;
    ahead.put(grid, piece, task.logits, table, place);
    if (kSecond) tangent_ahead.put(grid, piece, tangent, table, place + 2 * row_elements);
    __syncthreads();
    ahead.fetch(grid, task.logits, table, row + 1);
    if (kSecond) tangent_ahead.fetch(grid, tangent, table, row + 1);
    return place;
  };
  const A* first = advance(piece.row_begin);
  shifted_values<A, kClasses>(grid, column, scale, first, value);
  if constexpr (kSecond) {
    column_values<A, kClasses>(grid, column, first + 2 * row_elements, along);
#pragma unroll
    for (int c = 0; c < kClasses; ++c) along[c] *= task.tangent_scale;
  }

  A loss = 0, mass = 0;
  // What the labels take from the gradient of the source rows above and below; then all of it.
  A* flushed_top = flushed + own;
  A* flushed_bottom = flushed_top + kClasses * kPitch;
  int y = 0;
  for (int row = piece.row_begin; row < piece.row_end; ++row) {
    if (y < piece.rows) {
      const A* below = advance(row + 1);
      A next[kClasses];
      shifted_values<A, kClasses>(grid, column, scale, below, next);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) rise[c] = next[c] - value[c];
      if constexpr (kSecond) {
        column_values<A, kClasses>(grid, column, below + 2 * row_elements, next);
#pragma unroll
        for (int c = 0; c < kClasses; ++c) {
          along_rise[c] = next[c] * task.tangent_scale - along[c];
        }
      }
    } else if (kGradient) {
      __syncthreads();
    }
#pragma unroll
    for (int c = 0; c < kClasses; ++c) flushed_bottom[c * kPitch] = 0;

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

      const A inverse = fast_reciprocal(sum);
      const A mean = product * inverse;
      A rest = 0;
      if constexpr (kSecond) {
        // What rounding left out of the mean: under a peaked softmax the tangents less their mean
        // are no larger than that.
        const A again = forget(ly);
#pragma unroll
        for (int c = 0; c < kClasses; ++c) {
          rest += power[c] * (along[c] + again * along_rise[c] - mean);
        }
        rest = group_sum(grid, rest) * inverse;
      }
      if (kGradient) {
        const A low = weight * inverse * ly, high = weight * inverse - low;
#pragma unroll
        for (int c = 0; c < kClasses; ++c) {
          A factor = power[c];
          if (kSecond) factor *= along[c] + ly * along_rise[c] - mean - rest;
          top[c] += factor * high;
          bottom[c] += factor * low;
        }
      }
      if (column.group == 0) {
        mass += weight;
        loss += weight * (kSecond ? mean + rest : fast_log2(sum) + shift);
      }
      const int own_class = label - column.group * kClasses;
      if (weight != 0 && own_class >= 0 && own_class < kClasses) {
        flushed_top[own_class * kPitch] -= weight - weight * ly;
        flushed_bottom[own_class * kPitch] -= weight * ly;
      }
    }

#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      // The label's logits: their loss, and their share of the gradient.
      const A taken = flushed_top[c * kPitch];
      loss += taken * (kSecond ? along[c] : value[c]);
      value[c] += rise[c];
      if (kSecond) along[c] += along_rise[c];
      if (kGradient) {
        flushed_top[c * kPitch] = top[c] + (kSecond ? A(0) : taken);
        top[c] = bottom[c];
        bottom[c] = 0;
      }
    }
    if (kGradient) {
      __syncthreads();
      emit_row<A, kClasses>(task, piece, row, flushed_top - own, fractions, starts);
    }
    A* const done = flushed_top;
    flushed_top = flushed_bottom;
    flushed_bottom = done;
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
