// Reading backward: the query's gradient and a block's share of the sums over pixels.
//
// Bytes of a pixel of C channels, for K slots and elements of e bytes: reads the query and the
// cotangents, 3C + K, writes C. What is needed twice comes from the caches the second time. With a
// weight the cotangent of q is a product over all outputs, of which q . e needs all channels: it
// waits in grad_query.
#include "memory_read_passes.h"
#include "reading_rows.h"
#include "tensor.h"

namespace pinmem {
namespace {

/// Rows 0 and 1: from products with the memory and with the values to attention and the scores'
/// cotangent ds; adds ds . s to what the cotangent e of q has along q, where that is not formed
/// later.
template <class T>
__device__ __forceinline__ void attend_backward(const ReadBlock<T>& block, bool has_context,
                                                const T* grad_scores, bool keeps_along) {
  using A = accumulator_t<T>;
  const PixelRow<T> own(block);
  A* row = own.row(0);
  A* other = own.row(1);
  const T* gumbel = block.task.gumbel;
  const A r = own.number(kInverseNorm);
  const auto da = [&](int k) { return has_context ? other[k] : A(0); };
  A largest = -INFINITY, sum = 0, mean = 0, along = 0;
  own.each([&](int k) {
    row[k] *= r;
    largest = larger(largest, row[k] + own.at(gumbel, k));
  });
  largest = own.max(largest);
  own.each([&](int k) {
    const A e = exponential(row[k] + own.at(gumbel, k) - largest);
    sum += e;
    mean += e * da(k);
  });
  const A scale = A(1) / own.sum(sum);
  mean = own.sum(mean) * scale;
  own.each([&](int k) {
    const A s = row[k];
    const A a = scale * exponential(s + own.at(gumbel, k) - largest);
    const A ds = a * (da(k) - mean) + own.at(grad_scores, k);
    along += ds * s;
    row[k] = a;
    other[k] = ds;
  });
  along = own.sum(along);
  if (own.lane == 0 && own.inside) {
    A& sum = block.number(kAlong)[own.pixel];
    sum = keeps_along ? own.number(kTurn) * (sum + along) : A(0);
  }
  own.narrow_rows(2);
}

template <class T>
struct Backward {
  using A = accumulator_t<T>;
  enum { kScores, kCotangents, kMemory, kValues, kQuery, kProducts };
  static constexpr int kTerms = 2, kVector = TileSize<T>::vector;

  const ReadBlock<T>& block;
  const ReadBackward<T>& pass;
  bool fresh;  // the block's share of sums has nothing yet

  __device__ __forceinline__ bool projects() const { return static_cast<bool>(block.task.weight); }
  __device__ __forceinline__ A* share() const {
    return pass.shares + opaque(static_cast<int>(blockIdx.x)) * pass.share_size;
  }
  /// The cotangent of q is a product too.
  __device__ __forceinline__ bool dense() const { return projects() && pass.grad_context; }

  __device__ __forceinline__ void before(int product) const {
    if (product != kMemory) return;
    __syncthreads();
    attend_backward(block, static_cast<bool>(pass.grad_context), pass.grad_scores, !dense());
  }
  __device__ __forceinline__ Extent extent(int product) const {
    const Reading<T>& task = block.task;
    switch (product) {
      case kScores: return block.row_extent();
      case kCotangents: return pass.grad_context ? block.row_extent() : Extent{};
      case kMemory: return pass.shares == nullptr ? Extent{} : block.share_extent(task.channels);
      case kValues:
        return pass.shares == nullptr || !projects() ? Extent{} : block.share_extent(task.outputs);
      default:
        if (!pass.grad_query) return {};
        return {task.plan.pixels, task.channels, dense() ? task.runs.channels_last : true, false};
    }
  }
  __device__ __forceinline__ Term<T> term(int product, int t, const SumTile& at) const {
    const Reading<T>& task = block.task;
    if (product <= kCotangents) {
      if (t == 1) return {};
      const bool scores = product == kScores;
      return block.row_term(scores ? task.query : pass.grad_context,
                            scores ? task.memory : task.values,
                            scores ? task.channels : task.outputs, at);
    }
    if (product == kMemory && t == 0) {
      return block.share_term(1, task.query, at, block.number(kInverseNorm));
    }
    if (product <= kValues) {
      // Where nothing is projected the values are the memory.
      const bool here = product == kMemory ? !projects() : t == 0;
      return here ? block.share_term(0, pass.grad_context, at) : Term<T>{};
    }
    if (t == 1) return block.slots_term(1, task.memory, at);
    if (!dense()) return {};
    return {pixels_of<T>(pass.grad_context, task.runs, block.tile, task.outputs),
            columns_of(task.weight, at.column, at.columns, task.outputs)};
  }
  __device__ __forceinline__ void added(int, int, const SumTile&, Product<T>&) const {}

