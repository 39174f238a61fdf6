// The derivative of reading and of its backward pass along directions of the inputs.
//
// With x the query, v its direction, r = 1/|x| and rho = r (q.v) the normalised query moves by
//   q' = r v - rho q,
// and with e the cotangent of q and ' for how things move
//   grad_query = r [e_0' - rho e_0 + (ds' - rho ds) M + ds V + q (2 rho (q.e) - w) - r (q.e) v],
//   w = q'.e + q.e' = q'.e_0 + q.e_0' + ds.s' + ds'.s:
// all that is needed of e before it is formed are numbers of a pixel. A query too short to be
// normalised has q' = r v and no terms along q. Elements of a pixel: reads 4C + K, writes 3C + K.
#include "memory_read_passes.h"
#include "reading_rows.h"
#include "tensor.h"

namespace pinmem {
namespace {

/// Rows 0 to 3: from products with the memory (and how they move) and with the values (and how they
/// move) to a, a', ds and ds' - rho ds.
template <class T>
__device__ __forceinline__ void attend_second(const ReadBlock<T>& block, bool has_context,
                                              bool values_move, const T* grad_scores, T* scores) {
  using A = accumulator_t<T>;
  const PixelRow<T> own(block);
  A *row0 = own.row(0), *row1 = own.row(1), *row2 = own.row(2), *row3 = own.row(3);
  const T* gumbel = block.task.gumbel;
  const A r = own.number(kInverseNorm), rho = own.number(kTurn);
  const auto da = [&](int k) { return has_context ? row2[k] : A(0); };
  const auto moved_da = [&](int k) { return values_move ? row3[k] : A(0); };
  A largest = -INFINITY, sum = 0, mean_s = 0, mean = 0, moved_mean = 0, along = 0, moved_along = 0;
  own.each([&](int k) {
    const A s = r * row0[k], moved_s = r * row1[k] - rho * s;
    own.put(scores, k, moved_s);
    row0[k] = s;
    row1[k] = moved_s;
    largest = larger(largest, s + own.at(gumbel, k));
  });
  largest = own.max(largest);
  own.each([&](int k) {
    const A e = exponential(row0[k] + own.at(gumbel, k) - largest);
    sum += e;
    mean_s += e * row1[k];
    mean += e * da(k);
  });
  const A scale = A(1) / own.sum(sum);
  mean_s = own.sum(mean_s) * scale;
  mean = own.sum(mean) * scale;
  const auto attention = [&](int k) {
    return scale * exponential(row0[k] + own.at(gumbel, k) - largest);
  };
  own.each([&](int k) { moved_mean += attention(k) * ((row1[k] - mean_s) * da(k) + moved_da(k)); });
  moved_mean = own.sum(moved_mean);
  own.each([&](int k) {
    const A s = row0[k], moved_s = row1[k], a = attention(k), moved_a = a * (moved_s - mean_s);
    const A ds = a * (da(k) - mean) + own.at(grad_scores, k);
    const A moved_ds = moved_a * (da(k) - mean) + a * (moved_da(k) - moved_mean);
    along += ds * s;
    moved_along += ds * moved_s + moved_ds * s;
    row0[k] = a;
    row1[k] = moved_a;
    row2[k] = ds;
    row3[k] = moved_ds - rho * ds;
  });
  along = own.sum(along);
  moved_along = own.sum(moved_along);
  if (own.lane == 0 && own.inside) {
    block.number(kAlong)[own.pixel] += along;
    block.number(kMovedAlong)[own.pixel] += moved_along;
  }
  own.narrow_rows(4);
}

template <class T>
struct Second {
  using A = accumulator_t<T>;
  enum {
    kScores,
    kMovedScores,
    kCotangents,
    kMovedCotangents,
    kMemory,
    kValues,
    kMovedValues,
    kContexts,
    kQuery,
    kProducts
  };
  static constexpr int kTerms = 5, kVector = TileSize<T>::vector;

  const ReadBlock<T>& block;
  const ReadSecond<T>& pass;
  bool fresh;   // the block's share of sums has nothing yet
  bool linear;  // the thread's own pixel

  __device__ __forceinline__ const MapPart<const T>& context() const {
    return pass.first.grad_context;
  }
  __device__ __forceinline__ bool projects() const { return static_cast<bool>(block.task.weight); }
  __device__ __forceinline__ A* share() const {
    return pass.first.shares + opaque(static_cast<int>(blockIdx.x)) * pass.first.share_size;
  }

