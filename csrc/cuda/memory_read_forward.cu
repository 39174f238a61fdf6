// Reading forward: scores, softmax and contexts of a tile of pixels in one block.
//
// Bytes of a pixel of C channels, for K slots and elements of e bytes: reads C e, writes (2C + K)
// e; projected to O channels: writes (O + K) e. The query comes twice, the second time from the
// caches.
#include "memory_read_passes.h"
#include "reading_rows.h"
#include "tensor.h"

namespace pinmem {
namespace {

/// Row 0: from products to attention.
template <class T>
__device__ __forceinline__ void attend(const ReadBlock<T>& block, T* scores) {
  using A = accumulator_t<T>;
  const PixelRow<T> own(block);
  A* row = own.row(0);
  const A r = own.number(kInverseNorm);
  A largest = -INFINITY, sum = 0;
  own.each([&](int k) {
    const A score = r * row[k];
    own.put(scores, k, score);
    row[k] = score + own.at(block.task.gumbel, k);
    largest = larger(largest, row[k]);
  });
  largest = own.max(largest);
  own.each([&](int k) { sum += row[k] = exponential(row[k] - largest); });
  const A scale = A(1) / own.sum(sum);
  own.each([&](int k) { row[k] *= scale; });
  own.narrow_rows(1);
}

template <class T>
struct Forward {
  using A = accumulator_t<T>;
  enum { kScores, kContexts, kProducts };
  static constexpr int kTerms = 2, kVector = TileSize<T>::vector;

  const ReadBlock<T>& block;
  const ReadForward<T>& pass;

  __device__ __forceinline__ void before(int product) const {
    if (product != kContexts) return;
    __syncthreads();
    attend(block, pass.scores);
  }
  __device__ __forceinline__ Extent extent(int product) const {
    const Reading<T>& task = block.task;
    if (product == kScores) return block.row_extent();
    return {task.plan.pixels, task.outputs, task.runs.channels_last,
            static_cast<bool>(task.weight)};
  }
  __device__ __forceinline__ Term<T> term(int product, int t, const SumTile& at) const {
    const Reading<T>& task = block.task;
    if (t == 0) {
      return block.row_term(task.query, product == kScores ? task.memory : task.weight,
                            task.channels, at);
    }
    if (product == kScores) return {};
    return block.slots_term(0, task.values, at);
  }
  __device__ __forceinline__ void added(int product, int t, const SumTile&,
                                        Product<T>& sums) const {
    if (product == kScores || t != 0) return;
    const A* r = block.number(kInverseNorm);
    sums.each([&](int pixel, int, A& sum) { sum *= r[pixel]; });
  }
  __device__ __forceinline__ void end(int product, const SumTile& at, Product<T>& sums) const {
    if (product == kScores) {
      block.end_rows(0, at, sums);
      return;
    }
    block.each_sum(sums, at.column, at.columns,
                   [&](const Place& place, const A(&context)[kVector]) {
                     block.store(pass.context, place, context);
                   });
  }
};

template <class T>
__global__ void __launch_bounds__(kReadThreads, sizeof(T) == 2   ? 3
                                                : sizeof(T) == 4 ? 2
                                                                 : 1)
    read_forward(const __grid_constant__ ReadForward<T> pass) {
  using A = accumulator_t<T>;
  constexpr int kVector = TileSize<T>::vector;
  const Reading<T>& task = pass.read;
  const ReadBlock<T> block(task, blockIdx.x);
  pixel_products<T, false>(block, {}, {});
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < block.tile.count) {
    bool linear;
    A& number = block.number(kInverseNorm)[threadIdx.x];
    number = inverse_norm(number, linear);
  }
  form_products<T>(block.buffers, Forward<T>{block, pass});

  if (!pass.normalized) return;
  const A* r = block.number(kInverseNorm);
  block.each_place(0, task.channels, [&](const Place& place) {
    A x[kVector];
    block.load(task.query, place, x);
#pragma unroll
    for (int e = 0; e < kVector; ++e) x[e] *= r[block.pixel_of(place, e)];
    block.store(pass.normalized, place, x);
  });
}

}  // namespace

template <class T>
void run(const Stream& stream, const ReadForward<T>& pass) {
  stream.launch(read_forward<T>, pass.read.tiles, kReadThreads,
                ReadBlock<T>::shared_bytes(pass.read.plan, 1), pass);
}
template void run(const Stream&, const ReadForward<double>&);
template void run(const Stream&, const ReadForward<float>&);
template void run(const Stream&, const ReadForward<bfloat16>&);
template void run(const Stream&, const ReadForward<float16>&);

}  // namespace pinmem
