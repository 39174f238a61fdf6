// What happens at every pixel when a memory is read: normalisation and softmax, with their
// derivatives (docs/math.md 1). All on tiles; `columns` is one row of a tile, a number per pixel.
#pragma once

#include <cstdint>

#include "simd/memory_read.h"
#include "simd/pairs.h"
#include "simd/scratch.h"
#include "simd/tile.h"

namespace pinmem::PINMEM_ISA {

/// `scale`, the sum of squares x.x, becomes r = 1 / max(|x|, 1e-12); `curved` is 1, or 0 where |x|
/// is so small that q = r x is linear in x.
template <class A>
inline void finish_norms(A* scale, A* curved) {
  constexpr A smallest = static_cast<A>(kSmallestNorm);
  for_vectors<A>(1, [&](int64_t i, int) {
    const Vec<A> norm = vsqrt<A>(load<A>(scale + i));
    const auto small = norm <= smallest;
    store<A>(scale + i, A{1} / (small ? splat<A>(smallest) : norm));
    store<A>(curved + i, small ? Vec<A>{} : splat<A>(1));
  });
}

/// tile *= scale, a number per pixel.
template <class A>
inline void scale_tile(const A* scale, int64_t rows, A* tile) {
  for_vectors<A>(
      rows, [&](int64_t i, int p) { store<A>(tile + i, load<A>(tile + i) * load<A>(scale + p)); });
}

/// a = softmax over slots of s + g; g may be null.
template <class A>
inline void softmax(const A* s, const A* g, int64_t slots, A* a) {
  for (int p = 0; p < kPixels; p += kLanes<A>) {
    Vec<A> largest{};
    for (int64_t k = 0; k < slots; ++k) {
      const int64_t i = k * kPixels + p;
      const Vec<A> value = g != nullptr ? load<A>(s + i) + load<A>(g + i) : load<A>(s + i);
      largest = k == 0 ? value : vmax<A>(largest, value);
      store<A>(a + i, value);
    }
    Vec<A> sum{};
    for (int64_t k = 0; k < slots; ++k) {
      const int64_t i = k * kPixels + p;
      const Vec<A> power = vexp<A>(load<A>(a + i) - largest);
      sum += power;
      store<A>(a + i, power);
    }
    const Vec<A> inverse = A{1} / sum;
    for (int64_t k = 0; k < slots; ++k) {
      const int64_t i = k * kPixels + p;
      store<A>(a + i, load<A>(a + i) * inverse);
    }
  }
}

/// ds = a (da - t) with t = sum over slots of a da; ds may be da.
template <class A>
inline void softmax_backward(const A* a, const A* da, int64_t slots, A* t, A* ds) {
  dot_columns(a, da, slots, t);
  for_vectors<A>(slots, [&](int64_t i, int p) {
    store<A>(ds + i, load<A>(a + i) * (load<A>(da + i) - load<A>(t + p)));
  });
}

/// The derivative of q = x / |x|: e becomes dx = r (e - q (q.e)). `along` receives q.e, 0 where q
/// is linear in x.
template <class A>
inline void normalise_backward(const A* q, const A* scale, const A* curved, int64_t channels, A* e,
                               A* along) {
  dot_columns(q, e, channels, along);
  for_vectors<A>(
      1, [&](int64_t i, int) { store<A>(along + i, load<A>(along + i) * load<A>(curved + i)); });
  for_vectors<A>(channels, [&](int64_t i, int p) {
    store<A>(e + i, load<A>(scale + p) * (load<A>(e + i) - load<A>(q + i) * load<A>(along + p)));
  });
}

/// The derivative along v of what normalise_backward does, for e that moves by de and q by
/// dq = r (v - q (q.v)): de becomes -r (q.v) dx + r (de - dq (q.e) - q (dq.e + q.de)), e becomes
/// dx. `along_v` is the q.v that normalise_backward gave for v.
template <class A>
inline void normalise_second(const A* q, const A* dq, const A* scale, const A* curved,
                             const A* along_v, int64_t channels, A* e, A* de, A* columns) {
  A* along_e = columns;
  A* along_e_dot = columns + kPixels;
  A* product = columns + 2 * kPixels;
  dot_columns(dq, e, channels, along_e_dot);
  dot_columns(q, de, channels, product);
  normalise_backward(q, scale, curved, channels, e, along_e);
  for_vectors<A>(1, [&](int64_t i, int) {
    store<A>(along_e_dot + i,
             (load<A>(along_e_dot + i) + load<A>(product + i)) * load<A>(curved + i));
  });
  for_vectors<A>(channels, [&](int64_t i, int p) {
    const Vec<A> change = load<A>(de + i) - load<A>(dq + i) * load<A>(along_e + p) -
                          load<A>(q + i) * load<A>(along_e_dot + p);
    store<A>(de + i, load<A>(scale + p) * (change - load<A>(along_v + p) * load<A>(e + i)));
  });
}

/// The tiles that every pass forms first.
template <class A>
struct Attention {
  A *q, *s, *a, *g, *scale, *curved, *columns;

