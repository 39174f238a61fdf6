// The state of a memory update, from which its losses and derivatives follow.
#pragma once

#include <cstdint>

#include "simd/dense.h"
#include "simd/memory_update.h"
#include "simd/native.h"

namespace pinmem::PINMEM_ISA {

template <class A>
inline A dot(const A* u, const A* v, int64_t count) {
  Vec<A> even{}, odd{};
  for (int64_t i = 0; i < count; i += kStripe<A>) {
    even += load<A>(u + i) * load<A>(v + i);
    odd += load<A>(u + i + kLanes<A>) * load<A>(v + i + kLanes<A>);
  }
  return reduce_add<A>(even + odd);
}

/// Dot products that `dots` has in registers, of kDotRows rows with kDotColumns.
inline constexpr int kDotRows = kPanelRows > 6 ? 4 : 2;
inline constexpr int kDotColumns = 4;

/// to[i * to_stride + j] (+)= u_i.v_j for rows u and v of `stride` elements, padded with zeros.
template <class A>
inline void dots(const A* u, int64_t u_rows, const A* v, int64_t v_rows, int64_t stride, A* to,
                 int64_t to_stride, bool add) {
  constexpr int all = kDotRows * kDotColumns;
  static_assert(all % kLanes<A> == 0);
  for (int64_t i = 0; i < u_rows; i += kDotRows) {
    for (int64_t j = 0; j < v_rows; j += kDotColumns) {
      // Behind the last row, the last one again.
      const A *left[kDotRows], *right[kDotColumns];
      for (int r = 0; r < kDotRows; ++r) {
        left[r] = u + (i + r < u_rows ? i + r : u_rows - 1) * stride;
      }
      for (int c = 0; c < kDotColumns; ++c) {
        right[c] = v + (j + c < v_rows ? j + c : v_rows - 1) * stride;
      }
      Vec<A> sums[all / kLanes<A>][kLanes<A>] = {};
      Vec<A>* sum = sums[0];
      for (int64_t s = 0; s < stride; s += kLanes<A>) {
#pragma GCC unroll 4
        for (int r = 0; r < kDotRows; ++r) {
          const Vec<A> element = load<A>(left[r] + s);
#pragma GCC unroll 4
          for (int c = 0; c < kDotColumns; ++c) {
            sum[r * kDotColumns + c] += element * load<A>(right[c] + s);
          }
        }
      }
      A result[all];
#pragma GCC unroll 8
      for (int part = 0; part < all / kLanes<A>; ++part) {
        store<A>(result + part * kLanes<A>, reduce_each<A>(sums[part]));
      }
      for (int64_t r = 0; r < kDotRows && i + r < u_rows; ++r) {
        for (int64_t c = 0; c < kDotColumns && j + c < v_rows; ++c) {
          A* cell = to + (i + r) * to_stride + j + c;
          *cell = result[r * kDotColumns + c] + (add ? *cell : A{0});
        }
      }
    }
  }
}

/// to = a x + b y.
template <class A>
inline void combine(A a, const A* x, A b, const A* y, int64_t count, A* to) {
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    store<A>(to + i, a * load<A>(x + i) + b * load<A>(y + i));
  }
}

template <class A, class T>
inline void store_row(const A* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) store<A>(to + i, load<A>(from + i));
  if (i < count) store_first<A>(to + i, load<A>(from + i), count - i);
}

/// One row [K]: z becomes softmax(z); returns log of the sum of exponentials.
template <class A>
inline A softmax_row(A* z, int64_t slots, int64_t wide) {
  fill(z + slots, wide - slots, static_cast<A>(-__builtin_huge_val()));
  Vec<A> largest = load<A>(z);
  for (int64_t i = kLanes<A>; i < wide; i += kLanes<A>) largest = vmax<A>(largest, load<A>(z + i));
  const A top = reduce_max<A>(largest);
  Vec<A> sum{};
  for (int64_t i = 0; i < wide; i += kLanes<A>) {
    const Vec<A> power = vexp<A>(load<A>(z + i) - top);
    store<A>(z + i, power);
    sum += power;
  }
  const A total = reduce_add<A>(sum);
  for (int64_t i = 0; i < slots; ++i) z[i] /= total;
  return top + vlog<A>(splat<A>(total))[0];
}

/// The new memory and what the losses are made of. The names are those of docs/math.md 4: u the
/// updated memory, N = u / |u| the new one, G = N N^T, Z = N W^T + b, P = softmax(Z). Matrices
/// [K,C] lie in padded rows of `stride` elements, matrices [K,K] in rows of `wide`, of `products`
/// of 2 `wide`.
template <class A>
struct Update {
  int64_t slots, channels, stride, wide;
  A *normal, *weight;          // N and W, one behind the other
  A *normal_dot, *weight_dot;  // behind these, room for one more and for another, where asked for
  A* inverse;                  // 1 / max(|u|, 1e-12)
  A* curved;                   // 1, or 0 where |u| is so small that N is linear in u
  A* keep;                     // what of the memory stays: momentum, or 1 where the class is absent
  A* share;                    // what of the sums comes in: (1 - momentum) / mass, or 0
  A* by_memory;                // 1 where u.du = 0 makes the products of S shorter ones of M, else 0
  A* products;                 // [K, 2 wide]: G, its diagonal and padding -1, and Z
  A* left;                     // room for a left operand [K, 3 K],
  A* panels;                   // for one in panels,
  A* row;                      // and for a row

