// exp and log over the ranges that a softmax needs, where they cost less than vexp and vlog.
#pragma once

#include <cstdint>

#include "simd/vec.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace pinmem::PINMEM_ISA {

// e^r = 1 + r (1 + r q(r)), the highest power of q first; minimax for |r| <= ln(2)/2, with relative
// errors of 3e-9 and 5e-20.
template <class A>
struct ExpSeries;
template <>
struct ExpSeries<float> {
  static constexpr float value[] = {1.38145995530946658e-3f,
                                    8.36871687526235994e-3f,
                                    4.16683880310376087e-2f,
                                    1.66665206317733233e-1f,
                                    4.99999934478383504e-1f,
                                    1.f,
                                    1.f};
};
template <>
struct ExpSeries<double> {
  static constexpr double value[] = {2.0826627713049053e-9,
                                     2.51120367890536851e-8,
                                     2.75575818456129756e-7,
                                     2.75572348620835743e-6,
                                     2.48015869266371174e-5,
                                     1.98412698963836289e-4,
                                     1.38888888891156255e-3,
                                     8.33333333331703434e-3,
                                     4.16666666666660943e-2,
                                     1.66666666666666834e-1,
                                     5.00000000000000004e-1,
                                     1.,
                                     1.};
};

/// e^x for x <= 0, within about a unit in the last place where it is no smaller than 1e-9 and a few
/// below, down to the smallest normal number; what is smaller still is at most about that. NaN for
/// NaN.
template <class A>
PINMEM_INLINE Vec<A> exp_of_nonpositive(Vec<A> x) {
  constexpr A log2e = static_cast<A>(1.44269504088896340736);
#if defined(__AVX512F__)
  // One product suffices: it is not rounded, and the error of this ln(2) itself is n * 2e-9, or
  // n * 2e-17.
  constexpr A ln2 = static_cast<A>(0.693147180559945309417);
  if constexpr (sizeof(A) == 4) {
    const Vec<A> n = _mm512_maskz_roundscale_ps(0xffff, x * log2e, _MM_FROUND_TO_NEAREST_INT);
    return _mm512_maskz_scalef_ps(0xffff, horner<A>(ExpSeries<A>::value, x - n * ln2), n);
  } else {
    const Vec<A> n = _mm512_maskz_roundscale_pd(0xff, x * log2e, _MM_FROUND_TO_NEAREST_INT);
    return _mm512_maskz_scalef_pd(0xff, horner<A>(ExpSeries<A>::value, x - n * ln2), n);
  }
#else
  using F = FloatFormat<A>;
  using Int = Vec<IntOf<A>>;
  // Nothing below 2^-bias can be put together from its exponent.
  constexpr A least = static_cast<A>((2 - F::bias) * 0.693147180559945309417);
  x = vmax<A>(splat<A>(least), x);
  const Vec<A> sum = x * log2e + F::rounder;
  const Vec<A> n = sum - F::rounder;
  const Vec<A> power = horner<A>(ExpSeries<A>::value, (x - n * F::ln2_high) - n * F::ln2_low);
  // The shift leaves the integer alone: the rounder's own bits go out at the top.
  return bit_cast<Vec<A>>(bit_cast<Int>(power) + (bit_cast<Int>(sum) << F::mantissa));
#endif
}

/// log(x) for finite x >= 1, to a few units in the last place of the larger of 1 and the result.
/// NaN for NaN.
template <class A>
PINMEM_INLINE Vec<A> log_of_at_least_one(Vec<A> x) {
  using F = FloatFormat<A>;
  using Int = Vec<IntOf<A>>;
  // The exponent that leaves a mantissa between sqrt(1/2) and sqrt(2).
  constexpr IntOf<A> half_root =
      sizeof(A) == 8 ? static_cast<IntOf<A>>(0x3fe6a09e667f3bcdLL) : 0x3f3504f3;
  const Int exponent = (bit_cast<Int>(x) - half_root) >> F::mantissa;
  const Vec<A> m = bit_cast<Vec<A>>(bit_cast<Int>(x) - (exponent << F::mantissa));
  const Vec<A> s = (m - A{1}) / (m + A{1});
  const Vec<A> square = s * s;
  const Vec<A> e = __builtin_convertvector(exponent, Vec<A>);
  const Vec<A> tail = s * square * horner<A>(F::log_series, square) + e * F::ln2_low;
  // x - x brings a NaN back, whose bits above were taken for a number's.
  return e * F::ln2_high + (s + s + (tail + (x - x)));
}

}  // namespace pinmem::PINMEM_ISA
