// Which instruction set the kernels use on this machine, and how the glue calls them.
//
// csrc/cpu/<op>.cpp is glue: it checks tensors, allocates results and calls kernels. It is compiled
// once, for any CPU. csrc/cpu/simd/<op>.cpp holds the kernels on raw pointers. On x86-64 it is
// compiled three times, with PINMEM_ISA set to avx512, avx2 and baseline, and everything in it lies
// in namespace pinmem::PINMEM_ISA. csrc/cpu/simd/<op>.h declares the kernels once for each of them:
//
//   namespace pinmem {
//   PINMEM_KERNEL(template <class T> void halve(const T* from, T* to, int64_t count))
//   }
//
// and the glue calls the one for this CPU, as in any call of a function:
//
//   PINMEM_CALL(halve<float>)(from, to, count);
//
// A kernel file includes no torch header, and of the standard library only what is a plain C
// function or a builtin (cstdint, cstddef, cmath, cstring). The reason: an inline function outside
// namespace pinmem::PINMEM_ISA (std::vector<float>::push_back, say) is compiled three times under
// one name, the linker keeps any one of the three, and where it keeps the AVX-512 one the library
// dies on an older CPU. For the same reason the structs that glue and kernels share are plain data
// without member functions. tests/test_packaging.py looks at the object files for such leaks.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#define PINMEM_KERNEL(...) \
  namespace avx512 {       \
  __VA_ARGS__;             \
  }                        \
  namespace avx2 {         \
  __VA_ARGS__;             \
  }                        \
  namespace baseline {     \
  __VA_ARGS__;             \
  }
#define PINMEM_CALL(...)                                                     \
  (::pinmem::isa() == ::pinmem::Isa::avx512 ? &::pinmem::avx512::__VA_ARGS__ \
   : ::pinmem::isa() == ::pinmem::Isa::avx2 ? &::pinmem::avx2::__VA_ARGS__   \
                                            : &::pinmem::baseline::__VA_ARGS__)
#else
#define PINMEM_KERNEL(...) \
  namespace baseline {     \
  __VA_ARGS__;             \
  }
#define PINMEM_CALL(...) (&::pinmem::baseline::__VA_ARGS__)
#endif

namespace pinmem {

enum class Isa { baseline, avx2, avx512 };

// The best level this CPU has, or the lower one that the environment variable PINMEM_CPU_ISA names.
// Decided at the first call; throws where the variable asks for what there is not.
Isa isa();

}  // namespace pinmem