  __device__ __forceinline__ void before(int product) const {
    if (product != kMemory && product != kQuery) return;
    __syncthreads();
    if (product == kQuery) {
      finish_normalized();
      return;
    }
    attend_second(block, static_cast<bool>(context()), context() && pass.values,
                  pass.first.grad_scores, pass.scores);
  }
  __device__ __forceinline__ Extent extent(int product) const {
    const Reading<T>& task = block.task;
    const bool by_channel = task.runs.channels_last;
    switch (product) {
      case kScores:
      case kMovedScores: return block.row_extent();
      case kCotangents: return context() ? block.row_extent() : Extent{};
      case kMovedCotangents: return context() && pass.values ? block.row_extent() : Extent{};
      case kMemory: return block.share_extent(task.channels);
      case kValues:
      case kMovedValues: return projects() ? block.share_extent(task.outputs) : Extent{};
      case kContexts:
        return {task.plan.pixels, task.outputs, projects() ? by_channel : true, projects()};
      default:
        return {task.plan.pixels, task.channels, projects() && context() ? by_channel : true,
                false};
    }
  }

  __device__ __forceinline__ Term<T> term(int product, int t, const SumTile& at) const {
    const Reading<T>& task = block.task;
    switch (product) {
      case kScores:
        return t == 0 ? block.row_term(task.query, task.memory, task.channels, at) : Term<T>{};
      case kMovedScores:
        if (t > 1) return {};
        return block.row_term(t == 0 ? pass.direction : task.query,
                              t == 0 ? task.memory : pass.memory, task.channels, at);
      case kCotangents:
      case kMovedCotangents:
        if (t > 0) return {};
        return block.row_term(context(), product == kCotangents ? task.values : pass.values,
                              task.outputs, at);
      case kMemory:
        if (t < 2) {
          return block.share_term(t == 0 ? 3 : 2, t == 0 ? task.query : pass.direction, at,
                                  block.number(kInverseNorm));
        }
        return t == 2 && !projects() ? block.share_term(1, context(), at) : Term<T>{};
      case kValues:
      case kMovedValues:
        return t == 0 ? block.share_term(product - kValues, context(), at) : Term<T>{};
      case kContexts:
        // x W_q^T, and how it moves: v W_q^T + x Y_q^T; then the moved attention and values.
        if (t < 3) {
          return block.row_term(t == 1 ? pass.direction : task.query,
                                t == 2 ? pass.weight : task.weight, task.channels, at);
        }
        return block.slots_term(t == 3 ? 1 : 0, t == 3 ? task.values : pass.values, at);
      default:
        // D W_q, D Y_q, (ds' - rho ds) M and ds V.
        if (t > 3) return {};
        if (t > 1) return block.slots_term(t == 2 ? 3 : 2, t == 2 ? task.memory : pass.memory, at);
        const Matrix& weight = t == 0 ? task.weight : pass.weight;
        if (!context() || !weight) return {};
        return {pixels_of<T>(context(), task.runs, block.tile, task.outputs),
                columns_of(weight, at.column, at.columns, task.outputs)};
    }
  }

  __device__ __forceinline__ void added(int product, int t, const SumTile& at,
                                        Product<T>& sums) const {
    if (!projects() || product < kContexts) return;
    const bool contexts = product == kContexts, moved = contexts && t == 2;
    if (t != 0 && !moved) return;
    if (contexts && context()) {
      block.lay_out(sums);
      block.add_product(moved ? kMovedAlong : kAlong, context(), at.column, at.columns);
    }
    const A* factors = block.number(moved ? kInverseNorm : kTurn);
    const A sign = moved ? 1 : -1;
    sums.each([&](int pixel, int, A& sum) { sum *= sign * factors[pixel]; });
  }

  __device__ __forceinline__ void end(int product, const SumTile& at, Product<T>& sums) const {
    const Reading<T>& task = block.task;
    if (product < kMemory) {
      block.end_rows(product - kScores, at, sums);
    } else if (product < kContexts) {
      const int columns = product == kMemory ? task.channels : task.outputs;
      const int before =
          product == kMemory ? 0 : task.channels + (product == kMovedValues ? task.outputs : 0);
      block.end_share(share() + task.slots * before, columns, fresh, at, sums);
    } else {
      block.each_sum(sums, at.column, at.columns, [&](const Place& place, A(&value)[kVector]) {
        if (product == kQuery) add_along(place, value);
        block.store(product == kQuery ? pass.first.grad_query : pass.context, place, value);
      });
    }
  }

