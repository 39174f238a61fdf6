// The task of upsampled_cross_entropy's pass over the pixels, and how the gradients of a source row
// that its threads hold become the gradient of source pixels.
#pragma once

#include "columns.h"

namespace pinmem {
namespace upsampled_cross_entropy_op {

enum class Pass { loss, gradient, second };

/// Where thread i's value of a class lies among those of all threads: so that neither threads side
/// by side nor every fourth one share a bank.
__host__ __device__ constexpr int flushed_place(int thread) { return thread + thread / 4; }
inline constexpr int kFlushedPitch = flushed_place(kColumnThreads) + 1;
/// From one class to the next; of the loss alone, threads have only their own places.
__host__ __device__ constexpr int flushed_pitch(Pass pass) {
  return pass == Pass::loss ? kColumnThreads : kFlushedPitch;
}
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
    return (pass == Pass::second ? 4 : 2) * grid.staged_elements() + labels.last_entry() + 1 +
           2 * grid.classes_a_lane * flushed_pitch(pass) + grid.columns();
  }
};

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
          const int thread =
              ((column >> log2) * kWarp) + (group << log2) + (column & ((1 << log2) - 1));
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

}  // namespace upsampled_cross_entropy_op
}  // namespace pinmem
