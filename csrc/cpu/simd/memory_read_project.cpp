#include "simd/memory_read_project.h"

#include "simd/attend.h"
#include "simd/pairs.h"

namespace pinmem::PINMEM_ISA {

namespace {

constexpr int kPixelPairs = kPixels / 2;

int64_t pairs_of(int64_t count) { return (count + 1) / 2; }

/// The columns of the sums over pixels: the channels, then `parts` weights of every slot.
template <class A>
int64_t sum_columns(int64_t channels, int64_t slots, int parts) {
  return padded<A>(channels) + parts * padded<A>(slots);
}

/// The tiles of both derivatives.
template <class A>
struct Cotangents {
  A *d, *ds;    // D [O] and behind it ds [K]
  A *e, *rows;  // [C], and pixel by pixel the features and slot weights of a sum
  int64_t columns;

  Cotangents(Scratch& scratch, int64_t channels, int64_t slots, int64_t outputs, int parts)
      : d(scratch.take<A>((outputs + slots) * kPixels)),
        ds(d + outputs * kPixels),
        e(scratch.take<A>(channels * kPixels)),
        rows(scratch.take<A>(sum_columns<A>(channels, slots, parts) * kPixels)),
        columns(sum_columns<A>(channels, slots, parts)) {
    fill(rows, columns * kPixels, A{0});
  }
};

/// The same as pairs.
struct PairTiles {
  uint32_t *rows, *pixels, *right, *between;

  PairTiles(Scratch& scratch, int64_t channels, int64_t slots, int64_t outputs)
      : rows(scratch.take<uint32_t>(pairs_of(outputs + slots) * kPixels)),
        pixels(scratch.take<uint32_t>((outputs + slots) * kPixelPairs)),
        right(scratch.take<uint32_t>(sum_columns<float>(channels, slots, 1) * kPixelPairs)),
        between(scratch.take<uint32_t>((channels > slots ? channels : slots) * kPixelPairs)) {
    fill(right, sum_columns<float>(channels, slots, 1) * kPixelPairs, uint32_t{0});
  }
};

/// Pairs of pixels as rows of a right operand: element (pair of pixels, row of the tile).
inline void turn_pairs(const float* tile, int64_t rows, uint32_t* between, uint32_t* to,
                       int64_t stride) {
  pair_pixels(tile, rows, between);
  transpose<uint32_t>(between, int64_t{kPixelPairs}, rows, int64_t{kPixelPairs}, to, stride);
}

template <class T, class A = accumulator_t<T>>
void load_cotangent(const MemoryReadProject<T>& op, const T* projected, const Place& at, A* d) {
  if (projected != nullptr) {
    load_tile(op.read.pixels, at, all_channels(projected, op.outputs), d);
  } else {
    fill(d, op.outputs * kPixels, A{0});
  }
}

template <class T, class A = accumulator_t<T>>
void add_scores(const MemoryReadProject<T>& op, const T* scores, const Place& at, A* between,
                A* ds) {
  if (scores == nullptr) return;
  load_tile(op.read.pixels, at, all_channels(scores, op.read.slots), between);
  add_tile(between, op.read.slots, ds);
}

}  // namespace

template <class T>
int64_t memory_read_project_scratch(int64_t channels, int64_t slots, int64_t outputs) {
  using A = accumulator_t<T>;
  const int64_t columns = sum_columns<A>(channels, slots, 2);
  const int64_t tiles = 6 * channels + 14 * slots + 4 * outputs + 3 * columns;
  return (tiles + 32) * kPixels * static_cast<int64_t>(sizeof(A));
}

template <class T>
void memory_read_project(const MemoryReadProject<T>& op, int64_t begin, int64_t end, T* projected,
                         T* scores, char* memory) {
  using A = accumulator_t<T>;
  const Pixels& pixels = op.read.pixels;
  const int64_t channels = op.read.channels, slots = op.read.slots, outputs = op.outputs;
  Scratch scratch{memory};
  const Attention<A> here(scratch, channels, slots);
  A* x = here.q;
  A* y = scratch.take<A>(outputs * kPixels);
  auto* pairs = scratch.take<uint32_t>(pairs_of(channels) * kPixels);
  for (int64_t tile = begin; tile < end; ++tile) {
    const Place at = place_of(pixels, tile);
    if (!in_pairs(op.read)) load_tile(pixels, at, all_channels(op.read.query, channels), x);
    attend_scaled(op.read, at, pairs, x, here);
    store_tile(pixels, at, here.s, all_channels(scores, slots));
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (op.weight_pairs != nullptr) {
        if (!in_pairs(op.read)) pair_rows(x, channels, pairs);
        gemm_panels<PairMultiplyAdd>(outputs, kPixels, pairs_of(channels), op.weight_pairs, pairs,
                                     kPixels, y, kPixels);
      }
    }
    if (op.weight != nullptr) {
      gemm_panels<MultiplyAdd<A>>(outputs, kPixels, channels, op.weight, x, kPixels, y, kPixels);
    }
    scale_tile(here.scale, outputs, y);
    gemm_panels<MultiplyAdd<A>>(outputs, kPixels, slots, op.slots_t, here.a, kPixels, y, kPixels,
                                true);
    store_tile(pixels, at, y, all_channels(projected, outputs));
  }
}

