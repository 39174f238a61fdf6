// What ends the passes of upsampled_cross_entropy: the division by the mass, and the gradient of
// the source pixels from the blocks that share them.
#pragma once

#include "columns.h"

namespace pinmem {
namespace upsampled_cross_entropy_op {

inline constexpr int kFinishThreads = 256;
inline constexpr int kFinishColumns = 256;

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

  /// Pieces of a source row, and of all rows.
  __host__ __device__ int64_t chunks() const {
    return (grid.strips.axis.in + kFinishColumns - 1) / kFinishColumns;
  }
  __host__ __device__ int64_t pieces() const {
    return gradient == nullptr ? 0 : grid.batch * grid.bands.axis.in * chunks();
  }
};

/// How threads share out a matrix of outer x inner elements, neighbours along `inner`: a step needs
/// no division.
struct WalkPlan {
  int outer, inner, outer_step, inner_step;
};

struct Walk {
  int outer, inner;
  __device__ __forceinline__ explicit Walk(const WalkPlan& plan)
      : outer(static_cast<int>(threadIdx.x) / plan.inner),
        inner(static_cast<int>(threadIdx.x) - outer * plan.inner) {}
  __device__ __forceinline__ void next(const WalkPlan& plan) {
    outer += plan.outer_step;
    inner += plan.inner_step;
    if (inner >= plan.inner) {
      inner -= plan.inner;
      ++outer;
    }
  }
};

/// Where the values of up to kFinishColumns source columns lie; in shared memory.
struct FinishColumns {
  int places[kFinishColumns], extras[kFinishColumns];
};

/// Collects a piece of a source row of the gradient from the blocks that share it.
template <class A>
__device__ __forceinline__ void collect_row(const Finish<A>& finish, int64_t piece, A scale,
                                            FinishColumns& columns) {
  const Grid& grid = finish.grid;
  const int64_t h = grid.bands.axis.in, w = grid.strips.axis.in;
  const int64_t chunks = finish.chunks();
  const int64_t begin = piece % chunks * kFinishColumns;
  const int64_t row = piece / chunks % h, image = piece / chunks / h;
  const int count = static_cast<int>(w - begin < kFinishColumns ? w - begin : kFinishColumns);
  for (int j = static_cast<int>(threadIdx.x); j < count; j += kFinishThreads) {
    const Places at = places_of(grid.strips, begin + j);
    columns.places[j] = static_cast<int>(at.place);
    columns.extras[j] = at.extra;
  }
  __syncthreads();

  const Places above = places_of(grid.bands, row);
  const int64_t height = grid.bands.laid_out(), width = grid.strips.laid_out();
  const int64_t classes = grid.num_classes;
  const int64_t class_step = height * width;
  const A* from = finish.laid_out + image * classes * class_step + above.place * width;
  const int64_t to = grid.channels_last ? ((image * h + row) * w + begin) * classes
                                        : (image * classes * h + row) * w + begin;
  const int inner = grid.channels_last ? grid.num_classes : count;
  const WalkPlan plan{grid.channels_last ? count : grid.num_classes, inner, kFinishThreads / inner,
                      kFinishThreads % inner};
  for (Walk walk(plan); walk.outer < plan.outer; walk.next(plan)) {
    const int k = grid.channels_last ? walk.inner : walk.outer;
    const int j = grid.channels_last ? walk.outer : walk.inner;
    const A* place = from + k * class_step + columns.places[j];
    A sum = 0;
    for (int a = above.extra; a >= 0; --a) {
      for (int b = columns.extras[j]; b >= 0; --b) {
        sum += place[-(a * grid.bands.overlap() * width + b * grid.strips.overlap())];
      }
    }
    const int64_t i = to + (grid.channels_last ? j * classes + k : k * h * w + j);
    store_element<A>(finish.gradient, finish.gradient_type, i, scale * sum);
  }
}

/// Divides loss and gradient by the mass, and collects the gradient. Every block adds up the mass:
/// so they are few, and each collects several pieces of source rows.
template <class A>
__global__ void __launch_bounds__(kFinishThreads)
    cross_entropy_finish(const __grid_constant__ Finish<A> finish) {
  __shared__ double scratch[kFinishThreads / kWarp];
  __shared__ FinishColumns columns;
  double loss = 0, mass = 0;
  for (int64_t i = threadIdx.x; i < finish.grid.blocks(); i += kFinishThreads) {
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
  double factor = unit * finish.gradient_scale;
  if (finish.grad_loss != nullptr) factor *= static_cast<double>(*finish.grad_loss);
  for (int64_t piece = blockIdx.x; piece < finish.pieces(); piece += gridDim.x) {
    collect_row(finish, piece, static_cast<A>(factor), columns);
    __syncthreads();
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

}  // namespace upsampled_cross_entropy_op
}  // namespace pinmem
