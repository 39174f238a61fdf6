// Vectors of the instruction set this file is compiled for, and what the kernels need of them:
// conversion at load and store, partial loads and stores, exp, log, sqrt, reductions.
//
// Written with the compiler's vector extensions, so the same source is compiled for AVX-512, AVX2
// and any baseline (SSE2, NEON). Types: T is what is stored (double, float, bfloat16), A is what is
// computed with (double, float).
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "dtypes.h"

namespace pinmem::PINMEM_ISA {

#if defined(__AVX512F__)
inline constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVecBytes = 32;
#else
inline constexpr int kVecBytes = 16;
#endif

#define PINMEM_INLINE inline __attribute__((always_inline))

template <class T, int Bytes>
struct VecOf {
  typedef T type __attribute__((vector_size(Bytes)));
};

/// As many T as fill a register.
template <class T>
using Vec = typename VecOf<T, kVecBytes>::type;

/// The signed and unsigned integers as wide as A: what comparisons of Vec<A> give.
template <class A>
using IntOf = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
template <class A>
using UIntOf = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;

template <class A>
inline constexpr int kLanes = kVecBytes / static_cast<int>(sizeof(A));

template <class To, class From>
PINMEM_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

#if defined(__AVX512F__)
/// All lanes: the masked intrinsics with it, since GCC 12 warns of the others' own definition.
inline constexpr __mmask16 kAll = 0xffff;
#endif

template <class A>
PINMEM_INLINE Vec<A> splat(A value) {
  return Vec<A>{} + value;
}

/// One stored value in the accumulation type.
template <class A, class T>
PINMEM_INLINE A to_acc(T value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return static_cast<A>(bit_cast<float>(static_cast<uint32_t>(value.bits) << 16));
  } else {
    return static_cast<A>(value);
  }
}

/// One value rounded to the stored type (to nearest, ties to even; a NaN stays one).
template <class T, class A>
PINMEM_INLINE T from_acc(A value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    const uint32_t u = bit_cast<uint32_t>(static_cast<float>(value));
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return bfloat16{static_cast<uint16_t>(value == value ? rounded : 0x7fc0u)};
  } else {
    return static_cast<T>(value);
  }
}

/// kLanes<A> values from p, converted.
template <class A, class T>
PINMEM_INLINE Vec<A> load(const T* p) {
  if constexpr (std::is_same_v<T, A>) {
    Vec<A> v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  } else if constexpr (std::is_same_v<T, bfloat16> && std::is_same_v<A, double>) {
    float lanes[kLanes<A>];
    for (int i = 0; i < kLanes<A>; ++i) lanes[i] = to_acc<float>(p[i]);
    return load<double>(lanes);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    typename VecOf<uint16_t, kVecBytes / 2>::type half;
    std::memcpy(&half, p, sizeof(half));
    // Of __builtin_convertvector GCC makes four instructions here.
#if defined(__AVX512F__)
    const auto wide =
        bit_cast<Vec<uint32_t>>(_mm512_maskz_cvtepu16_epi32(kAll, bit_cast<__m256i>(half)));
#elif defined(__AVX2__)
    const auto wide = bit_cast<Vec<uint32_t>>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(half)));
#else
    const auto wide = __builtin_convertvector(half, Vec<uint32_t>);
#endif
    return bit_cast<Vec<float>>(wide << 16);
  } else {
    typename VecOf<T, kLanes<A>* static_cast<int>(sizeof(T))>::type narrow;
    std::memcpy(&narrow, p, sizeof(narrow));
    return __builtin_convertvector(narrow, Vec<A>);
  }
}

/// kLanes<A> values to p, rounded to T.
template <class A, class T>
PINMEM_INLINE void store(T* p, Vec<A> v) {
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(p, &v, sizeof(v));
  } else if constexpr (std::is_same_v<T, bfloat16> && std::is_same_v<A, double>) {
    for (int i = 0; i < kLanes<A>; ++i) p[i] = from_acc<bfloat16>(v[i]);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    const auto u = bit_cast<Vec<uint32_t>>(v);
    auto rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    rounded = v == v ? rounded : (u & 0u) + 0x7fc0u;
    using Half = typename VecOf<uint16_t, kVecBytes / 2>::type;
#if defined(__AVX512F__)
    const auto half = bit_cast<Half>(_mm512_maskz_cvtepi32_epi16(kAll, bit_cast<__m512i>(rounded)));
#else
    const Half half = __builtin_convertvector(rounded, Half);
#endif
    std::memcpy(p, &half, sizeof(half));
  } else {
    using Narrow = typename VecOf<T, kLanes<A>* static_cast<int>(sizeof(T))>::type;
    const Narrow narrow = __builtin_convertvector(v, Narrow);
    std::memcpy(p, &narrow, sizeof(narrow));
  }
}

/// The first `count` (0 to kLanes<A>) values from p, converted; zero in the other lanes.
template <class A, class T>
PINMEM_INLINE Vec<A> load_first(const T* p, int64_t count) {
  T lanes[kLanes<A>] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(T));
  return load<A>(lanes);
}

/// The first `count` (0 to kLanes<A>) values to p, rounded to T.
template <class A, class T>
PINMEM_INLINE void store_first(T* p, Vec<A> v, int64_t count) {
  T lanes[kLanes<A>];
  store<A>(lanes, v);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(T));
}