namespace {

/// e = [D; ds] [W_q; M] and sums += [D; ds]^T [q, a], in bfloat16 with sums in float.
void multiply_pairs(const MemoryReadProject<bfloat16>& op, const Attention<float>& here,
                    const Cotangents<float>& to, const PairTiles& pairs, bool need_query,
                    float* sums) {
  const int64_t channels = op.read.channels, slots = op.read.slots, all = op.outputs + slots;
  if (need_query) {
    pair_rows(to.d, all, pairs.rows);
    gemm_panels<PairMultiplyAdd>(channels, kPixels, pairs_of(all), op.back_pairs, pairs.rows,
                                 kPixels, to.e, kPixels);
  }
  if (sums == nullptr) return;
  pair_pixels(to.d, all, pairs.pixels);
  turn_pairs(here.q, channels, pairs.between, pairs.right, to.columns);
  turn_pairs(here.a, slots, pairs.between, pairs.right + padded<float>(channels), to.columns);
  gemm_tile<PairMultiplyAdd, kPixelPairs>(all, to.columns, kPixelPairs, pairs.pixels, pairs.right,
                                          to.columns, sums, to.columns, true);
}

}  // namespace

template <class T>
void memory_read_project_backward(const MemoryReadProject<T>& op,
                                  const MemoryReadCotangents<T>& grad, int64_t begin, int64_t end,
                                  T* grad_query, accumulator_t<T>* sums, bool all, char* memory) {
  using A = accumulator_t<T>;
  using Step = MultiplyAdd<A>;
  const Pixels& pixels = op.read.pixels;
  const int64_t channels = op.read.channels, slots = op.read.slots, outputs = op.outputs;
  Scratch scratch{memory};
  const Attention<A> here(scratch, channels, slots);
  const Cotangents<A> to(scratch, channels, slots, outputs, 1);
  const PairTiles pairs(scratch, channels, slots, outputs);
  const int64_t features = padded<A>(channels), columns = to.columns;
  if (sums != nullptr) fill(sums, (outputs + slots) * columns, A{0});
  for (int64_t tile = begin; tile < end; ++tile) {
    const Place at = place_of(pixels, tile);
    attend(op.read, at, here);
    load_cotangent(op, grad.readout, at, to.d);
    gemm_panels<Step>(slots, kPixels, outputs, op.slots, to.d, kPixels, to.ds, kPixels);
    softmax_backward(here.a, to.ds, slots, here.columns, to.ds);
    add_scores(op, grad.scores, at, here.s, to.ds);
    bool done = false;
    if constexpr (std::is_same_v<T, bfloat16>) {
      done = op.back_pairs != nullptr;
      if (done) multiply_pairs(op, here, to, pairs, grad_query != nullptr, sums);
    }
    if (!done && grad_query != nullptr) {
      gemm_panels<Step>(channels, kPixels, outputs + slots, op.back, to.d, kPixels, to.e, kPixels);
    }
    if (!done && sums != nullptr) {
      pixels_first(here.q, channels, to.rows, columns);
      pixels_first(here.a, slots, to.rows + features, columns);
      if (all) {
        gemm_tile<Step, kPixels>(outputs + slots, columns, kPixels, to.d, to.rows, columns, sums,
                                 columns, true);
      } else {
        gemm_tile<Step, kPixels>(slots, features, kPixels, to.ds, to.rows, columns,
                                 sums + outputs * columns, columns, true);
        gemm_tile<Step, kPixels>(outputs, columns - features, kPixels, to.d, to.rows + features,
                                 columns, sums + features, columns, true);
      }
    }
    if (grad_query == nullptr) continue;
    normalise_backward(here.q, here.scale, here.curved, channels, to.e, here.columns);
    store_tile(pixels, at, to.e, all_channels(grad_query, channels));
  }
}

