#include "simd/gemm.h"

#include "simd/pixels.h"

namespace pinmem::PINMEM_ISA {

template <class Step, int Rows, int RowStride, int StepStride>
PINMEM_INLINE void micro_gemm(int64_t steps, const typename Step::Element* a,
                              const typename Step::Element* b, int64_t b_stride,
                              typename Step::Sum* c, int64_t c_stride, bool add) {
  using Sum = typename Step::Sum;
  using Element = typename Step::Element;
  constexpr int lanes = kLanes<Sum>;
  Vec<Sum> sums[Rows][2];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    sums[r][0] = Vec<Sum>{};
    sums[r][1] = Vec<Sum>{};
  }
  for (int64_t k = 0; k < steps; ++k) {
    const Vec<Element> left = load<Element>(b);
    const Vec<Element> right = load<Element>(b + lanes);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const Vec<Element> element = splat<Element>(a[r * RowStride]);
      Step::step(sums[r][0], element, left);
      Step::step(sums[r][1], element, right);
    }
    a += StepStride;
    b += b_stride;
  }
  if (add) {
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      sums[r][0] += load<Sum>(c + r * c_stride);
      sums[r][1] += load<Sum>(c + r * c_stride + lanes);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    store<Sum>(c + r * c_stride, sums[r][0]);
    store<Sum>(c + r * c_stride + lanes, sums[r][1]);
  }
}

/// The last rows, fewer than kPanelRows.
template <class Step, int RowStride, int StepStride, int Rows = kPanelRows - 1>
PINMEM_INLINE void micro_gemm_rest(int64_t rows, int64_t steps, const typename Step::Element* a,
                                   const typename Step::Element* b, int64_t b_stride,
                                   typename Step::Sum* c, int64_t c_stride, bool add) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      micro_gemm<Step, Rows, RowStride, StepStride>(steps, a, b, b_stride, c, c_stride, add);
    } else {
      micro_gemm_rest<Step, RowStride, StepStride, Rows - 1>(rows, steps, a, b, b_stride, c,
                                                             c_stride, add);
    }
  }
}

template <class Step, int RowStride, int StepStride>
void gemm(int64_t m, int64_t n, int64_t k, const typename Step::Element* a, int64_t panel_stride,
          const typename Step::Element* b, int64_t b_stride, typename Step::Sum* c,
          int64_t c_stride, bool add) {
  for (int64_t column = 0; column < n; column += kStripe<typename Step::Sum>) {
    for (int64_t first = 0; first < k; first += kSumSteps) {
      const int64_t steps = k - first < kSumSteps ? k - first : kSumSteps;
      const bool onto = add || first > 0;
      const typename Step::Element* panel = a + first * StepStride;
      const typename Step::Element* stripe = b + first * b_stride + column;
      typename Step::Sum* rows = c + column;
      int64_t row = 0;
      for (; row + kPanelRows <= m; row += kPanelRows) {
        micro_gemm<Step, kPanelRows, RowStride, StepStride>(steps, panel, stripe, b_stride, rows,
                                                            c_stride, onto);
        panel += panel_stride;
        rows += kPanelRows * c_stride;
      }
      micro_gemm_rest<Step, RowStride, StepStride>(m - row, steps, panel, stripe, b_stride, rows,
                                                   c_stride, onto);
    }
  }
}

#define PINMEM_GEMM(Step, RowStride, StepStride)                         \
  template void gemm<Step, RowStride, StepStride>(                       \
      int64_t, int64_t, int64_t, const typename Step::Element*, int64_t, \
      const typename Step::Element*, int64_t, typename Step::Sum*, int64_t, bool);
PINMEM_GEMM(MultiplyAdd<float>, 1, kPanelRows)
PINMEM_GEMM(MultiplyAdd<float>, 1, kTilePixels)
PINMEM_GEMM(MultiplyAdd<float>, kTilePixels, 1)
PINMEM_GEMM(MultiplyAdd<float>, 1, kDepth)
PINMEM_GEMM(MultiplyAdd<float>, kDepth, 1)
PINMEM_GEMM(MultiplyAdd<double>, 1, kPanelRows)
PINMEM_GEMM(MultiplyAdd<double>, 1, kTilePixels)
PINMEM_GEMM(MultiplyAdd<double>, kTilePixels, 1)
PINMEM_GEMM(PairMultiplyAdd, 1, kPanelRows)
PINMEM_GEMM(PairMultiplyAdd, kTilePixels / 2, 1)

}  // namespace pinmem::PINMEM_ISA
