#include "simd/memory_update.h"

#include "simd/update.h"

// Computed in double whatever the type of the tensors: the op is small, its losses are differences
// of near numbers, and a rounding error in them would be the whole of a gradient.

namespace pinmem::PINMEM_ISA {

namespace {

/// A scalar, zero where it is absent.
template <class T, class A = double>
A scalar(const T* cotangent) {
  return cotangent != nullptr ? to_acc<A>(*cotangent) : A{0};
}

/// Row k of a matrix [K,C], zeros where it is absent.
template <class T, class A>
void load_given(const Update<A>& state, const T* matrix, int64_t k, A* to) {
  if (matrix != nullptr) {
    load_row(matrix + k * state.channels, state.channels, state.stride, to);
  } else {
    fill(to, state.stride, A{0});
  }
}

/// Stores a x + b y as row k of a result.
template <class T, class A>
void store_given(const Update<A>& state, A a, const A* x, A b, const A* y, int64_t k, A* between,
                 T* to) {
  combine(a, x, b, y, state.stride, between);
  store_row(between, state.channels, to + k * state.channels);
}

/// S.du (1 - momentum) / m, for a row du of a class that is present. Where u.du = 0, as u =
/// momentum M
/// + (1 - momentum) S / m, it is -momentum M.du: of the two the one in which less cancels.
template <class T, class A>
A sums_part(const MemoryUpdate<T>& op, const Update<A>& state, int64_t k, const A* du, A* between) {
  const bool by_memory = state.by_memory[k] > A{0};
  load_given(state, by_memory ? op.memory : op.sums, k, between);
  return dot(between, du, state.stride) * (by_memory ? -state.keep[k] : state.share[k]);
}

/// A matrix [K,C] as it was given, zeros where it is absent.
template <class T, class A>
void load_all(const Update<A>& state, const T* matrix, A* to) {
  for (int64_t k = 0; k < state.slots; ++k) {
    load_given(state, matrix, k, to + k * state.stride);
  }
}

/// Stores the sums over the rows of a square matrix that lies in `left`.
template <class T, class A>
void store_column_sums(const Update<A>& state, int64_t part, T* to) {
  for (int64_t j = 0; j < state.slots; ++j) {
    A sum{0};
    for (int64_t k = 0; k < state.slots; ++k) sum += state.left_row(k, part)[j];
    to[j] = from_acc<T>(sum);
  }
}

template <class T, class A>
void store_all(const Update<A>& state, const A* matrix, T* to) {
  for (int64_t k = 0; k < state.slots; ++k) {
    store_row(matrix + k * state.stride, state.channels, to + k * state.channels);
  }
}

}  // namespace

template <class T>
int64_t memory_update_scratch(int64_t slots, int64_t channels, int64_t matrices) {
  using A = double;
  const int64_t stride = padded<A>(channels), wide = padded<A>(slots);
  const int64_t squares = 4 * wide + 3 * slots + 3 * (slots + kPanelRows);
  return (matrices * slots * stride + slots * (squares + 6) + 3 * stride + 16 * 16) *
         static_cast<int64_t>(sizeof(A));
}

template <class T>
void memory_update(const MemoryUpdate<T>& op, T* new_memory, T* divergence, T* classification,
                   char* memory) {
  using A = double;
  Scratch scratch{memory};
  const Update<A> state(scratch, op.slots, op.channels, 2);
  form(op, state);
  store_all(state, state.normal, new_memory);
  A overlap = 0, loss = 0;
  for (int64_t k = 0; k < op.slots; ++k) {
    overlap += sum_growing(state.similarities(k), state.similarities(k), state.wide);
    const A own = state.logits(k)[k];
    loss += softmax_row(state.logits(k), op.slots, state.wide) - own;
  }
  *divergence = from_acc<T>(overlap * state.per_pair());
  *classification = from_acc<T>(loss / static_cast<A>(op.slots));
}

template <class T>
void memory_update_backward(const MemoryUpdate<T>& op, const MemoryUpdateCotangents<T>& grad,
                            const MemoryUpdateInputs<T>& to, char* memory) {
  using A = double;
  const int64_t slots = op.slots;
  Scratch scratch{memory};
  const Update<A> state(scratch, slots, op.channels, 3);
  const int64_t stride = state.stride;
  A* dn = scratch.take<A>(slots * stride);
  A* row = state.row;
  form(op, state);

  // dN = gN + X N + L W with the slopes X in G and L in Z.
  const A pull = 2 * scalar(grad.divergence) * state.per_pair();
  const A push = scalar(grad.classification) / static_cast<A>(slots);
  for (int64_t k = 0; k < slots; ++k) {
    softmax_row(state.logits(k), slots, state.wide);
    for (int64_t j = 0; j < slots; ++j) {
      state.left_row(k, 1)[j] = state.similarities(k)[j] > A{0} ? pull : A{0};
      state.left_row(k, 2)[j] = push * (state.logits(k)[j] - (j == k ? A{1} : A{0}));
    }
  }
  load_all(state, grad.memory, dn);
  state.multiply_rows(state.beside(1), state.normal, stride, dn, true);
  state.multiply_rows(state.transposed(2), state.normal, stride, state.normal_dot, false);
  store_all(state, state.normal_dot, to.weight);
  store_column_sums(state, 2, to.bias);

  for (int64_t k = 0; k < slots; ++k) {
    A* du = dn + k * stride;
    along_sphere(state, k, du, du);
    store_given(state, state.keep[k], du, A{0}, du, k, row, to.memory);
    store_given(state, state.share[k], du, A{0}, du, k, row, to.sums);
    const A mass = to_acc<A>(op.mass[k]);
    to.mass[k] = from_acc<T>(mass > A{0} ? -sums_part(op, state, k, du, row) / mass : A{0});
  }
}

/// All that backward computes, differentiated along the tangents.
template <class T>
void memory_update_double_backward(const MemoryUpdate<T>& op, const MemoryUpdateCotangents<T>& grad,
                                   const MemoryUpdateInputs<const T>& tangent, T* new_memory_dot,
                                   T* divergence_dot, T* classification_dot,
                                   const MemoryUpdateInputs<T>& to, char* memory) {
  using A = double;
  const int64_t slots = op.slots;
  Scratch scratch{memory};
  const Update<A> state(scratch, slots, op.channels, 4);
  const int64_t stride = state.stride, wide = state.wide;
  A* dn = scratch.take<A>(slots * stride);
  A* dn_dot = scratch.take<A>(slots * stride);
  A* along = scratch.take<A>(slots);                    // N.u' of every slot
  A* products_dot = scratch.take<A>(slots * 2 * wide);  // how G and Z move
  A* sums = scratch.take<A>(stride);
  A* sums_dot = scratch.take<A>(stride);
  A* row = state.row;
  form(op, state);
  fill(products_dot, slots * 2 * wide, A{0});

  // How u and N move: u' = keep M' + share (S' - S m'/m).
  for (int64_t k = 0; k < slots; ++k) {
    A* u = state.normal_dot + k * stride;
    load_given(state, tangent.memory, k, u);
    combine(state.keep[k], u, A{0}, u, stride, u);
    const A mass = to_acc<A>(op.mass[k]);
    if (mass > A{0}) {
      const A rate = tangent.mass != nullptr ? to_acc<A>(tangent.mass[k]) / mass : A{0};
      load_given(state, op.sums, k, sums);
      load_given(state, tangent.sums, k, sums_dot);
      combine(A{1}, sums_dot, -rate, sums, stride, sums_dot);
      combine(A{1}, u, state.share[k], sums_dot, stride, u);
    }
    along[k] = along_sphere(state, k, u, u);
  }
  store_all(state, state.normal_dot, new_memory_dot);
  load_all(state, tangent.weight, state.weight_dot);
  state.cross(state.normal_dot, state.normal, state.weight, products_dot);
  state.cross(state.normal, state.normal_dot, state.weight_dot, products_dot, true);

  const A pull = 2 * scalar(grad.divergence) * state.per_pair();
  const A push = scalar(grad.classification) / static_cast<A>(slots);
  A overlap = 0, loss = 0;
  for (int64_t k = 0; k < slots; ++k) {
    const A* p = state.logits(k);
    A* z = products_dot + k * 2 * wide + wide;
    softmax_row(state.logits(k), slots, wide);
    for (int64_t j = 0; j < slots && tangent.bias != nullptr; ++j) {
      z[j] += to_acc<A>(tangent.bias[j]);
    }
    const A mean = dot(p, z, wide);
    loss += mean - z[k];
    overlap += sum_growing(state.similarities(k), products_dot + k * 2 * wide, wide);
    for (int64_t j = 0; j < slots; ++j) {
      state.left_row(k, 0)[j] = push * p[j] * (z[j] - mean);  // L'
      state.left_row(k, 1)[j] = state.similarities(k)[j] > A{0} ? pull : A{0};
      state.left_row(k, 2)[j] = push * (p[j] - (j == k ? A{1} : A{0}));
    }
  }
  *divergence_dot = from_acc<T>(overlap * state.per_pair());
  *classification_dot = from_acc<T>(loss / static_cast<A>(slots));
  store_column_sums(state, 0, to.bias);

  // dN = gN + X N + L W moves by L' W + X N' + L W', and dW = L^T N by L'^T N + L^T N'.
  state.multiply_rows(state.beside(0), state.weight, stride, dn_dot, false);
  load_all(state, grad.memory, dn);
  state.multiply_rows(state.beside(1), state.normal, stride, dn, true);
  A* dw = state.weight;  // the weight has been read
  state.multiply_rows(state.transposed(0), state.normal, stride, dw, false);
  state.multiply_rows(state.transposed(2), state.normal_dot, stride, dw, true);
  store_all(state, dw, to.weight);

  for (int64_t k = 0; k < slots; ++k) {
    // du = (dN - N (N.dN)) / |u| moves as 1 / |u|, dN and both N do.
    A* du = dn + k * stride;
    A* du_dot = dn_dot + k * stride;
    const A* n = state.normal + k * stride;
    const A* n_dot = state.normal_dot + k * stride;
    const A product_dot = (dot(n_dot, du, stride) + dot(n, du_dot, stride)) * state.curved[k];
    const A part = along_sphere(state, k, du, du);
    combine(A{1}, du_dot, -part, n_dot, stride, du_dot);
    combine(A{1}, du_dot, -product_dot, n, stride, du_dot);
    combine(A{1}, du_dot, -along[k], du, stride, du_dot);
    combine(state.inverse[k], du_dot, A{0}, du_dot, stride, du_dot);

    const A mass = to_acc<A>(op.mass[k]);
    const bool present = mass > A{0};
    const A rate = present && tangent.mass != nullptr ? to_acc<A>(tangent.mass[k]) / mass : A{0};
    store_given(state, state.keep[k], du_dot, A{0}, du, k, row, to.memory);
    store_given(state, state.share[k], du_dot, -state.share[k] * rate, du, k, row, to.sums);
    // As in sums_part.
    const bool by_memory = state.by_memory[k] > A{0};
    load_given(state, by_memory ? op.memory : op.sums, k, sums);
    load_given(state, by_memory ? tangent.memory : tangent.sums, k, sums_dot);
    const A fixed = dot(sums, du, stride);
    const A moving = dot(sums_dot, du, stride) + dot(sums, du_dot, stride);
    const A slope = by_memory ? state.keep[k] * (moving - rate * fixed)
                              : state.share[k] * (2 * rate * fixed - moving);
    to.mass[k] = from_acc<T>(present ? slope / mass : A{0});
  }
}

#define PINMEM_MEMORY_UPDATE(T)                                                 \
  template int64_t memory_update_scratch<T>(int64_t, int64_t, int64_t);         \
  template void memory_update<T>(const MemoryUpdate<T>&, T*, T*, T*, char*);    \
  template void memory_update_backward<T>(const MemoryUpdate<T>&,               \
                                          const MemoryUpdateCotangents<T>&,     \
                                          const MemoryUpdateInputs<T>&, char*); \
  template void memory_update_double_backward<T>(                               \
      const MemoryUpdate<T>&, const MemoryUpdateCotangents<T>&,                 \
      const MemoryUpdateInputs<const T>&, T*, T*, T*, const MemoryUpdateInputs<T>&, char*);
PINMEM_MEMORY_UPDATE(double)
PINMEM_MEMORY_UPDATE(float)
PINMEM_MEMORY_UPDATE(bfloat16)

}  // namespace pinmem::PINMEM_ISA
