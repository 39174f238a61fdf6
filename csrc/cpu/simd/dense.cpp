#include "simd/dense.h"

#include "simd/gemm.h"
#include "simd/native.h"

namespace pinmem::PINMEM_ISA {

template <class A>
int64_t padded_columns(int64_t columns) {
  return padded<A>(columns);
}

int64_t panel_rows() { return kPanelRows; }

bool multiplies_pairs() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

template <class A>
void pack_panels(Matrix<A> from, int64_t begin, int64_t end, A* panels) {
  panels += begin * kPanelRows * from.columns;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * kPanelRows;
    const A* data = from.data + first * from.row_stride;
    const int64_t rows = from.rows - first < kPanelRows ? from.rows - first : kPanelRows;
    for (int64_t k = 0; k < from.columns; ++k, data += from.column_stride, panels += kPanelRows) {
      for (int64_t r = 0; r < rows; ++r) panels[r] = data[r * from.row_stride];
      for (int64_t r = rows; r < kPanelRows; ++r) panels[r] = A{0};
    }
  }
}

void pack_pair_panels(Matrix<float> from, int64_t begin, int64_t end, uint32_t* panels) {
  panels += begin * kPanelRows * ((from.columns + 1) / 2);
  const auto half = [&](int64_t row, int64_t column) -> uint32_t {
    if (row >= from.rows || column >= from.columns) return 0;
    return from_acc<bfloat16>(from.data[row * from.row_stride + column * from.column_stride]).bits;
  };
  for (int64_t first = begin * kPanelRows; first < end * kPanelRows; first += kPanelRows) {
    for (int64_t k = 0; k < from.columns; k += 2, panels += kPanelRows) {
      for (int64_t r = 0; r < kPanelRows; ++r) {
        panels[r] = half(first + r, k) | half(first + r, k + 1) << 16;
      }
    }
  }
}

template <class A, class T>
void pack_rows(Matrix<T> from, A* to) {
  const int64_t stride = padded<A>(from.columns);
  for (int64_t row = 0; row < from.rows; ++row, to += stride) {
    const T* data = from.data + row * from.row_stride;
    if (from.column_stride == 1) {
      load_row(data, from.columns, stride, to);
      continue;
    }
    for (int64_t i = 0; i < from.columns; ++i) to[i] = to_acc<A>(data[i * from.column_stride]);
    for (int64_t i = from.columns; i < stride; ++i) to[i] = A{0};
  }
}

template <class A>
void multiply(int64_t m, int64_t n, int64_t k, const A* panels, const A* b, A* c, bool add) {
  gemm_panels<MultiplyAdd<A>>(m, n, k, panels, b, n, c, n, add);
}

template <class A>
void add_partials(A* partials, int64_t count, int64_t size, int64_t begin, int64_t end) {
  for (int64_t part = 1; part < count; ++part) {
    const A* from = partials + part * size;
    for (int64_t i = begin; i < end; ++i) partials[i] += from[i];
  }
}

template <class A, class T>
void unpack_rows(Matrix<A> from, T* to, int64_t to_stride) {
  for (int64_t row = 0; row < from.rows; ++row, to += to_stride) {
    const A* data = from.data + row * from.row_stride;
    for (int64_t i = 0; i < from.columns; ++i) {
      to[i] = from_acc<T>(data[i * from.column_stride]);
    }
  }
}

#define PINMEM_DENSE(A)                                                               \
  template void pack_panels<A>(Matrix<A>, int64_t, int64_t, A*);                      \
  template int64_t padded_columns<A>(int64_t);                                        \
  template void multiply<A>(int64_t, int64_t, int64_t, const A*, const A*, A*, bool); \
  template void add_partials<A>(A*, int64_t, int64_t, int64_t, int64_t);
PINMEM_DENSE(float)
PINMEM_DENSE(double)

#define PINMEM_DENSE_OF(A, T)                   \
  template void pack_rows<A, T>(Matrix<T>, A*); \
  template void unpack_rows<A, T>(Matrix<A>, T*, int64_t);
PINMEM_DENSE_OF(double, double)
PINMEM_DENSE_OF(double, float)
PINMEM_DENSE_OF(float, float)
PINMEM_DENSE_OF(float, bfloat16)

}  // namespace pinmem::PINMEM_ISA
