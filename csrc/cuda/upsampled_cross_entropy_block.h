// The pass over the pixels of upsampled_cross_entropy: loss, its gradient, or its second order.
//
// Loss and gradient are one pass. A thread owns a column of pixels and up to 19 classes (more
// classes share a column between lanes) and walks down a band of rows. The softmax subtracts the
// interpolated maximum of the source row above and below, an upper bound that is linear in a cell
// as the logits are, so no pixel looks for its own maximum (where the bound is so loose that the
// sum would vanish, it does). The label's part of loss and gradient is gathered in shared memory,
// in the thread's own places. At the end of a cell the columns are summed into source pixels, which
// the second kernel collects from the blocks that share them, in a fixed order.
#pragma once

#include "columns.h"

namespace pinmem {
namespace upsampled_cross_entropy_op {

enum class Pass { loss, gradient, second };

/// From one class to the next in flushed columns: one place more a warp, so that every fourth
/// column does not lie in the same bank, and odd, so that neighbouring classes do not.
inline constexpr int kFlushedPitch = kColumnThreads + kColumnThreads / kWarp + 1;

template <class A>
struct Task {
  Grid grid;
  Logits logits;
  const void* tangent;  // second order: lies as the logits do
  Labels labels;
  const void* class_weight;  // may be null
  Element class_weight_type;
  A exponent_scale, tangent_scale;
  A* laid_out;       // source pixels of all blocks: [B,K,rows,columns], or [B,rows,columns,K]
  double* partials;  // loss and mass of every block

