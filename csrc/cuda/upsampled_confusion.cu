// The confusion matrix of bilinearly upsampled logits (docs/math.md 5).
//
// At 8x768x768, K=19, from 192x192, float32: reads 22 MB of logits and 5 MB of labels and writes
// K*K counts. 90 million pixel and class pairs of 4 instructions each (a multiply-add, a
// comparison, two selections) and about 40 a pixel are 20 us of issue on 132 multiprocessors, twice
// the time of the bytes: the floor. Launches: 1, and one of the GPU's own to clear the counts.
//
// A thread owns a column of pixels, as in upsampled_cross_entropy, and counts a run of equal pairs
// (truth, prediction) before it adds to the block's histogram in shared memory. Counts are
// integers: their order of addition changes nothing.
#include "columns.h"
#include "columns_glue.h"

namespace pinmem {
namespace {

struct Task {
  Grid grid;
  Logits logits;
  Labels labels;
  bool shared_counts;
  unsigned long long* counts;  // [truth, prediction]
};

/// Below every logit that is finite.
constexpr double kMissing = -3e38;

template <class A, int kClasses>
__global__ void __launch_bounds__(kColumnThreads, 4)
    confusion_block(const __grid_constant__ Task task) {
  __shared__ Piece piece;
  __shared__ BandRow<A> rows[kMostBandRows];
  __shared__ StagingTable table;
  const Grid& grid = task.grid;
  const int cells = grid.num_classes * grid.num_classes;
  piece.find(grid, task.labels);
  const Column<A> column(grid, piece);
  A* staged = dynamic_shared<A>();  // two rows
  int* counts = reinterpret_cast<int*>(staged + 2 * grid.staged_elements());
  auto* band_labels =
      reinterpret_cast<uint16_t*>(counts + (task.shared_counts ? cells : 0)) + threadIdx.x;
  fill_staging_table(grid, piece, task.logits, table);
  RowAhead<A> ahead;
  ahead.fetch(grid, task.logits, table, piece.row_begin);
  const auto width = static_cast<unsigned>(grid.strips.axis.out);
#pragma unroll 8
  for (int y = 0; y < piece.rows; ++y) {
    band_labels[y * kColumnThreads] = static_cast<uint16_t>(
        task.labels.entry(piece.labels, static_cast<unsigned>(y) * width + column.x));
  }
  fill_band_rows(grid, piece, rows);
  if (grid.groups * kClasses > grid.num_classes) {
    for (int i = static_cast<int>(threadIdx.x); i < 2 * grid.staged_elements();
         i += kColumnThreads) {
      staged[i] = A(kMissing);
    }
  }
  if (task.shared_counts) {
    for (int i = static_cast<int>(threadIdx.x); i < cells; i += kColumnThreads) counts[i] = 0;
  }
  __syncthreads();

  const auto add = [&](int cell, int count) {
    if (task.shared_counts) {
      atomicAdd(&counts[cell], count);
    } else {
      atomicAdd(&task.counts[cell], static_cast<unsigned long long>(count));
    }
  };
  A value[kClasses], rise[kClasses];
  const auto advance = [&](int row) {
    A* place = staged + (row & 1) * grid.staged_elements();
    ahead.put(grid, piece, task.logits, table, place);
    __syncthreads();
    ahead.fetch(grid, task.logits, table, row + 1);
    return place;
  };
  column_values<A, kClasses>(grid, column, advance(piece.row_begin), value);

  int run_cell = 0, run = 0, y = 0;
  for (int row = piece.row_begin; y < piece.rows; ++row) {
    A next[kClasses];
    column_values<A, kClasses>(grid, column, advance(row + 1), next);
#pragma unroll
    for (int c = 0; c < kClasses; ++c) rise[c] = next[c] - value[c];

    for (; y < piece.rows && rows[y].cell == row; ++y) {
      const int label = band_labels[y * kColumnThreads];
      const bool counted = column.inside && task.labels.counts(label);
      if (!__any_sync(kAllLanes, counted)) continue;
      const A ly = rows[y].fraction;
      A best = value[0] + ly * rise[0];
      int prediction = 0;
#pragma unroll
      for (int c = 1; c < kClasses; ++c) {
        const A logit = value[c] + ly * rise[c];
        if (logit > best) {
          best = logit;
          prediction = c;
        }
      }
      prediction += column.group * kClasses;
      // Among the lanes of a column; of equal logits the lowest class.
      for (int offset = 1 << grid.columns_log2; offset < kWarp; offset *= 2) {
        const A other = __shfl_xor_sync(kAllLanes, best, offset);
        const int candidate = __shfl_xor_sync(kAllLanes, prediction, offset);
        if (other > best || (other == best && candidate < prediction)) {
          best = other;
          prediction = candidate;
        }
      }
      if (!counted || column.group != 0) continue;
      // Logits below kMissing must not count outside the matrix.
      const int last = grid.num_classes - 1;
      const int cell = label * grid.num_classes + (prediction < last ? prediction : last);
      if (cell != run_cell) {
        if (run > 0) add(run_cell, run);
        run_cell = cell;
        run = 0;
      }
      ++run;
    }
#pragma unroll
    for (int c = 0; c < kClasses; ++c) value[c] = next[c];
  }
  if (run > 0) add(run_cell, run);
  if (!task.shared_counts) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < cells; i += kColumnThreads) {
    if (counts[i] > 0) atomicAdd(&task.counts[i], static_cast<unsigned long long>(counts[i]));
  }
}

// --- Glue ----------------------------------------------------------------------------------------

template <class A, int kClasses>
void run_block(const Stream& stream, Task task) {
  const int64_t classes = task.grid.num_classes;
  const int64_t histogram = classes * classes * static_cast<int64_t>(sizeof(int));
  const int64_t staged =
      2 * task.grid.staged_elements() * static_cast<int64_t>(sizeof(A)) +
      task.grid.most_rows * kColumnThreads * static_cast<int64_t>(sizeof(uint16_t));
  constexpr int64_t kStatic =
      sizeof(Piece) + kMostBandRows * sizeof(BandRow<A>) + sizeof(StagingTable);
  // A histogram that leaves room for two blocks on a large multiprocessor, and fits a small one.
  task.shared_counts = classes <= 128 && kStatic + staged + histogram <= Stream::kMostShared;
  stream.launch(confusion_block<A, kClasses>, task.grid.blocks(), kColumnThreads,
                staged + (task.shared_counts ? histogram : 0), task);
}

Tensor upsampled_confusion(Tensor logits, Tensor target, int64_t ignore_index) {
  const Map map = map_of("logits", logits);
  const int64_t classes = map.channels;
  const Tensor counts = empty_beside(logits, {classes, classes}, ScalarType::Long);
  const Stream stream(logits);
  Task task{};
  task.labels = labels_of("target", target, map.batch, classes, ignore_index);
  task.logits = logits_of(map, logits);
  task.counts = static_cast<unsigned long long*>(counts.mutable_data_ptr());
  stream.zero(task.counts, classes * classes * static_cast<int64_t>(sizeof(int64_t)));
  dispatch_accumulator(logits, [&](auto type) {
    using A = typename decltype(type)::type;
    const int lane = classes_a_lane<A>(classes);
    task.grid = make_grid(map.batch, classes, {map.height, target.size(1)},
                          {map.width, target.size(2)}, lane, map.channels_last);
    check_groups(task.grid);
    if constexpr (sizeof(A) == 4) {
      if (lane == 19) return run_block<A, 19>(stream, task);
    }
    run_block<A, 8>(stream, task);
  });
  return counts;
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cuda, PINMEM_CUDA_KEY, m) {
  m.impl("upsampled_confusion", TORCH_BOX(&pinmem::upsampled_confusion));
}
