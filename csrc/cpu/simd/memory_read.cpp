#include "simd/memory_read.h"

#include "simd/attend.h"
#include "simd/native.h"

namespace pinmem::PINMEM_ISA {

template <class T>
int64_t memory_read_scratch(int64_t channels, int64_t slots) {
  using A = accumulator_t<T>;
  const int64_t tiles = 5 * channels + 2 * padded<A>(channels) + 8 * slots;
  return (tiles + 16) * kPixels * static_cast<int64_t>(sizeof(A));
}

/// What the memory gives for the weights [K] of every pixel: native (+)= weights M.
template <bool Last, class T, class A = accumulator_t<T>>
inline void expand(const MemoryRead<T>& op, const A* weights, A* native, bool add) {
  using Step = MultiplyAdd<A>;
  if constexpr (Last) {
    const int64_t stride = padded<A>(op.channels);
    gemm_tile_t<Step, kPixels>(kPixels, stride, op.slots, weights, op.memory_rows, stride, native,
                               stride, add);
  } else {
    gemm_panels<Step>(op.channels, kPixels, op.slots, op.memory_t, weights, kPixels, native,
                      kPixels, add);
  }
}

/// sum[K, C] += weights^T rows, over the pixels of a tile.
template <class A>
inline void add_outer(const A* weights, int64_t slots, const A* rows, int64_t stride, A* sum) {
  gemm_tile<MultiplyAdd<A>, kPixels>(slots, stride, kPixels, weights, rows, stride, sum, stride,
                                     true);
}

template <bool Last, class T>
void forward(const MemoryRead<T>& op, int64_t begin, int64_t end, T* readout, T* scores,
             char* memory) {
  using A = accumulator_t<T>;
  const int64_t channels = op.channels;
  Scratch scratch{memory};
  const Attention<A> here(scratch, 0, op.slots);
  const BothWays<A, Last> x(scratch, channels);
  auto* pairs = scratch.take<uint32_t>(channels * kPixels);
  A* context = x.native();  // x is stored before its context is formed
  for (int64_t tile = begin; tile < end; ++tile) {
    const Place at = place_of(op.pixels, tile);
    load_native<Last>(op.pixels, at, all_channels(op.query, channels), x.native());
    if (Last && !in_pairs(op)) x.fill_other(channels);
    attend_scaled(op, at, pairs, x.tile, here);
    store_tile(op.pixels, at, here.s, all_channels(scores, op.slots));
    store_native<Last, A>(op.pixels, at, Channels<T>{readout, 2 * channels, 0, channels},
                          [&](int64_t row, int64_t i, int64_t from) {
                            return load<A>(x.native() + from) * per_pixel<Last>(here.scale, row, i);
                          });
    expand<Last>(op, here.a, context, false);
    store_native<Last, A>(op.pixels, at, Channels<T>{readout, 2 * channels, channels, channels},
                          [&](int64_t, int64_t, int64_t from) { return load<A>(context + from); });
  }
}

/// With q = r x, ds^T q = (r ds)^T x and q (q.e) = r^2 x (x.e): q itself is never formed.
template <bool Last, class T>
void backward(const MemoryRead<T>& op, const MemoryReadCotangents<T>& grad, int64_t begin,
              int64_t end, T* grad_query, accumulator_t<T>* grad_memory, char* memory) {
  using A = accumulator_t<T>;
  const int64_t channels = op.channels, slots = op.slots, stride = padded<A>(channels);
  Scratch scratch{memory};
  const Attention<A> here(scratch, 0, slots);
  const BothWays<A, Last> x(scratch, channels), dc(scratch, channels);
  auto* pairs = scratch.take<uint32_t>(channels * kPixels);
  A* e = dc.native();  // dc is read before e is formed
  A* ds = scratch.take<A>(slots * kPixels);
  A* ds_given = here.s;
  A* ds_scaled = here.s;
  const bool all = grad_memory != nullptr;
  const bool both = Last ? !in_pairs(op) : all;
  if (all) fill(grad_memory, slots * stride, A{0});
  for (int64_t tile = begin; tile < end; ++tile) {
    const Place at = place_of(op.pixels, tile);
    load_native<Last>(op.pixels, at, all_channels(op.query, channels), x.native());
    if (both) x.fill_other(channels);
    attend_scaled(op, at, pairs, x.tile, here);
    if (grad.readout != nullptr) {
      const Channels<const T> given{grad.readout, 2 * channels, channels, channels};
      load_native<Last>(op.pixels, at, given, dc.native());
      if (both) dc.fill_other(channels);
      slot_products(op, at, given, pairs, dc.tile, ds);
      softmax_backward(here.a, ds, slots, here.columns, ds);
      if (all) add_outer(here.a, slots, dc.rows, stride, grad_memory);
      if (grad_query != nullptr) {
        load_native<Last>(op.pixels, at, Channels<const T>{grad.readout, 2 * channels, 0, channels},
                          e);
      }
    } else {
      fill(ds, slots * kPixels, A{0});
    }
    if (grad.scores != nullptr) {
      load_tile(op.pixels, at, all_channels(grad.scores, slots), ds_given);
      add_tile(ds_given, slots, ds);
    }
    if (grad_query != nullptr) {
      expand<Last>(op, ds, e, grad.readout != nullptr);
      A* along = here.columns;
      dot_pixels<Last>(x.native(), e, channels, along);
      for_vectors<A>(1, [&](int64_t i, int) {
        const Vec<A> r = load<A>(here.scale + i);
        store<A>(along + i, load<A>(along + i) * r * r * load<A>(here.curved + i));
      });
      store_native<Last, A>(op.pixels, at, all_channels(grad_query, channels),
                            [&](int64_t row, int64_t i, int64_t from) {
                              const Vec<A> part = per_pixel<Last>(along, row, i);
                              return (load<A>(e + from) - part * load<A>(x.native() + from)) *
                                     per_pixel<Last>(here.scale, row, i);
                            });
    }
    if (all) {
      for_vectors<A>(slots, [&](int64_t i, int p) {
        store<A>(ds_scaled + i, load<A>(ds + i) * load<A>(here.scale + p));
      });
      add_outer(ds_scaled, slots, x.rows, stride, grad_memory);
    }
  }
}

template <class T>
void memory_read(const MemoryRead<T>& op, int64_t begin, int64_t end, T* readout, T* scores,
                 char* memory) {
  if (op.pixels.channels_last) {
    forward<true>(op, begin, end, readout, scores, memory);
  } else {
    forward<false>(op, begin, end, readout, scores, memory);
  }
}

template <class T>
void memory_read_backward(const MemoryRead<T>& op, const MemoryReadCotangents<T>& grad,
                          int64_t begin, int64_t end, T* grad_query, accumulator_t<T>* grad_memory,
                          char* memory) {
  if (op.pixels.channels_last) {
    backward<true>(op, grad, begin, end, grad_query, grad_memory, memory);
  } else {
    backward<false>(op, grad, begin, end, grad_query, grad_memory, memory);
  }
}

template <class T>
void memory_read_double_backward(const MemoryRead<T>& op, const MemoryReadCotangents<T>& grad,
                                 const MemoryReadTangents<T>& tangent, int64_t begin, int64_t end,
                                 T* readout_dot, T* scores_dot, T* grad_query,
                                 accumulator_t<T>* grad_memory, char* memory) {
  using A = accumulator_t<T>;
  using Step = MultiplyAdd<A>;
  const int64_t channels = op.channels, slots = op.slots, stride = padded<A>(channels);
  Scratch scratch{memory};
  const Attention<A> here(scratch, channels, slots);
  const Derivatives<A> dot_of(scratch, channels, slots);
  A* dc = scratch.take<A>(channels * kPixels);
  A* e = dc;  // dc is read before e is written
  A* de = scratch.take<A>(channels * kPixels);
  A* context = de;
  A* ds = scratch.take<A>(slots * kPixels);
  A* dds = scratch.take<A>(slots * kPixels);
  A* ds_given = here.s;
  A* rows = scratch.take<A>(stride * kPixels);
  fill(rows, stride * kPixels, A{0});
  fill(grad_memory, slots * stride, A{0});
  for (int64_t tile = begin; tile < end; ++tile) {
    const Place at = place_of(op.pixels, tile);
    attend(op, at, here);
    differentiate(op, tangent, at, here, dot_of);
    store_tile(op.pixels, at, dot_of.s, all_channels(scores_dot, slots));
    store_tile(op.pixels, at, dot_of.q, Channels<T>{readout_dot, 2 * channels, 0, channels});
    gemm_panels<Step>(channels, kPixels, slots, op.memory_t, dot_of.a, kPixels, context, kPixels);
    if (tangent.memory != nullptr) {
      gemm_panels<Step>(channels, kPixels, slots, tangent.memory_t, here.a, kPixels, context,
                        kPixels, true);
    }
    store_tile(op.pixels, at, context, Channels<T>{readout_dot, 2 * channels, channels, channels});

    fill(dds, slots * kPixels, A{0});
    if (grad.readout != nullptr) {
      load_tile(op.pixels, at, Channels<const T>{grad.readout, 2 * channels, channels, channels},
                dc);
      gemm_panels<Step>(slots, kPixels, channels, op.memory, dc, kPixels, ds, kPixels);
      if (tangent.memory != nullptr) {
        gemm_panels<Step>(slots, kPixels, channels, tangent.memory, dc, kPixels, dds, kPixels);
      }
      softmax_second(here.a, dot_of.a, slots, here.columns, ds, dds);
      pixels_first(dc, channels, rows, stride);
      add_outer(dot_of.a, slots, rows, stride, grad_memory);
    } else {
      fill(ds, slots * kPixels, A{0});
    }
    if (grad.scores != nullptr) {
      load_tile(op.pixels, at, all_channels(grad.scores, slots), ds_given);
      add_tile(ds_given, slots, ds);
    }
    pixels_first(here.q, channels, rows, stride);
    add_outer(dds, slots, rows, stride, grad_memory);
    pixels_first(dot_of.q, channels, rows, stride);
    add_outer(ds, slots, rows, stride, grad_memory);

    if (grad.readout != nullptr) {
      load_tile(op.pixels, at, Channels<const T>{grad.readout, 2 * channels, 0, channels}, e);
    }
    gemm_panels<Step>(channels, kPixels, slots, op.memory_t, ds, kPixels, e, kPixels,
                      grad.readout != nullptr);
    gemm_panels<Step>(channels, kPixels, slots, op.memory_t, dds, kPixels, de, kPixels);
    if (tangent.memory != nullptr) {
      gemm_panels<Step>(channels, kPixels, slots, tangent.memory_t, ds, kPixels, de, kPixels, true);
    }
    normalise_second(here.q, dot_of.q, here.scale, here.curved, dot_of.along, channels, e, de,
                     here.columns);
    store_tile(op.pixels, at, de, all_channels(grad_query, channels));
  }
}

#define PINMEM_MEMORY_READ(T)                                                                      \
  template int64_t memory_read_scratch<T>(int64_t, int64_t);                                       \
  template void memory_read<T>(const MemoryRead<T>&, int64_t, int64_t, T*, T*, char*);             \
  template void memory_read_backward<T>(const MemoryRead<T>&, const MemoryReadCotangents<T>&,      \
                                        int64_t, int64_t, T*, accumulator_t<T>*, char*);           \
  template void memory_read_double_backward<T>(                                                    \
      const MemoryRead<T>&, const MemoryReadCotangents<T>&, const MemoryReadTangents<T>&, int64_t, \
      int64_t, T*, T*, T*, accumulator_t<T>*, char*);
PINMEM_MEMORY_READ(double)
PINMEM_MEMORY_READ(float)
PINMEM_MEMORY_READ(bfloat16)

}  // namespace pinmem::PINMEM_ISA