/// Lane by lane the larger, b where either is NaN.
template <class A>
PINMEM_INLINE Vec<A> vmax(Vec<A> a, Vec<A> b) {
  return a > b ? a : b;
}

template <class A>
PINMEM_INLINE Vec<A> vsqrt(Vec<A> v) {
  A lanes[kLanes<A>];
  std::memcpy(lanes, &v, sizeof(v));
  for (A& lane : lanes) {
    lane = sizeof(A) == 8 ? static_cast<A>(__builtin_sqrt(lane))
                          : static_cast<A>(__builtin_sqrtf(static_cast<float>(lane)));
  }
  return load<A>(lanes);
}

/// The sum of the lanes, always in the same order.
template <class A>
PINMEM_INLINE A reduce_add(Vec<A> v) {
  A lanes[kLanes<A>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes<A> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

/// The largest lane.
template <class A>
PINMEM_INLINE A reduce_max(Vec<A> v) {
  A largest = v[0];
  for (int i = 1; i < kLanes<A>; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

template <class A>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float exp_highest = 89.f, exp_lowest = -104.f;
  // Adding and subtracting it rounds to an integer, found in the low bits of the sum.
  static constexpr float rounder = 12582912.f;
  // 1/n! from n = 2 up, the highest first; the last ones bent for |x| <= ln(2)/2.
  static constexpr float exp_series[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                         4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  // 2/(2n+1) from n = 1 up, the highest first.
  static constexpr float log_series[] = {2.f / 11, 2.f / 9, 2.f / 7, 2.f / 5, 2.f / 3};
};

template <>
struct FloatFormat<double> {
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr double exp_highest = 710., exp_lowest = -746.;
  static constexpr double rounder = 6755399441055744.;
  static constexpr double exp_series[] = {
      1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320,
      1. / 5040,       1. / 720,       1. / 120,      1. / 24,      1. / 6,      1. / 2};
  static constexpr double log_series[] = {2. / 23, 2. / 21, 2. / 19, 2. / 17, 2. / 15, 2. / 13,
                                          2. / 11, 2. / 9,  2. / 7,  2. / 5,  2. / 3};
};

template <class A, size_t N>
PINMEM_INLINE Vec<A> horner(const A (&coefficients)[N], Vec<A> x) {
  Vec<A> sum = splat<A>(coefficients[0]);
  for (size_t i = 1; i < N; ++i) sum = sum * x + coefficients[i];
  return sum;
}

/// e to the x within 2 units in the last place over the whole range: 0 and infinity at the ends,
/// denormals between, NaN for NaN.
template <class A>
PINMEM_INLINE Vec<A> vexp(Vec<A> x) {
  using F = FloatFormat<A>;
  using Int = Vec<IntOf<A>>;
  x = x > F::exp_highest ? splat<A>(F::exp_highest) : x;
  x = x < F::exp_lowest ? splat<A>(F::exp_lowest) : x;
  const Vec<A> sum = x * static_cast<A>(1.44269504088896340736) + F::rounder;
  const Vec<A> n = sum - F::rounder;
  const Int exponent = bit_cast<Int>(sum) - bit_cast<IntOf<A>>(F::rounder);
  const Vec<A> r = (x - n * F::ln2_high) - n * F::ln2_low;
  const Vec<A> power = (horner<A>(F::exp_series, r) * r) * r + r + A{1};
  // Two factors, since 2^n alone leaves the range of normal numbers where the product does not.
  const Int half = exponent >> 1;
  const Int low = (half + F::bias) << F::mantissa;
  const Int high = (exponent - half + F::bias) << F::mantissa;
  return power * bit_cast<Vec<A>>(low) * bit_cast<Vec<A>>(high);
}

/// The natural logarithm within 2 units in the last place; -infinity at 0, NaN below.
template <class A>
PINMEM_INLINE Vec<A> vlog(Vec<A> x) {
  using F = FloatFormat<A>;
  using Int = Vec<IntOf<A>>;
  constexpr A smallest = std::numeric_limits<A>::min();
  constexpr A infinity = std::numeric_limits<A>::infinity();
  constexpr A lift = static_cast<A>(IntOf<A>{1} << (F::mantissa));
  const Vec<A> normal = x < smallest ? x * lift : x;
  // The exponent that leaves a mantissa between sqrt(1/2) and sqrt(2).
  constexpr IntOf<A> half_root =
      sizeof(A) == 8 ? static_cast<IntOf<A>>(0x3fe6a09e667f3bcdLL) : 0x3f3504f3;
  const Int bits = bit_cast<Int>(normal);
  const Int exponent = (bits - half_root) >> F::mantissa;
  const Vec<A> m = bit_cast<Vec<A>>(bits - (exponent << F::mantissa));
  Vec<A> e = __builtin_convertvector(exponent, Vec<A>);
  e = x < smallest ? e - static_cast<A>(F::mantissa) : e;
  const Vec<A> s = (m - A{1}) / (m + A{1});
  const Vec<A> square = s * s;
  const Vec<A> tail = s * square * horner<A>(F::log_series, square) + e * F::ln2_low;
  Vec<A> result = e * F::ln2_high + (s + s + tail);
  result = x == A{0} ? splat<A>(-infinity) : result;
  result = x == infinity ? x : result;
  return x >= A{0} ? result : splat<A>(std::numeric_limits<A>::quiet_NaN());
}

}  // namespace pinmem::PINMEM_ISA