  Update(Scratch& scratch, int64_t k, int64_t c, int64_t matrices)
      : slots(k),
        channels(c),
        stride(padded<A>(c)),
        wide(padded<A>(k)),
        normal(scratch.take<A>(matrices * k * stride)),
        weight(normal + k * stride),
        normal_dot(normal + 2 * k * stride),
        weight_dot(normal + 3 * k * stride),
        inverse(scratch.take<A>(k)),
        curved(scratch.take<A>(k)),
        keep(scratch.take<A>(k)),
        share(scratch.take<A>(k)),
        by_memory(scratch.take<A>(k)),
        products(scratch.take<A>(k * 2 * wide)),
        left(scratch.take<A>(3 * k * k)),
        panels(scratch.take<A>((k + kPanelRows) * 3 * k)),
        row(scratch.take<A>(stride)) {}

  A* similarities(int64_t k) const { return products + k * 2 * wide; }
  A* logits(int64_t k) const { return products + k * 2 * wide + wide; }
  /// How much a pair of different slots counts in the divergence.
  A per_pair() const { return slots > 1 ? A{1} / static_cast<A>(slots * (slots - 1)) : A{0}; }

  /// to [K, columns] (+)= by rows, `columns` padded.
  void multiply_rows(const Matrix<A>& by, const A* rows, int64_t columns, A* to, bool add) const {
    pack_panels<A>(by, 0, (slots + kPanelRows - 1) / kPanelRows, panels);
    gemm_panels<MultiplyAdd<A>>(slots, columns, by.columns, panels, rows, columns, to, columns,
                                add);
  }
  /// Three matrices [K,K] lie side by side in `left`: a row of one, all from one on, and one
  /// transposed.
  A* left_row(int64_t k, int64_t part) const { return left + (3 * k + part) * slots; }
  Matrix<A> beside(int64_t part) const {
    return {left_row(0, part), slots, (3 - part) * slots, 3 * slots, 1};
  }
  Matrix<A> transposed(int64_t part) const {
    return {left_row(0, part), slots, slots, 1, 3 * slots};
  }

  /// to [K, 2 wide] (+)= m [u^T, v^T] for matrices [K,C].
  void cross(const A* m, const A* u, const A* v, A* to, bool add = false) const {
    dots(m, slots, u, slots, stride, to, 2 * wide, add);
    dots(m, slots, v, slots, stride, to + wide, 2 * wide, add);
  }
};

/// The sum of the values [wide] at the similarities that max(0, G_ij) grows with (at 0 it does not,
/// as in relu).
template <class A>
inline A sum_growing(const A* similarities, const A* values, int64_t wide) {
  Vec<A> sum{};
  for (int64_t i = 0; i < wide; i += kLanes<A>) {
    sum += load<A>(similarities + i) > A{0} ? load<A>(values + i) : Vec<A>{};
  }
  return reduce_add<A>(sum);
}

/// The derivative of N = u / |u|, for one row: to = (e - N (N.e)) / |u|; returns N.e, or 0 where N
/// is linear in u. `to` may be e.
template <class A>
inline A along_sphere(const Update<A>& state, int64_t k, const A* e, A* to) {
  const A* n = state.normal + k * state.stride;
  const A part = dot(n, e, state.stride) * state.curved[k];
  for (int64_t i = 0; i < state.stride; i += kLanes<A>) {
    store<A>(to + i, (load<A>(e + i) - part * load<A>(n + i)) * state.inverse[k]);
  }
  return part;
}

/// Everything of `to` but the rooms.
template <class T, class A>
inline void form(const MemoryUpdate<T>& op, const Update<A>& to) {
  const auto momentum = static_cast<A>(op.momentum);
  A* sums = to.row;
  for (int64_t k = 0; k < to.slots; ++k) {
    A* u = to.normal + k * to.stride;
    load_row(op.memory + k * to.channels, to.channels, to.stride, u);
    load_row(op.weight + k * to.channels, to.channels, to.stride, to.weight + k * to.stride);
    const A mass = to_acc<A>(op.mass[k]);
    to.keep[k] = mass > A{0} ? momentum : A{1};
    to.share[k] = mass > A{0} ? (A{1} - momentum) / mass : A{0};
    A memory_part{0}, sums_part{0};
    if (mass > A{0}) {
      load_row(op.sums + k * to.channels, to.channels, to.stride, sums);
      memory_part = momentum * momentum * dot(u, u, to.stride);
      sums_part = to.share[k] * to.share[k] * dot(sums, sums, to.stride);
      combine(momentum, u, to.share[k], sums, to.stride, u);
    }
    const A norm = vsqrt<A>(splat<A>(dot(u, u, to.stride)))[0];
    constexpr A smallest = static_cast<A>(kSmallestNorm);
    const A divisor = norm > smallest ? norm : smallest;
    to.inverse[k] = A{1} / divisor;
    to.curved[k] = norm > smallest ? A{1} : A{0};
    to.by_memory[k] = norm > smallest && memory_part < sums_part ? A{1} : A{0};
    combine(to.inverse[k], u, A{0}, u, to.stride, u);
  }
  to.cross(to.normal, to.normal, to.weight, to.products);
  for (int64_t k = 0; k < to.slots; ++k) {
    for (int64_t j = 0; j < to.slots; ++j) to.logits(k)[j] += to_acc<A>(op.bias[j]);
    to.similarities(k)[k] = A{-1};
    fill(to.similarities(k) + to.slots, to.wide - to.slots, A{-1});
  }
}

}  // namespace pinmem::PINMEM_ISA
