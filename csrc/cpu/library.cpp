// The choice of instruction set, and the op that names it. Every op registers itself in its own
// file.
#include <cstdlib>
#include <string>

#include "isa.h"
#include "tensor.h"

namespace pinmem {
namespace {

Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The builtin asks the operating system too (it must save the wide registers).
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma")) {
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa choose() {
  const Isa limit = best();
  const char* wanted = std::getenv("PINMEM_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return limit;
  const std::string name = wanted;
  STD_TORCH_CHECK(name == "avx512" || name == "avx2" || name == "baseline", "PINMEM_CPU_ISA: got '",
                  name, "', expected avx512, avx2 or baseline");
  const Isa level = name == "avx512" ? Isa::avx512 : name == "avx2" ? Isa::avx2 : Isa::baseline;
  STD_TORCH_CHECK(level <= limit, "PINMEM_CPU_ISA: got '", name, "', which this CPU does not have");
  return level;
}

// 0 baseline, 1 avx2, 2 avx512.
int64_t isa_level() { return static_cast<int64_t>(isa()); }

}  // namespace

Isa isa() {
  static const Isa level = choose();
  return level;
}

}  // namespace pinmem

STABLE_TORCH_LIBRARY_FRAGMENT(pinmem_cpu, m) { m.def("isa_level() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(pinmem_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa_level", TORCH_BOX(&pinmem::isa_level));
}