  Attention(Scratch& scratch, int64_t channels, int64_t slots)
      : q(scratch.take<A>(channels * kPixels)),
        s(scratch.take<A>(slots * kPixels)),
        a(scratch.take<A>(slots * kPixels)),
        g(scratch.take<A>(slots * kPixels)),
        scale(scratch.take<A>(kPixels)),
        curved(scratch.take<A>(kPixels)),
        columns(scratch.take<A>(3 * kPixels)) {}
};

/// a = softmax(s + g), s being there.
template <class T, class A = accumulator_t<T>>
inline void attention(const MemoryRead<T>& op, const Place& at, const Attention<A>& to) {
  if (op.gumbel != nullptr) load_tile(op.pixels, at, all_channels(op.gumbel, op.slots), to.g);
  softmax<A>(to.s, op.gumbel != nullptr ? to.g : nullptr, op.slots, to.a);
}

/// q, s = q M^T and a.
template <class T, class A = accumulator_t<T>>
inline void attend(const MemoryRead<T>& op, const Place& at, const Attention<A>& to) {
  load_tile(op.pixels, at, all_channels(op.query, op.channels), to.q);
  dot_columns(to.q, to.q, op.channels, to.scale);
  finish_norms(to.scale, to.curved);
  scale_tile(to.scale, op.channels, to.q);
  gemm_panels<MultiplyAdd<A>>(op.slots, kPixels, op.channels, op.memory, to.q, kPixels, to.s,
                              kPixels);
  attention(op, at, to);
}

/// Whether products of the memory with channels of maps of T are formed in pairs.
template <class T>
PINMEM_INLINE bool in_pairs(const MemoryRead<T>& op) {
  return std::is_same_v<T, bfloat16> && op.memory_pairs != nullptr;
}

/// to [K] = M x for C channels x of every pixel. They come from `pairs`, which are loaded here, or
/// as the tile `x`.
template <class T, class A = accumulator_t<T>>
inline void slot_products(const MemoryRead<T>& op, const Place& at, const Channels<const T>& from,
                          uint32_t* pairs, const A* x, A* to) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (in_pairs(op)) {
      load_pairs(op.pixels, at, from, pairs);
      gemm_panels<PairMultiplyAdd>(op.slots, kPixels, op.channels / 2, op.memory_pairs, pairs,
                                   kPixels, to, kPixels);
      return;
    }
  }
  gemm_panels<MultiplyAdd<A>>(op.slots, kPixels, op.channels, op.memory, x, kPixels, to, kPixels);
}

/// Fills all but q: x stays as it is, s = r (x M^T). Afterwards `pairs` holds x, if in pairs.
template <class T, class A = accumulator_t<T>>
inline void attend_scaled(const MemoryRead<T>& op, const Place& at, uint32_t* pairs, const A* x,
                          const Attention<A>& to) {
  slot_products(op, at, all_channels(op.query, op.channels), pairs, x, to.s);
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (in_pairs(op)) square_pairs(pairs, op.channels / 2, to.scale);
  }
  if (!in_pairs(op)) dot_columns(x, x, op.channels, to.scale);
  finish_norms(to.scale, to.curved);
  scale_tile(to.scale, op.slots, to.s);
  attention(op, at, to);
}

/// The tiles of a derivative along tangents v of x and V of M.
template <class A>
struct Derivatives {
  A *q, *s, *a, *along;

  Derivatives(Scratch& scratch, int64_t channels, int64_t slots)
      : q(scratch.take<A>(channels * kPixels)),
        s(scratch.take<A>(slots * kPixels)),
        a(scratch.take<A>(slots * kPixels)),
        along(scratch.take<A>(kPixels)) {}
};

/// How q, s and a move along the tangents; `along` is q.v.
template <class T, class A = accumulator_t<T>>
inline void differentiate(const MemoryRead<T>& op, const MemoryReadTangents<T>& tangent,
                          const Place& at, const Attention<A>& here, const Derivatives<A>& to) {
  using Step = MultiplyAdd<A>;
  if (tangent.query != nullptr) {
    load_tile(op.pixels, at, all_channels(tangent.query, op.channels), to.q);
    normalise_backward(here.q, here.scale, here.curved, op.channels, to.q, to.along);
  } else {
    fill(to.q, op.channels * kPixels, A{0});
    fill(to.along, kPixels, A{0});
  }
  gemm_panels<Step>(op.slots, kPixels, op.channels, op.memory, to.q, kPixels, to.s, kPixels);
  if (tangent.memory != nullptr) {
    gemm_panels<Step>(op.slots, kPixels, op.channels, tangent.memory, here.q, kPixels, to.s,
                      kPixels, true);
  }
  softmax_backward(here.a, to.s, op.slots, here.columns, to.a);
}

/// How ds = a (da - t) moves with a and da: ds (given as da) and dds (given as dda) are formed.
template <class A>
inline void softmax_second(const A* a, const A* a_dot, int64_t slots, A* columns, A* da, A* dda) {
  A* t = columns;
  A* dt = columns + kPixels;
  A* part = columns + 2 * kPixels;
  dot_columns(a, da, slots, t);
  dot_columns(a_dot, da, slots, dt);
  dot_columns(a, dda, slots, part);
  add_tile(part, 1, dt);
  for_vectors<A>(slots, [&](int64_t i, int p) {
    const Vec<A> centred = load<A>(da + i) - load<A>(t + p);
    store<A>(da + i, load<A>(a + i) * centred);
    store<A>(dda + i,
             load<A>(a_dot + i) * centred + load<A>(a + i) * (load<A>(dda + i) - load<A>(dt + p)));
  });
}

}  // namespace pinmem::PINMEM_ISA
