// What every kernel needs: element types, fast functions, reductions. No torch header.
//
// The control flow of a pass, by file:
//   <op>.cu   checks shapes and types (Python has checked them for users: these are for us),
//             allocates the results and one block of scratch, fills a task with pointers and sizes,
//             and launches on torch's current stream; registers its passes at the end.
//   <op>_*.h  the kernels: a block takes a part of the pixels and writes its part of every sum to
//             scratch. A last launch adds the parts in a fixed order: no floating-point atomics.
//   features.h, columns.h, upsampling.h
//             how feature maps and upsampled pixels are shared out, and their exact weights.
//   tensor.h  tensors over the stable ABI, and Stream, which makes a device current and launches.
// A temperature or a momentum is an argument; element types and the order are compiled in.
//
// The same text compiles for a GPU and, with PINMEM_HOST_EMULATION, for a CPU, where
// emulation/cuda_on_cpu.h runs every thread of a block as a fiber: that is how the kernels are
// tested on machines without a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../cpu/dtypes.h"

#ifdef PINMEM_HOST_EMULATION
#include "emulation/cuda_on_cpu.h"
#endif

namespace pinmem {

struct float16 {
  uint16_t bits;
};

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// --- Elements ------------------------------------------------------------------------------------

#ifdef PINMEM_HOST_EMULATION
inline float bits_to_float(uint32_t bits) { return cuda_on_cpu::bit_cast<float>(bits); }
inline float widen_half(uint16_t bits) {
  return static_cast<float>(cuda_on_cpu::bit_cast<_Float16>(bits));
}
inline uint16_t narrow_half(float value) {
  return cuda_on_cpu::bit_cast<uint16_t>(static_cast<_Float16>(value));
}
inline uint16_t narrow_bfloat16(float value) {
  const auto bits = cuda_on_cpu::bit_cast<uint32_t>(value);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
__device__ __forceinline__ float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ float widen_half(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ __forceinline__ uint16_t narrow_half(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
__device__ __forceinline__ uint16_t narrow_bfloat16(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#endif

__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(bfloat16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float widen(float16 value) { return widen_half(value.bits); }

template <class T>
struct Narrow {
  template <class A>
  static __device__ __forceinline__ T from(A value) {
    return static_cast<T>(value);
  }
};
template <>
struct Narrow<bfloat16> {
  static __device__ __forceinline__ bfloat16 from(float value) { return {narrow_bfloat16(value)}; }
};
template <>
struct Narrow<float16> {
  static __device__ __forceinline__ float16 from(float value) { return {narrow_half(value)}; }
};

/// Rounds to the nearest value of the type T.
template <class T, class A>
__device__ __forceinline__ T narrow(A value) {
  return Narrow<T>::from(value);
}

/// An element type known at run time: small loads and stores branch on it, so that a kernel is
/// compiled once for all of them.
enum class Element : int { f64, f32, bf16, f16 };

template <class A>
__device__ __forceinline__ A load_element(const void* data, Element type, int64_t i) {
  switch (type) {
    case Element::f64: return static_cast<A>(static_cast<const double*>(data)[i]);
    case Element::f32: return static_cast<A>(static_cast<const float*>(data)[i]);
    case Element::bf16: return static_cast<A>(widen(static_cast<const bfloat16*>(data)[i]));
    default: return static_cast<A>(widen(static_cast<const float16*>(data)[i]));
  }
}

template <class A>
__device__ __forceinline__ void store_element(void* data, Element type, int64_t i, A value) {
  switch (type) {
    case Element::f64: static_cast<double*>(data)[i] = static_cast<double>(value); break;
    case Element::f32: static_cast<float*>(data)[i] = static_cast<float>(value); break;
    case Element::bf16:
      static_cast<bfloat16*>(data)[i] = narrow<bfloat16>(static_cast<float>(value));
      break;
    default: static_cast<float16*>(data)[i] = narrow<float16>(static_cast<float>(value));
  }
}

/// Labels, uint8 or int64. A label outside [0, num_classes) counts as ignored.
struct Labels {
  const void* data;
  bool wide;
  int num_classes;
  int64_t ignore_index;

  /// The class of label i, or -1.
  __device__ __forceinline__ int load(int64_t i) const {
    const int64_t label = wide ? static_cast<const int64_t*>(data)[i]
                               : static_cast<int64_t>(static_cast<const uint8_t*>(data)[i]);
    return counts(label) ? static_cast<int>(label) : -1;
  }
  __host__ __device__ __forceinline__ bool counts(int64_t label) const {
    return label >= 0 && label < num_classes && label != ignore_index;
  }

  /// Labels as places in a table: each of a byte's, each class, and a last one for all others.
  __host__ __device__ __forceinline__ int last_entry() const {
    return num_classes > 256 ? num_classes : 256;
  }
  /// The entry of the label `offset` labels behind the one at `from`.
  __device__ __forceinline__ int entry(const unsigned char* from, unsigned offset) const {
    if (!wide) return from[offset];
    const int64_t label = reinterpret_cast<const int64_t*>(from)[offset];
    return static_cast<uint64_t>(label) < static_cast<uint64_t>(last_entry())
               ? static_cast<int>(label)
               : last_entry();
  }
};

/// 16 bytes at once.
template <class T>
struct alignas(16) Vector16 {
  static constexpr int size = 16 / sizeof(T);
  T at[size];
};

// --- Copies to shared memory ---------------------------------------------------------------------

#ifdef PINMEM_HOST_EMULATION
inline void copy16_async(void* to, const void* from) { std::memcpy(to, from, 16); }
inline void wait_for_copies() {}
#else
/// Copies 16 aligned bytes from global to shared memory; there once this thread has waited.
__device__ __forceinline__ void copy16_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
#endif

// --- Functions -----------------------------------------------------------------------------------

#ifdef PINMEM_HOST_EMULATION
inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_log2(float x) { return std::log2(x); }
inline float fast_reciprocal(float x) { return 1 / x; }
#else
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y + y * (1 - x * y);  // a step of Newton's: half a unit in the last place
}
#endif
__device__ __forceinline__ double fast_exp2(double x) { return exp2(x); }
__device__ __forceinline__ double fast_log2(double x) { return log2(x); }
__device__ __forceinline__ double fast_reciprocal(double x) { return 1 / x; }

template <class A>
__device__ __forceinline__ A larger(A a, A b) {
  return a > b ? a : b;
}

/// The same value, of which the compiler knows nothing: it then computes again what it would
/// otherwise keep in registers.
#ifdef PINMEM_HOST_EMULATION
template <class A>
A forget(A value) {
  return value;
}
#else
__device__ __forceinline__ float forget(float value) {
  asm volatile("" : "+f"(value));
  return value;
}
__device__ __forceinline__ double forget(double value) {
  asm volatile("" : "+d"(value));
  return value;
}
#endif

inline constexpr double kLog2e = 1.4426950408889634;
inline constexpr double kLn2 = 0.6931471805599453;

/// The inverse norm of a feature from its squared norm, and whether the feature is so short that
/// the map is linear there (docs/math.md).
template <class A>
__device__ __forceinline__ A inverse_norm(A squared, bool& linear) {
  const A norm = sqrt(squared);
  linear = !(norm > A(1e-12));
  return linear && norm == norm ? A(1e12) : A(1) / norm;
}

// --- Reductions ----------------------------------------------------------------------------------

/// The sum over `lanes` neighbouring lanes, bitwise the same in each.
template <class A>
__device__ __forceinline__ A warp_sum(A value, int lanes = kWarp) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

template <class A>
__device__ __forceinline__ A warp_max(A value, int lanes = kWarp) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    value = larger(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

/// The sum over a block, in every thread; `scratch` holds one element per warp. Synchronises first
/// and last, so that scratch may be used again.
template <class A>
__device__ A block_sum(A value, A* scratch) {
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  A total = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) total += scratch[warp];
  __syncthreads();
  return total;
}

// --- Shared memory and launches ------------------------------------------------------------------

#ifdef PINMEM_HOST_EMULATION
template <class T>
T* dynamic_shared() {
  return static_cast<T*>(cuda_on_cpu::dynamic_shared());
}
#else
extern __shared__ __align__(16) unsigned char pinmem_dynamic_shared[];

/// The dynamic shared memory of the block, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  return reinterpret_cast<T*>(pinmem_dynamic_shared);
}
#endif

}  // namespace pinmem
