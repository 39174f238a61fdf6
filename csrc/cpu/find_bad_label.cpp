#include "simd/find_bad_label.h"

#include <atomic>

#include "parallel.h"
#include "tensor.h"

namespace pinmem {
namespace {

constexpr int64_t kBlock = 1 << 16;

int64_t find_bad_label(Tensor labels, int64_t num_classes, int64_t ignore_index) {
  STD_TORCH_CHECK(num_classes >= 1, "num_classes: got ", num_classes, ", expected at least 1");
  check_contiguous("labels", labels);
  const int64_t count = labels.numel();
  std::atomic<int64_t> first{count};
  isa();  // which may throw the first time, and the blocks below must not
  dispatch_labels("labels", labels, [&](auto type) {
    using L = typename decltype(type)::type;
    const L* data = read<L>(labels);
    for_blocks(count, kBlock, [&](int64_t, int64_t begin, int64_t end) {
      // Behind a wrong label nothing can be the first.
      if (begin > first.load(std::memory_order_relaxed)) return;
      const int64_t place =
          PINMEM_CALL(find_bad_label<L>)(data + begin, end - begin, num_classes, ignore_index);
      if (place < 0) return;
      int64_t known = first.load(std::memory_order_relaxed);
      while (begin + place < known && !first.compare_exchange_weak(known, begin + place)) {
      }
    });
  });
  return first < count ? first.load() : -1;
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cpu, CPU, m) {
  m.impl("find_bad_label", TORCH_BOX(&pinmem::find_bad_label));
}
