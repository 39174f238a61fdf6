// Cross-entropy of bilinearly upsampled logits (docs/math.md 2).
//
// At 8x768x768, K=19, from 192x192, float32: reads 22 MB of logits and 5 MB of labels, writes 22 MB
// of gradient, and 30 MB of it once more on the way, mostly inside the L2 cache. 90 million exp2,
// which the special-function units of 132 multiprocessors need 25 us for: the floor. Around each
// stand 4 multiply-adds: 1 for the logit, 1 for the sum, 2 for the gradient; what a cell and a
// pixel need besides makes about 11 instructions a pixel and class at 4x upsampling, 8 at 16x.
// Launches: 2 forward, 1 backward, 2 second order.
//
// Forward and gradient are one pass. A thread owns a column of pixels and up to 19 classes (more
// classes share a column between lanes) and walks down a band of rows. The softmax subtracts the
// interpolated maximum of the source row above and below, an upper bound that is linear in a cell
// as the logits are, so no pixel looks for its own maximum (where the bound is so loose that the
// sum would vanish, it does). The label's part of loss and gradient is gathered in shared memory,
// in the thread's own places. At the end of a cell the columns are summed into source pixels, which
// the second kernel collects from the blocks that share them, in a fixed order.
#include <tuple>

#include "columns.h"
#include "columns_glue.h"

namespace pinmem {
namespace {

enum class Pass { loss, gradient, second };

constexpr int kFinishThreads = 256;
constexpr int kFinishColumns = 256;
/// From one class to the next in flushed columns: one place more a warp, so that every fourth
/// column does not lie in the same bank, and odd, so that neighbouring classes do not.
constexpr int kFlushedPitch = kColumnThreads + kColumnThreads / kWarp + 1;

template <class A>
struct Task {
  Grid grid;
  Logits logits;
  const void* direction;  // second order: lies as the logits do
  Labels labels;
  const void* class_weight;  // may be null
  Element class_weight_type;
  A exponent_scale, direction_scale;
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
constexpr double kMissing = -1e30;

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
  A* staged_direction = staged + grid.staged_elements();
  A* flushed = staged_direction + (kSecond ? grid.staged_elements() : 0);
  A* fractions = flushed + (kGradient ? kClasses * kFlushedPitch : 0);
  int* starts = reinterpret_cast<int*>(fractions + grid.columns());
  Share<A>* own_shares = shares + threadIdx.x;
  A* own_flushed = flushed + threadIdx.x + threadIdx.x / kWarp;

  // Tables, empty shares, and the classes that are not there.
  fill_band_rows(grid, piece, rows);
  clear_staged(grid, A(kMissing), staged);
  if (kSecond) clear_staged(grid, A(0), staged_direction);
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
  A along[kSecond ? kClasses : 1], along_rise[kSecond ? kClasses : 1];  // of the direction / tau
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
      Logits direction = task.logits;
      direction.data = task.direction;
      stage_row(grid, piece, direction, row, task.direction_scale, staged_direction);
    }
    __syncthreads();
  };