template <class T>
void memory_read_project_double_backward(const MemoryReadProject<T>& op,
                                         const MemoryReadCotangents<T>& grad,
                                         const MemoryReadProjectTangents<T>& tangent, int64_t begin,
                                         int64_t end, T* projected_dot, T* scores_dot,
                                         T* grad_query, accumulator_t<T>* sums, char* memory) {
  using A = accumulator_t<T>;
  using Step = MultiplyAdd<A>;
  const Pixels& pixels = op.read.pixels;
  const int64_t channels = op.read.channels, slots = op.read.slots, outputs = op.outputs;
  Scratch scratch{memory};
  const Attention<A> here(scratch, channels, slots);
  const Derivatives<A> dot_of(scratch, channels, slots);
  const Cotangents<A> to(scratch, channels, slots, outputs, 2);
  A* dds = scratch.take<A>(slots * kPixels);
  A* de = scratch.take<A>(channels * kPixels);
  A* y = scratch.take<A>(outputs * kPixels);
  const int64_t features = padded<A>(channels), columns = to.columns;
  fill(sums, (outputs + slots) * columns, A{0});
  const auto product = [](int64_t rows, int64_t steps, const A* panels, const A* tile, A* result,
                          bool add) {
    if (panels == nullptr) return;
    gemm_panels<Step>(rows, kPixels, steps, panels, tile, kPixels, result, kPixels, add);
  };
  for (int64_t tile = begin; tile < end; ++tile) {
    const Place at = place_of(pixels, tile);
    attend(op.read, at, here);
    differentiate(op.read, tangent.read, at, here, dot_of);
    store_tile(pixels, at, dot_of.s, all_channels(scores_dot, slots));
    product(outputs, channels, op.weight, dot_of.q, y, false);
    product(outputs, slots, op.slots_t, dot_of.a, y, true);
    product(outputs, channels, tangent.weight, here.q, y, true);
    product(outputs, slots, tangent.slots_t, here.a, y, true);
    store_tile(pixels, at, y, all_channels(projected_dot, outputs));

    load_cotangent(op, grad.readout, at, to.d);
    fill(dds, slots * kPixels, A{0});
    product(slots, outputs, op.slots, to.d, to.ds, false);
    product(slots, outputs, tangent.slots, to.d, dds, false);
    softmax_second(here.a, dot_of.a, slots, here.columns, to.ds, dds);
    add_scores(op, grad.scores, at, here.s, to.ds);

    A* last = sums + outputs * columns;
    pixels_first(here.q, channels, to.rows, columns);
    gemm_tile<Step, kPixels>(slots, features, kPixels, dds, to.rows, columns, last, columns, true);
    pixels_first(dot_of.q, channels, to.rows, columns);
    pixels_first(here.a, slots, to.rows + features, columns);
    pixels_first(dot_of.a, slots, to.rows + features + padded<A>(slots), columns);
    gemm_tile<Step, kPixels>(outputs + slots, columns, kPixels, to.d, to.rows, columns, sums,
                             columns, true);

    product(channels, outputs + slots, op.back, to.d, to.e, false);
    product(channels, slots, op.read.memory_t, dds, de, false);
    product(channels, outputs + slots, tangent.back, to.d, de, true);
    normalise_second(here.q, dot_of.q, here.scale, here.curved, dot_of.along, channels, to.e, de,
                     here.columns);
    store_tile(pixels, at, de, all_channels(grad_query, channels));
  }
}

#define PINMEM_MEMORY_READ_PROJECT(T)                                                             \
  template int64_t memory_read_project_scratch<T>(int64_t, int64_t, int64_t);                     \
  template void memory_read_project<T>(const MemoryReadProject<T>&, int64_t, int64_t, T*, T*,     \
                                       char*);                                                    \
  template void memory_read_project_backward<T>(const MemoryReadProject<T>&,                      \
                                                const MemoryReadCotangents<T>&, int64_t, int64_t, \
                                                T*, accumulator_t<T>*, bool, char*);              \
  template void memory_read_project_double_backward<T>(                                           \
      const MemoryReadProject<T>&, const MemoryReadCotangents<T>&,                                \
      const MemoryReadProjectTangents<T>&, int64_t, int64_t, T*, T*, T*, accumulator_t<T>*,       \
      char*);
PINMEM_MEMORY_READ_PROJECT(double)
PINMEM_MEMORY_READ_PROJECT(float)
PINMEM_MEMORY_READ_PROJECT(bfloat16)

}  // namespace pinmem::PINMEM_ISA
