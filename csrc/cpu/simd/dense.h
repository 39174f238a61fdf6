// Small dense matrices, once per call: packing operands for gemm.h, products, sums of partial sums.
#pragma once

#include "isa.h"

namespace pinmem {

/// A matrix as it lies: element (row, column) is data[row * row_stride + column * column_stride].
template <class T>
struct Matrix {
  const T* data;
  int64_t rows, columns, row_stride, column_stride;
};

// The length that rows of `columns` elements are padded to.
PINMEM_KERNEL(template <class A> int64_t padded_columns(int64_t columns))

// Whether this CPU multiplies pairs of bfloat16.
PINMEM_KERNEL(bool multiplies_pairs())

// The rows of a panel.
PINMEM_KERNEL(int64_t panel_rows())

// Panels [begin, end) of a matrix, the left operand of products.
PINMEM_KERNEL(template <class A>
              void pack_panels(Matrix<A> from, int64_t begin, int64_t end, A* panels))

// The same in pairs of bfloat16 along a row; the last pair of an odd row ends with zero.
PINMEM_KERNEL(void pack_pair_panels(Matrix<float> from, int64_t begin, int64_t end,
                                    uint32_t* panels))

// A matrix in padded rows, zero in the padding: the right operand of products.
PINMEM_KERNEL(template <class A, class T> void pack_rows(Matrix<T> from, A* to))

// C[m,n] (+)= A[m,k] B[k,n], A in panels, B and C in padded rows of `n` elements.
PINMEM_KERNEL(template <class A> void multiply(int64_t m, int64_t n, int64_t k, const A* panels,
                                               const A* b, A* c, bool add))

// Adds the elements [begin, end) of `count` partial sums of `size` elements into the first, in
// order.
PINMEM_KERNEL(template <class A> void add_partials(A* partials, int64_t count, int64_t size,
                                                   int64_t begin, int64_t end))

// The contiguous matrix `to` = `from`, rounded.
PINMEM_KERNEL(template <class A, class T>
              void unpack_rows(Matrix<A> from, T* to, int64_t to_stride))

}  // namespace pinmem
