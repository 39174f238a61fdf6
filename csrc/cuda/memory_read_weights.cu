// Of these only the weight's gradient is large: a product over all pixels, N O C multiply-adds,
// which reads both maps once for every 64 channels of the other, mostly from the caches.
#include "memory_read_weights.h"

#include "tensor.h"

namespace pinmem {
namespace {

/// A warp an element.
template <class A>
__global__ void __launch_bounds__(kReadThreads)
    project_slots(const __grid_constant__ ProjectSlots task) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kReadWarps + threadIdx.x / kWarp;
  const int row = static_cast<int>(index / task.stride);
  const int column = static_cast<int>(index - row * task.stride);
  A sum = 0;
  if (row < task.rows && column < task.columns) {
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      const Matrix& left = part == 0 ? task.left : task.moved_left;
      const Matrix& right = part == 0 ? task.right : task.moved_right;
      if (!left || !right) continue;
#pragma unroll 4
      for (int c = lane; c < task.depth; c += kWarp) {
        sum += load_element<A>(left.data, left.type, row * left.stride + c) *
               load_element<A>(right.data, right.type, column * right.stride + c);
      }
    }
  }
  sum = warp_sum(sum);
  if (lane == 0 && row < task.rows) {
    store_element(task.projected, task.type, row * task.stride + column, sum);
  }
}

template <class T>
__host__ __device__ int64_t weight_tiles(const WeightShares<T>& task) {
  constexpr int kColumns = TileSize<T>::columns;
  return static_cast<int64_t>((task.outputs + kTileRows - 1) / kTileRows) *
         ((task.channels + kColumns - 1) / kColumns);
}

template <class T>
__global__ void __launch_bounds__(kReadThreads, sizeof(T) == 8 ? 1 : 2)
    weight_share(const __grid_constant__ WeightShares<T> task) {
  using A = accumulator_t<T>;
  constexpr int kColumns = TileSize<T>::columns;
  const Buffers<T> buffers{2};
  const int tiles = static_cast<int>(weight_tiles(task));
  const int across = (task.channels + kColumns - 1) / kColumns;
  const int64_t share = blockIdx.x / tiles;
  const int tile = static_cast<int>(blockIdx.x - share * tiles);
  const int output = tile / across * kTileRows, channel = tile % across * kColumns;
  const int rows = task.outputs - output < kTileRows ? task.outputs - output : kTileRows;
  const int columns = task.channels - channel < kColumns ? task.channels - channel : kColumns;
  const bool pixels_inner = !task.runs.channels_last;
  const int64_t chunks = task.runs.tiles(kWeightChunk), begin = share * task.chunks_each;
  const int64_t end = begin + task.chunks_each < chunks ? begin + task.chunks_each : chunks;
  Product<T> sums(rows, columns, pixels_inner, pixels_inner);
#pragma unroll 1
  for (int64_t index = begin; index < end; ++index) {
    const PixelTile chunk(task.runs, index, kWeightChunk);
#pragma unroll 1
    for (int which = task.features[0] ? 0 : 1; which < 2; ++which) {
      add_term(sums, buffers, [&]() -> Term<T> {
        return {channels_of<T>(task.cotangent, task.runs, chunk, output, rows),
                channels_of<T>(task.features[which], task.runs, chunk, channel, columns),
                task.factors[which] + chunk.image * task.runs.pixels + chunk.begin};
      });
    }
  }
  A* to = task.shares + share * task.outputs * task.channels;
  sums.each([&](int o, int c, A& sum) {
    to[static_cast<int64_t>(output + o) * task.channels + channel + c] = sum;
  });
}

/// A thread an element.
template <class A>
__global__ void __launch_bounds__(kReadThreads)
    finish_gradients(const __grid_constant__ FinishGradients<A> task) {
  const int64_t memory_size =
      task.grad_memory == nullptr ? 0 : static_cast<int64_t>(task.slots) * task.channels;
  int64_t i = static_cast<int64_t>(blockIdx.x) * kReadThreads + threadIdx.x;
  A sum = 0;
  if (i < memory_size) {
    const int64_t k = i / task.channels, c = i - k * task.channels;
    sum = task.sums[i];
    const A* values = task.values + k * task.outputs;
    const A* still = task.still + k * task.outputs;
#pragma unroll 4
    for (int o = 0; o < task.outputs; ++o) {
      sum += values[o] *
             load_element<A>(task.weight.data, task.weight.type, o * task.weight.stride + c);
      if (task.moved_weight) {
        sum += still[o] * load_element<A>(task.moved_weight.data, task.moved_weight.type,
                                          o * task.moved_weight.stride + c);
      }
    }
    store_element(task.grad_memory, task.memory_type, i, sum);
    return;
  }
  i -= memory_size;
  const int64_t half = task.channels, o = i / (2 * half);
  if (task.grad_weight == nullptr || o >= task.outputs) return;
  int64_t c = i - o * 2 * half;
  if (c < half) {
    const A* share = task.weight_shares + o * half + c;
#pragma unroll 4
    for (int64_t s = 0; s < task.weight_count; ++s) sum += share[s * task.outputs * half];
  } else {
    c -= half;
#pragma unroll 4
    for (int k = 0; k < task.slots; ++k) {
      const int64_t at = static_cast<int64_t>(k) * task.outputs + o;
      sum += task.values[at] *
             load_element<A>(task.memory.data, task.memory.type, k * task.memory.stride + c);
      if (task.moved_memory) {
        sum += task.still[at] * load_element<A>(task.moved_memory.data, task.moved_memory.type,
                                                k * task.moved_memory.stride + c);
      }
    }
  }
  store_element(task.grad_weight, task.weight_type, i, sum);
}

}  // namespace

template <class A>
void run(const Stream& stream, const ProjectSlots& task) {
  stream.launch(project_slots<A>, ceil_div(task.rows * task.stride, kReadWarps), kReadThreads, 0,
                task);
}
template void run<double>(const Stream&, const ProjectSlots&);
template void run<float>(const Stream&, const ProjectSlots&);

template <class T>
void run(const Stream& stream, const WeightShares<T>& task) {
  stream.launch(weight_share<T>, weight_tiles(task) * task.count, kReadThreads,
                Buffers<T>::bytes(2), task);
}
template void run(const Stream&, const WeightShares<double>&);
template void run(const Stream&, const WeightShares<float>&);
template void run(const Stream&, const WeightShares<bfloat16>&);
template void run(const Stream&, const WeightShares<float16>&);

template <class A>
void run(const Stream& stream, const FinishGradients<A>& task) {
  const int64_t memory = task.grad_memory == nullptr ? 0 : task.slots;
  const int64_t weight = task.grad_weight == nullptr ? 0 : 2 * task.outputs;
  stream.launch(finish_gradients<A>, ceil_div((memory + weight) * task.channels, kReadThreads),
                kReadThreads, 0, task);
}
template void run(const Stream&, const FinishGradients<double>&);
template void run(const Stream&, const FinishGradients<float>&);

}  // namespace pinmem