  /// From e to r (e - q (q.e)).
  __device__ __forceinline__ void finish(const Place& place, A (&e)[kVector]) const {
    const A* r = block.number(kInverseNorm);
    const A* along = block.number(kAlong);
    A x[kVector];
    block.load(block.task.query, place, x);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const int pixel = block.pixel_of(place, i);
      e[i] = r[pixel] * (e[i] - x[i] * (r[pixel] * along[pixel]));
    }
    block.store(pass.grad_query, place, e);
  }
  __device__ __forceinline__ void end(int product, const SumTile& at, Product<T>& sums) const {
    const Reading<T>& task = block.task;
    if (product <= kCotangents) {
      block.end_rows(product - kScores, at, sums);
    } else if (product <= kValues) {
      const bool memory = product == kMemory;
      block.end_share(memory ? share() : share() + task.slots * task.channels,
                      memory ? task.channels : task.outputs, fresh, at, sums);
    } else {
      block.each_sum(sums, at.column, at.columns, [&](const Place& place, A(&e)[kVector]) {
        if (dense()) {
          block.store(pass.grad_query, place, e);
          return;
        }
        if (pass.grad_normalized) {
          A d[kVector];
          block.load(pass.grad_normalized, place, d);
#pragma unroll
          for (int i = 0; i < kVector; ++i) e[i] += d[i];
        }
        finish(place, e);
      });
      if (dense()) block.add_product(kAlong, task.query, at.column, at.columns);
    }
  }
  /// With a weight q . e is whole only now.
  __device__ __forceinline__ void finish_dense() const {
    __syncthreads();
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < block.tile.count) block.number(kAlong)[thread] *= block.number(kTurn)[thread];
    __syncthreads();
    block.each_place(0, block.task.channels, [&](const Place& place) {
      A e[kVector];
      block.load(pass.grad_query, place, e);
      finish(place, e);
    });
  }
};

template <class T>
__global__ void __launch_bounds__(kReadThreads, sizeof(T) == 2 ? 2 : 1)
    read_backward(const __grid_constant__ ReadBackward<T> pass) {
  using A = accumulator_t<T>;
  const Reading<T>& task = pass.read;
#pragma unroll 1
  for (int turn = 0; turn < pass.tiles_each; ++turn) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * pass.tiles_each + turn;
    if (index >= task.tiles) break;
    const ReadBlock<T> block(task, index);
    const int thread = static_cast<int>(threadIdx.x);
    __syncthreads();
    pixel_products<T, false>(block, {}, pass.grad_normalized);
    __syncthreads();
    if (thread < block.tile.count) {
      A* numbers = block.number(0) + thread;
      bool linear;
      const A r = inverse_norm(numbers[kXX * kTileRows], linear);
      const A along = r * numbers[kXD * kTileRows];
      numbers[kInverseNorm * kTileRows] = r;
      numbers[kTurn * kTileRows] = linear ? 0 : 1;
      numbers[kAlong * kTileRows] = along;
      if (pass.inverse_norms != nullptr) {
        pass.inverse_norms[block.tile.image * task.runs.pixels + block.tile.begin + thread] = r;
      }
    }
    const Backward<T> backward{block, pass, turn == 0};
    form_products<T>(block.buffers, backward);
    if (pass.grad_query && backward.dense()) backward.finish_dense();
  }
}

}  // namespace

template <class T>
void run(const Stream& stream, const ReadBackward<T>& pass) {
  stream.launch(read_backward<T>, (pass.read.tiles + pass.tiles_each - 1) / pass.tiles_each,
                kReadThreads, ReadBlock<T>::shared_bytes(pass.read.plan, 2), pass);
}
template void run(const Stream&, const ReadBackward<double>&);
template void run(const Stream&, const ReadBackward<float>&);
template void run(const Stream&, const ReadBackward<bfloat16>&);
template void run(const Stream&, const ReadBackward<float16>&);

}  // namespace pinmem
