// Matrix products out of cache: one operand broadcast element by element, the other in vectors.
//
// C[m,n] = A[m,k] B[k,n], B and C with contiguous rows whose length is a multiple of kStripe. A is
// either packed into panels, for operands that many products share, or a tile as it lies.
// Every element of C is summed in blocks of kSumSteps, in the order of k: bitwise the same wherever
// it is computed, and small rounding errors over many steps.
#pragma once

#include <cstdint>

#include "simd/vec.h"

namespace pinmem::PINMEM_ISA {

/// Rows of C that a micro-kernel keeps in registers, two vectors each.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kPanelRows = 12;
#else
inline constexpr int kPanelRows = 6;
#endif

/// Steps of k summed into a sum of their own; B's part of them fits the first cache.
inline constexpr int64_t kSumSteps = 256;

/// Channels of a block of transformed tiles (simd/conv3x3.cpp): the row stride of those.
inline constexpr int kDepth = 128;

/// The columns of a micro-kernel: rows of B and C are padded to a multiple.
template <class A>
inline constexpr int kStripe = 2 * kLanes<A>;

template <class A>
PINMEM_INLINE int64_t padded(int64_t columns) {
  return (columns + kStripe<A> - 1) / kStripe<A> * kStripe<A>;
}

/// A step of k: one element of A against a vector of elements of B.
template <class A>
struct MultiplyAdd {
  using Sum = A;
  using Element = A;
  static PINMEM_INLINE void step(Vec<A>& sum, Vec<A> a, Vec<A> b) { sum += a * b; }
};

/// A step over two of k at once: an element is a pair of bfloat16, the first in the low half.
struct PairMultiplyAdd {
  using Sum = float;
  using Element = uint32_t;
  static PINMEM_INLINE void step(Vec<float>& sum, Vec<uint32_t> a, Vec<uint32_t> b) {
#if defined(__AVX512F__)
    // Not the intrinsic: that wants the whole file compiled for AVX512_BF16, which the caller asks
    // for.
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
    const auto low = [](Vec<uint32_t> pair) { return bit_cast<Vec<float>>(pair << 16); };
    const auto high = [](Vec<uint32_t> pair) { return bit_cast<Vec<float>>(pair & 0xffff0000u); };
    sum += low(a) * low(b) + high(a) * high(b);
#endif
  }
};

/// C (+)= A B, the rows of A RowStride elements apart, its steps StepStride, and its panels of
/// kPanelRows rows panel_stride. Defined in gemm.cpp for the strides below.
template <class Step, int RowStride, int StepStride>
void gemm(int64_t m, int64_t n, int64_t k, const typename Step::Element* a, int64_t panel_stride,
          const typename Step::Element* b, int64_t b_stride, typename Step::Sum* c,
          int64_t c_stride, bool add);

/// C (+)= A B with A in panels: row r of panel i at step k is a[(i * steps + k) * kPanelRows + r].
template <class Step>
inline void gemm_panels(int64_t m, int64_t n, int64_t k, const typename Step::Element* panels,
                        const typename Step::Element* b, int64_t b_stride, typename Step::Sum* c,
                        int64_t c_stride, bool add = false) {
  gemm<Step, 1, kPanelRows>(m, n, k, panels, kPanelRows * k, b, b_stride, c, c_stride, add);
}

/// C (+)= A B with A as it lies, its rows `RowStride` elements apart.
template <class Step, int RowStride>
inline void gemm_tile(int64_t m, int64_t n, int64_t k, const typename Step::Element* a,
                      const typename Step::Element* b, int64_t b_stride, typename Step::Sum* c,
                      int64_t c_stride, bool add = false) {
  gemm<Step, RowStride, 1>(m, n, k, a, kPanelRows * RowStride, b, b_stride, c, c_stride, add);
}

/// C (+)= A^T B with A as it lies, its rows `RowStride` elements apart.
template <class Step, int RowStride>
inline void gemm_tile_t(int64_t m, int64_t n, int64_t k, const typename Step::Element* a,
                        const typename Step::Element* b, int64_t b_stride, typename Step::Sum* c,
                        int64_t c_stride, bool add = false) {
  gemm<Step, 1, RowStride>(m, n, k, a, kPanelRows, b, b_stride, c, c_stride, add);
}

}  // namespace pinmem::PINMEM_ISA
