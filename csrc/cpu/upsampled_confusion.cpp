#include "simd/upsampled_confusion.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "bilinear.h"
#include "pixel_blocks.h"
#include "tensor.h"

namespace pinmem {
namespace {

// Bands whose counts are kept apart until they are added to the result.
constexpr int64_t kBandsAtOnce = 4;

template <class T, class L>
void count(const Map& map, const Tensor& logits, const Tensor& target, int64_t ignore_index,
           int64_t* counts) {
  using A = accumulator_t<T>;
  const UpsamplingTables<A> tables(map.height, map.width, target.size(1), target.size(2),
                                   PINMEM_CALL(vector_lanes<A>)());
  const Upsampling<A> up = tables.of(map.channels, map.height, map.width, target.size(1),
                                     target.size(2), map.channels_last);
  const T* from = read<T>(logits);
  const L* labels = read<L>(target);
  const int64_t band_rows = rows_per_band(map.height);
  const int64_t bands = num_blocks(map.height, band_rows);
  const int64_t cells = map.channels * map.channels;
  const int64_t bytes = PINMEM_CALL(confusion_scratch<A>)(up);
  std::fill_n(counts, cells, 0);
  std::mutex adding;
  for_tiles(map.batch * bands, kBandsAtOnce, bytes,
            [&](int64_t, int64_t begin, int64_t end, void* scratch) {
              std::vector<int64_t> own(static_cast<size_t>(cells + map.channels));
              for (int64_t band = begin; band < end; ++band) {
                const int64_t row = band % bands * band_rows;
                PINMEM_CALL(confusion_band<A, T, L>)(up, from, labels, ignore_index, band / bands,
                                                     row, std::min(row + band_rows, map.height),
                                                     own.data(), scratch);
              }
              // Sums of integers: the same in any order.
              const std::lock_guard<std::mutex> lock(adding);
              for (int64_t i = 0; i < cells; ++i) counts[i] += own[static_cast<size_t>(i)];
            });
}

Tensor upsampled_confusion(Tensor logits, Tensor target, int64_t ignore_index) {
  const Map map = map_of("logits", logits);
  check_target("target", target, map);
  Tensor counts = empty({map.channels, map.channels}, ScalarType::Long);
  dispatch_floats("logits", logits, [&](auto map_type) {
    dispatch_labels("target", target, [&](auto label_type) {
      count<typename decltype(map_type)::type, typename decltype(label_type)::type>(
          map, logits, target, ignore_index, write<int64_t>(counts));
    });
  });
  return counts;
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cpu, CPU, m) {
  m.impl("upsampled_confusion", TORCH_BOX(&pinmem::upsampled_confusion));
}
