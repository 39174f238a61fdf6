#include "simd/find_bad_label.h"

namespace pinmem::PINMEM_ISA {

namespace {

// Labels looked at between two exits: long enough to fill vectors, short enough to stop early.
constexpr int64_t kStride = 1024;

// Whether a label exceeds `last` and is not `ignored`; unsigned, so that -1 exceeds too.
template <class U>
bool any_wrong(const U* labels, int64_t count, U last, U ignored) {
  U wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    wrong |= static_cast<U>((labels[i] > last) & (labels[i] != ignored));
  }
  return wrong != 0;
}

template <class U>
int64_t first_wrong(const U* labels, int64_t count, U last, U ignored) {
  for (int64_t begin = 0; begin < count; begin += kStride) {
    const int64_t length = count - begin < kStride ? count - begin : kStride;
    if (!any_wrong(labels + begin, length, last, ignored)) continue;
    int64_t i = begin;
    while (labels[i] <= last || labels[i] == ignored) ++i;
    return i;
  }
  return -1;
}

}  // namespace

template <>
int64_t find_bad_label<uint8_t>(const uint8_t* labels, int64_t count, int64_t num_classes,
                                int64_t ignore_index) {
  const auto last = static_cast<uint8_t>(num_classes > 256 ? 255 : num_classes - 1);
  // An ignore_index that no uint8 can be ignores nothing: `last` is right in any case.
  const bool possible = ignore_index >= 0 && ignore_index <= 255;
  return first_wrong(labels, count, last, possible ? static_cast<uint8_t>(ignore_index) : last);
}

template <>
int64_t find_bad_label<int64_t>(const int64_t* labels, int64_t count, int64_t num_classes,
                                int64_t ignore_index) {
  return first_wrong(reinterpret_cast<const uint64_t*>(labels), count,
                     static_cast<uint64_t>(num_classes - 1), static_cast<uint64_t>(ignore_index));
}

}  // namespace pinmem::PINMEM_ISA