  const auto load_label = [&](int y) {
    const auto width = static_cast<unsigned>(grid.strips.axis.out);
    return task.labels.entry(piece.labels, static_cast<unsigned>(y) * width + column.x);
  };
  stage(piece.row_begin);
  shifted_values<A, kClasses>(grid, column, staged, value);
  if constexpr (kSecond) column_values<A, kClasses>(grid, column, staged_direction, along);

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
        column_values<A, kClasses>(grid, column, staged_direction, next);
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

template <class A>
struct Finish {
  Grid grid;
  const A* laid_out;
  const double* partials;
  double loss_scale;      // of the summed loss
  double gradient_scale;  // of the summed gradient
  const A* grad_loss;     // second order: one more factor of the gradient; else null
  A* loss;
  void* gradient;  // null where none is asked for
  Element gradient_type;
};

/// Divides loss and gradient by the mass, and collects the gradient: one block a source row, or one
/// alone for the loss.
template <class A>
__global__ void __launch_bounds__(kFinishThreads)
    cross_entropy_finish(const __grid_constant__ Finish<A> finish) {
  __shared__ double scratch[kFinishThreads / kWarp];
  __shared__ int places[kFinishColumns], extras[kFinishColumns];
  const Grid& grid = finish.grid;
  double loss = 0, mass = 0;
  for (int64_t i = threadIdx.x; i < grid.blocks(); i += kFinishThreads) {
    loss += finish.partials[2 * i];
    mass += finish.partials[2 * i + 1];
  }
  mass = block_sum(mass, scratch);
  const double unit = mass > 0 ? 1 / mass : 0;
  if (blockIdx.x == 0) {
    loss = block_sum(loss, scratch);
    // Where nothing counts, a NaN must not come through either.
    if (threadIdx.x == 0) {
      *finish.loss = mass == 0 ? A(0) : static_cast<A>(loss * unit * finish.loss_scale);
    }
  }
  if (finish.gradient == nullptr || grid.batch == 0) return;
  double factor = unit * finish.gradient_scale;
  if (finish.grad_loss != nullptr) factor *= static_cast<double>(*finish.grad_loss);
  const A scale = static_cast<A>(factor);

  const int64_t h = grid.bands.axis.in, w = grid.strips.axis.in;
  const int64_t chunks = (w + kFinishColumns - 1) / kFinishColumns;
  const int64_t begin = blockIdx.x % chunks * kFinishColumns;
  const int64_t row = blockIdx.x / chunks % h, image = blockIdx.x / chunks / h;
  const int count = static_cast<int>(w - begin < kFinishColumns ? w - begin : kFinishColumns);
  for (int j = static_cast<int>(threadIdx.x); j < count; j += kFinishThreads) {
    const Places at = places_of(grid.strips, begin + j);
    places[j] = static_cast<int>(at.place);
    extras[j] = at.extra;
  }
  __syncthreads();

  const Places above = places_of(grid.bands, row);
  const int64_t height = grid.bands.laid_out(), width = grid.strips.laid_out();
  const int64_t classes = grid.num_classes;
  const int64_t column_step = grid.channels_last ? classes : 1;
  const int64_t row_step = width * column_step;
  const int64_t class_step = grid.channels_last ? 1 : height * width;
  const A* from = finish.laid_out + image * classes * height * width + above.place * row_step;
  const int64_t to = grid.channels_last ? ((image * h + row) * w + begin) * classes
                                        : (image * classes * h + row) * w + begin;
  const int inner = grid.channels_last ? grid.num_classes : count;
  const WalkPlan plan{grid.channels_last ? count : grid.num_classes, inner, kFinishThreads / inner,
                      kFinishThreads % inner};
  for (Walk walk(plan); walk.outer < plan.outer; walk.next(plan)) {
    const int k = grid.channels_last ? walk.inner : walk.outer;
    const int j = grid.channels_last ? walk.outer : walk.inner;
    const A* place = from + k * class_step + places[j] * column_step;
    A sum = 0;
    for (int a = above.extra; a >= 0; --a) {
      for (int b = extras[j]; b >= 0; --b) {
        sum +=
            place[-a * grid.bands.overlap() * row_step - b * grid.strips.overlap() * column_step];
      }
    }
    const int64_t i = to + (grid.channels_last ? j * classes + k : k * h * w + j);
    store_element<A>(finish.gradient, finish.gradient_type, i, scale * sum);
  }
}

/// to = from * factor, 16 bytes of `from` a thread where both are aligned.
template <class A, class T>
__global__ void __launch_bounds__(256)
    scale_by(const A* from, const A* factor, T* to, int64_t count, bool aligned) {
  constexpr int kSize = Vector16<A>::size;
  struct alignas(kSize * sizeof(T)) To {
    T at[kSize];
  };
  const A scale = *factor;
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kSize;
  if (aligned && begin + kSize <= count) {
    const auto in = *reinterpret_cast<const Vector16<A>*>(from + begin);
    To out;
#pragma unroll
    for (int i = 0; i < kSize; ++i) out.at[i] = narrow<T>(in.at[i] * scale);
    *reinterpret_cast<To*>(to + begin) = out;
    return;
  }
  for (int64_t i = begin; i < count && i < begin + kSize; ++i) to[i] = narrow<T>(from[i] * scale);
}

// --- Glue ----------------------------------------------------------------------------------------

template <class A, int kClasses, Pass kPass>
void run_block(const Stream& stream, const Task<A>& task) {
  const int64_t shared = task.shared_elements(kPass) * static_cast<int64_t>(sizeof(A)) +
                         (task.grid.most_emitted + 2) * static_cast<int64_t>(sizeof(int));
  stream.launch(cross_entropy_block<A, kClasses, kPass>, task.grid.blocks(), kColumnThreads, shared,
                task);
}

template <class A, Pass kPass>
void run_blocks(const Stream& stream, const Task<A>& task) {
  if constexpr (sizeof(A) == 4) {
    if (task.grid.classes_a_lane == 19) return run_block<A, 19, kPass>(stream, task);
  }
  run_block<A, 8, kPass>(stream, task);
}

/// Arguments of all passes that go over the pixels.
struct Arguments {
  const Tensor& logits;
  const Tensor& target;
  const MaybeTensor& class_weight;
  double temperature;
  int64_t ignore_index;
};

/// Runs both kernels; `gradient` may be null. The loss is scaled as the pass needs it.
template <class A, Pass kPass>
void run(const Arguments& arguments, const Tensor* direction, const Tensor* grad_loss,
         const Tensor& loss, const Tensor* gradient) {
  const auto& [logits, target, class_weight, temperature, ignore_index] = arguments;
  const Stream stream(logits);
  const Map map = map_of("logits", logits);
  Task<A> task{};
  task.labels = labels_of("target", target, map.batch, map.channels, ignore_index);
  task.grid =
      make_grid(map.batch, map.channels, {map.height, target.size(1)}, {map.width, target.size(2)},
                classes_a_lane<A>(map.channels), map.channels_last);
  const Grid& grid = task.grid;
  check_groups(grid);
  task.logits = logits_of(map, logits);
  if (direction != nullptr) task.direction = direction->const_data_ptr();
  if (class_weight) {
    STD_TORCH_CHECK(class_weight->dim() == 1 && class_weight->size(0) == map.channels,
                    "class_weight: expected [", map.channels, "]");
    check_contiguous("class_weight", *class_weight);
    task.class_weight = class_weight->const_data_ptr();
    task.class_weight_type = element_of("class_weight", *class_weight);
  }
  task.exponent_scale = static_cast<A>(kLog2e / temperature);
  task.direction_scale = static_cast<A>(1 / temperature);

  Scratch scratch;
  const int64_t partials = scratch.take<double>(2 * grid.blocks());
  const int64_t laid_out =
      scratch.take<A>(kPass == Pass::loss ? 0
                                          : map.batch * map.channels * grid.bands.laid_out() *
                                                grid.strips.laid_out());
  scratch.allocate(logits);
  task.partials = scratch.at<double>(partials);
  task.laid_out = scratch.at<A>(laid_out);
  run_blocks<A, kPass>(stream, task);

  Finish<A> finish{};
  finish.grid = grid;
  finish.laid_out = task.laid_out;
  finish.partials = task.partials;
  finish.loss_scale = kPass == Pass::second ? 1 : kLn2;
  finish.gradient_scale = 1 / temperature;
  finish.loss = write<A>(loss);
  if (grad_loss != nullptr) finish.grad_loss = read<A>(*grad_loss);
  int64_t blocks = 1;
  if (gradient != nullptr && map.batch > 0) {
    finish.gradient = gradient->mutable_data_ptr();
    finish.gradient_type = element_of("gradient", *gradient);
    blocks = map.batch * map.height * ceil_div(map.width, kFinishColumns);
  }
  stream.launch(cross_entropy_finish<A>, blocks, kFinishThreads, 0, finish);
}

std::tuple<Tensor, Tensor> upsampled_cross_entropy(Tensor logits, Tensor target,
                                                   MaybeTensor class_weight, double temperature,
                                                   int64_t ignore_index, bool need_grad) {
  return dispatch_accumulator(logits, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using A = typename decltype(type)::type;
    const Map map = map_of("logits", logits);
    const Arguments arguments{logits, target, class_weight, temperature, ignore_index};
    const Tensor loss = empty_beside(logits, {}, scalar_type<A>());
    if (!need_grad) {
      run<A, Pass::loss>(arguments, nullptr, nullptr, loss, nullptr);
      return {loss, empty_beside(logits, {0}, scalar_type<A>())};
    }
    const Tensor unit_grad = empty_map_beside(logits, map, map.channels, scalar_type<A>());
    run<A, Pass::gradient>(arguments, nullptr, nullptr, loss, &unit_grad);
    return {loss, unit_grad};
  });
}