  /// Elements of dynamic shared memory, without the table of columns.
  __host__ __device__ int shared_elements(Pass pass) const {
    const int classes = grid.classes_a_lane;
    const int shares = 2 * (classes * kColumnThreads + labels.last_entry() + 1);
    const int flushed = pass == Pass::loss ? 0 : classes * kFlushedPitch;
    return (pass == Pass::second ? 2 : 1) * grid.staged_elements() + shares + flushed +
           grid.columns();
  }
};

/// What a label means: its weight, and where its class lies in the shares of a column.
template <class A>
struct alignas(2 * sizeof(A)) Target {
  A weight;
  int share;
};

/// What the labels of a column give the upper and the lower source row.
template <class A>
struct alignas(2 * sizeof(A)) Share {
  A top, bottom;
};

/// Where a class has no logit: no share in any sum.
inline constexpr double kMissing = -1e30;

/// Column values of a source row less their maximum over the classes.
template <class A, int kClasses>
__device__ __forceinline__ void shifted_values(const Grid& grid, const Column<A>& column,
                                               const A* staged, A (&values)[kClasses]) {
  column_values<A, kClasses>(grid, column, staged, values);
  A top = values[0];
#pragma unroll
  for (int c = 1; c < kClasses; ++c) top = larger(top, values[c]);
  top = group_max(grid, top);
#pragma unroll
  for (int c = 0; c < kClasses; ++c) values[c] -= top;
}

/// Sums flushed columns into source pixels and writes them. `starts[j]` is the first column of the
/// cell left of emitted source column j, `fractions` how far into its cell a column lies.
template <class A, int kClasses>
__device__ __forceinline__ void emit_row(const Task<A>& task, const Piece& piece, int source_row,
                                         const A* flushed, const A* fractions, const int* starts) {
  const Grid& grid = task.grid;
  const int count = piece.emit_end - piece.emit_begin;
  const int64_t height = grid.bands.laid_out(), width = grid.strips.laid_out();
  const int64_t y = source_row + grid.bands.overlap() * piece.band;
  const int64_t x = piece.emit_begin + grid.strips.overlap() * piece.strip;
  const int64_t classes = grid.num_classes;
  A* to = task.laid_out + piece.image * classes * height * width;
  to += grid.channels_last ? (y * width + x) * classes : y * width + x;
  const int64_t class_step = grid.channels_last ? 1 : height * width;
  const int64_t column_step = grid.channels_last ? classes : 1;
  const int warp_step = kWarp + 1 - (1 << grid.columns_log2);
  for (Walk walk(grid.emitting); walk.outer < grid.emitting.outer; walk.next(grid.emitting)) {
    const int k = grid.channels_last ? walk.inner : walk.outer;
    const int j = grid.channels_last ? walk.outer : walk.inner;
    if (j >= count) continue;
    const int group = k / kClasses;
    const A* row = flushed + (k - group * kClasses) * kFlushedPitch + (group << grid.columns_log2);
    const auto at = [&](int i) { return row[i + (i >> grid.columns_log2) * warp_step]; };
    const int begin = starts[j], middle = starts[j + 1], end = starts[j + 2];
    A sum = 0;
#pragma unroll 4
    for (int i = begin; i < middle; ++i) sum += fractions[i] * at(i);
#pragma unroll 4
    for (int i = middle; i < end; ++i) sum += (1 - fractions[i]) * at(i);
    to[k * class_step + j * column_step] = sum;
  }
}

/// One band of rows and strip of columns of one image.
template <class A, int kClasses, Pass kPass>
__global__ void __launch_bounds__(kColumnThreads, kPass == Pass::second ? 3 : 4)
    cross_entropy_block(const __grid_constant__ Task<A> task) {
  __shared__ Piece piece;
  __shared__ BandRow<A> rows[kMostBandRows];
  __shared__ double scratch[kColumnThreads / kWarp];
  constexpr bool kGradient = kPass != Pass::loss;
  constexpr bool kSecond = kPass == Pass::second;

  const Grid& grid = task.grid;
  piece.find(grid, task.labels);
  const Column<A> column(grid, piece);
  auto* shares = dynamic_shared<Share<A>>();
  auto* targets = reinterpret_cast<Target<A>*>(shares + kClasses * kColumnThreads);
  A* staged = reinterpret_cast<A*>(targets + task.labels.last_entry() + 1);
  A* staged_tangent = staged + grid.staged_elements();
  A* flushed = staged_tangent + (kSecond ? grid.staged_elements() : 0);
  A* fractions = flushed + (kGradient ? kClasses * kFlushedPitch : 0);
  int* starts = reinterpret_cast<int*>(fractions + grid.columns());
  Share<A>* own_shares = shares + threadIdx.x;
  A* own_flushed = flushed + threadIdx.x + threadIdx.x / kWarp;

  // Tables, empty shares, and the classes that are not there.
  fill_band_rows(grid, piece, rows);
  clear_staged(grid, A(kMissing), staged);
  if (kSecond) clear_staged(grid, A(0), staged_tangent);
  for (int label = static_cast<int>(threadIdx.x); label <= task.labels.last_entry();
       label += kColumnThreads) {
    Target<A> target{0, 0};
    if (task.labels.counts(label)) {
      const int group = label / kClasses;
      target.share = (label - group * kClasses) * kColumnThreads + (group << grid.columns_log2);
      target.weight = task.class_weight == nullptr
                          ? A(1)
                          : load_element<A>(task.class_weight, task.class_weight_type, label);
    }
    targets[label] = target;
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
  for (int c = 0; c < kClasses; ++c) own_shares[c * kColumnThreads] = {0, 0};
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
  const auto stage = [&](int row) {
    stage_row(grid, piece, task.logits, row, task.exponent_scale, staged);
    if (kSecond) {
      Logits tangent = task.logits;
      tangent.data = task.tangent;
      stage_row(grid, piece, tangent, row, task.tangent_scale, staged_tangent);
    }
    __syncthreads();
  };

  const auto load_label = [&](int y) {
    const auto width = static_cast<unsigned>(grid.strips.axis.out);
    return task.labels.entry(piece.labels, static_cast<unsigned>(y) * width + column.x);
  };
  stage(piece.row_begin);
  shifted_values<A, kClasses>(grid, column, staged, value);
  if constexpr (kSecond) column_values<A, kClasses>(grid, column, staged_tangent, along);

  A loss = 0, mass = 0;
  int label = piece.rows > 0 ? load_label(0) : 0;
  int y = 0;
  for (int row = piece.row_begin; row < piece.row_end; ++row) {
    __syncthreads();
    if (y < piece.rows) {
      stage(row + 1);
      A next[kClasses];
      shifted_values<A, kClasses>(grid, column, staged, next);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) rise[c] = next[c] - value[c];
      if constexpr (kSecond) {
        column_values<A, kClasses>(grid, column, staged_tangent, next);
#pragma unroll
        for (int c = 0; c < kClasses; ++c) along_rise[c] = next[c] - along[c];
      }
    }

    for (; y < piece.rows && rows[y].cell == row; ++y) {
      const A ly = rows[y].fraction;
      const Target<A> target = targets[column.inside ? label : task.labels.last_entry()];
      const A weight = target.weight;
      if (y + 1 < piece.rows) label = load_label(y + 1);
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
      if (column.group == 0) {
        mass += weight;
        loss += weight * (kSecond ? mean : fast_log2(sum) + shift);
        Share<A> share = own_shares[target.share];
        share.top += weight - weight * ly;
        share.bottom += weight * ly;
        own_shares[target.share] = share;
      }
    }

    // The label's logits: their loss, and their share of the gradient.
    __syncwarp();
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      const Share<A> old = own_shares[c * kColumnThreads];
      own_shares[c * kColumnThreads] = {old.bottom, 0};
      loss -= old.top * (kSecond ? along[c] : value[c]);
      if (kGradient) own_flushed[c * kFlushedPitch] = top[c] - (kSecond ? 0 : old.top);
      value[c] += rise[c];
      if (kSecond) along[c] += along_rise[c];
      if (kGradient) {
        top[c] = bottom[c];
        bottom[c] = 0;
      }
    }
    if (kGradient) {
      __syncthreads();
      emit_row<A, kClasses>(task, piece, row, flushed, fractions, starts);
    }
    __syncwarp();
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