  /// From the products in grad_query to all of it.
  __device__ __forceinline__ void add_along(const Place& place, A (&value)[kVector]) const {
    const A* r = block.number(kInverseNorm);
    const A* rho = block.number(kTurn);
    const A* along = block.number(kAlong);
    const A* moved_along = block.number(kMovedAlong);
    A other[kVector];
    if (pass.first.grad_normalized) {
      block.load(pass.first.grad_normalized, place, other);
#pragma unroll
      for (int i = 0; i < kVector; ++i) value[i] -= rho[block.pixel_of(place, i)] * other[i];
    }
    if (pass.direction) {
      block.load(pass.direction, place, other);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const int p = block.pixel_of(place, i);
        value[i] -= r[p] * along[p] * other[i];
      }
    }
    block.load(block.task.query, place, other);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const int p = block.pixel_of(place, i);
      value[i] += r[p] * (2 * rho[p] * along[p] - moved_along[p]) * other[i];
      value[i] *= r[p];
    }
  }

  /// The numbers along q are whole now; q' = r v - rho q.
  __device__ __forceinline__ void finish_normalized() const {
    if (linear) block.number(kAlong)[threadIdx.x] = block.number(kMovedAlong)[threadIdx.x] = 0;
    __syncthreads();
    if (!pass.normalized) return;
    block.each_place(0, block.task.channels, [&](const Place& place) {
      A x[kVector], v[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) v[i] = 0;
      block.load(block.task.query, place, x);
      if (pass.direction) block.load(pass.direction, place, v);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const int p = block.pixel_of(place, i);
        v[i] = block.number(kInverseNorm)[p] * (v[i] - block.number(kTurn)[p] * x[i]);
      }
      block.store(pass.normalized, place, v);
    });
  }
};

template <class T>
__global__ void __launch_bounds__(kReadThreads, sizeof(T) == 8 ? 1 : 2)
    read_second(const __grid_constant__ ReadSecond<T> pass) {
  using A = accumulator_t<T>;
  const ReadBackward<T>& first = pass.first;
  const Reading<T>& task = first.read;
#pragma unroll 1
  for (int turn = 0; turn < first.tiles_each; ++turn) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * first.tiles_each + turn;
    if (index >= task.tiles) break;
    const ReadBlock<T> block(task, index);
    const int thread = static_cast<int>(threadIdx.x);
    bool linear = false;
    __syncthreads();
    pixel_products<T, true>(block, pass.direction, first.grad_normalized);
    __syncthreads();
    if (thread < block.tile.count) {
      A* numbers = block.number(0) + thread;
      const A r = inverse_norm(numbers[kXX * kTileRows], linear);
      const A rho = linear ? A(0) : r * (r * numbers[kXV * kTileRows]);
      const A along = r * numbers[kXD * kTileRows];
      numbers[kInverseNorm * kTileRows] = r;
      numbers[kTurn * kTileRows] = rho;
      numbers[kAlong * kTileRows] = along;
      numbers[kMovedAlong * kTileRows] = r * numbers[kVD * kTileRows] - rho * along;
      const int64_t pixel = block.tile.image * task.runs.pixels + block.tile.begin + thread;
      if (first.inverse_norms != nullptr) first.inverse_norms[pixel] = r;
      if (pass.turns != nullptr) pass.turns[pixel] = -rho * r;
    }
    const Second<T> second{block, pass, turn == 0, linear};
    form_products<T>(block.buffers, second);
  }
}

}  // namespace

template <class T>
void run(const Stream& stream, const ReadSecond<T>& pass) {
  const ReadBackward<T>& first = pass.first;
  stream.launch(read_second<T>, (first.read.tiles + first.tiles_each - 1) / first.tiles_each,
                kReadThreads, ReadBlock<T>::shared_bytes(first.read.plan, 4), pass);
}
template void run(const Stream&, const ReadSecond<double>&);
template void run(const Stream&, const ReadSecond<float>&);
template void run(const Stream&, const ReadSecond<bfloat16>&);
template void run(const Stream&, const ReadSecond<float16>&);

}  // namespace pinmem