Tensor upsampled_cross_entropy_backward(Tensor grad_loss, Tensor unit_grad, Tensor logits, Tensor,
                                        MaybeTensor, double, int64_t) {
  const Map map = map_of("logits", logits);
  check_map("unit_grad", unit_grad, map, map.channels);
  const Tensor grad_logits = empty_map_beside(logits, map, map.channels, logits.scalar_type());
  const Stream stream(logits);
  dispatch_elements("logits", logits, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulator_t<T>;
    const int64_t count = logits.numel();
    const A* from = read<A>(unit_grad);
    T* to = write<T>(grad_logits);
    stream.launch(scale_by<A, T>, ceil_div(count, Vector16<A>::size * 256), 256, 0, from,
                  read<A>(grad_loss), to, count, aligned16(from) && aligned16(to));
  });
  return grad_logits;
}

std::tuple<Tensor, Tensor> upsampled_cross_entropy_double_backward(
    Tensor gg_logits, Tensor grad_loss, Tensor, Tensor logits, Tensor target,
    MaybeTensor class_weight, double temperature, int64_t ignore_index) {
  return dispatch_accumulator(logits, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using A = typename decltype(type)::type;
    const Map map = map_of("logits", logits);
    check_map("gg_logits", gg_logits, map, map.channels);
    STD_TORCH_CHECK(gg_logits.scalar_type() == logits.scalar_type(),
                    "gg_logits: expected the type of the logits");
    const Arguments arguments{logits, target, class_weight, temperature, ignore_index};
    const Tensor gg_loss = empty_beside(logits, {}, scalar_type<A>());
    const Tensor grad_logits = empty_map_beside(logits, map, map.channels, logits.scalar_type());
    run<A, Pass::second>(arguments, &gg_logits, &grad_loss, gg_loss, &grad_logits);
    return {gg_loss, grad_logits};
  });
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cuda, PINMEM_CUDA_KEY, m) {
  m.impl("upsampled_cross_entropy", TORCH_BOX(&pinmem::upsampled_cross_entropy));
  m.impl("upsampled_cross_entropy_backward", TORCH_BOX(&pinmem::upsampled_cross_entropy_backward));
  m.impl("upsampled_cross_entropy_double_backward",
         TORCH_BOX(&pinmem::upsampled_cross_entropy_double_backward));
}
