// Cross-entropy of upsampled logits and its derivatives (docs/math.md 2), band by band.
#include "simd/upsampled_cross_entropy.h"

#include "simd/bilinear.h"
#include "simd/cells.h"
#include "simd/vec.h"

namespace pinmem::PINMEM_ISA {
namespace {

template <class A>
void copy_row(const Upsampling<A>& up, const A* from, A* to) {
  for (int64_t k = 0; k < up.channels; ++k, from += row_stride(up)) {
    for (int64_t x = 0; x < up.width; ++x) to[k * up.width + x] = from[x];
  }
}

// The labels of the output rows [begin, end) in tiles, and then the tile's cells.
template <class A, class L, Order order>
void add_rows(const CrossEntropy<A>& task, const L* target, int64_t begin, int64_t end,
              Cells<A, order>& cells) {
  const int64_t tiles = (end - begin + kTileRows - 1) / kTileRows;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = begin + (end - begin) * tile / tiles;
    const int64_t last = begin + (end - begin) * (tile + 1) / tiles;
    for (int64_t y = first; y < last; ++y) {
      load_labels(task.up, target + y * task.up.out_width, task.ignore_index,
                  cells.labels(y - first));
    }
    cells.add(first, last);
  }
}

template <Order order, class A, class T, class L, class G>
void run_band(const CrossEntropy<A>& task, const T* logits, const T* tangent, const L* target,
              int64_t image, int64_t first, int64_t last, const CrossEntropyBand<A, G>& band,
              void* scratch) {
  const Upsampling<A>& up = task.up;
  const int64_t image_size = up.channels * up.height * up.width;
  logits += image * image_size;
  target += image * up.out_height * up.out_width;
  Cells<A, order> cells(task, scratch);
  load_row(up, logits, first, cells.next_row());
  if constexpr (order == Order::second) {
    tangent += image * image_size;
    load_row(up, tangent, first, cells.next_tangent());
  }
  if constexpr (order != Order::loss) cells.clear_gradient();
  for (int64_t row = first; row < last; ++row) {
    load_row(up, logits, row + 1, cells.next_row());
    if constexpr (order == Order::second) load_row(up, tangent, row + 1, cells.next_tangent());
    add_rows(task, target, up.row_begin[row], up.row_begin[row + 1], cells);
    if constexpr (order == Order::loss) continue;
    const A* gradient = cells.finish_row();
    if (row == first) {
      copy_row(up, gradient, band.head);
    } else {
      write_row(up, image, row, gradient, row_stride(up), band.gradient);
    }
  }
  if constexpr (order != Order::loss) copy_row(up, cells.finish_row(), band.tail);
  if constexpr (order != Order::second) *band.loss = cells.loss();
}

}  // namespace

template <class A>
int64_t cross_entropy_scratch(const Upsampling<A>& up) {
  const CrossEntropy<A> task{up, 0, nullptr, A{1}, A{1}};
  return Cells<A, Order::second>(task, nullptr).scratch_bytes();
}

template <class L>
int64_t count_labels(const L* labels, int64_t count, int64_t num_classes, int64_t ignore_index,
                     int64_t* counts) {
  // A label that is a class as it lies, that is, compared without widening.
  const auto last = static_cast<uint64_t>(num_classes - 1);
  const uint64_t greatest = std::numeric_limits<std::make_unsigned_t<L>>::max();
  const auto limit = static_cast<std::make_unsigned_t<L>>(last < greatest ? last : greatest);
  const bool possible = static_cast<int64_t>(static_cast<L>(ignore_index)) == ignore_index;
  const auto counted = [&](L label) {
    return (static_cast<std::make_unsigned_t<L>>(label) <= limit) &
           !((label == static_cast<L>(ignore_index)) & possible);
  };
  if (counts != nullptr) {
    int64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (!counted(labels[i])) continue;
      ++counts[labels[i]];
      ++sum;
    }
    return sum;
  }
  int64_t sum = 0;
  // Short runs, whose counts fit the labels' own type.
  constexpr int64_t run = 192;
  for (int64_t begin = 0; begin < count; begin += run) {
    const int64_t end = begin + run < count ? begin + run : count;
    std::make_unsigned_t<L> part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += counted(labels[i]);
    sum += static_cast<int64_t>(part);
  }
  return sum;
}

template <class A, class T, class L>
void cross_entropy_band(const CrossEntropy<A>& task, const T* logits, const L* target,
                        int64_t image, int64_t first, int64_t last,
                        const CrossEntropyBand<A, A>& band, void* scratch) {
  constexpr const T* none = nullptr;
  if (band.gradient == nullptr) {
    run_band<Order::loss>(task, logits, none, target, image, first, last, band, scratch);
  } else {
    run_band<Order::first>(task, logits, none, target, image, first, last, band, scratch);
  }
}

template <class A, class T, class L>
void cross_entropy_second_band(const CrossEntropy<A>& task, const T* logits, const T* tangent,
                               const L* target, int64_t image, int64_t first, int64_t last,
                               const CrossEntropyBand<A, T>& band, void* scratch) {
  run_band<Order::second>(task, logits, tangent, target, image, first, last, band, scratch);
}

template <class A, class G>
void cross_entropy_join(const Upsampling<A>& up, int64_t image, int64_t row, const A* above,
                        const A* below, G* gradient, void* scratch) {
  const int64_t count = up.channels * up.width;
  A* sum = static_cast<A*>(scratch);
  for (int64_t i = 0; i < count; ++i) sum[i] = above == nullptr ? below[i] : above[i] + below[i];
  write_row(up, image, row, sum, up.width, gradient);
}

template <class A, class T>
void convert(const T* from, A* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_acc<A>(from[i]);
}

template <class A, class T>
void scale_to(const A* from, A factor, T* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) store<A>(to + i, load<A>(from + i) * factor);
  for (; i < count; ++i) to[i] = from_acc<T>(from[i] * factor);
}

template <class A, class T>
double dot(const A* a, const T* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += static_cast<double>(a[i]) * static_cast<double>(to_acc<A>(b[i]));
  }
  return sum;
}

#define PINMEM_FOR_LABELS(A, T, L)                                                               \
  template void cross_entropy_band(const CrossEntropy<A>&, const T*, const L*, int64_t, int64_t, \
                                   int64_t, const CrossEntropyBand<A, A>&, void*);               \
  template void cross_entropy_second_band(const CrossEntropy<A>&, const T*, const T*, const L*,  \
                                          int64_t, int64_t, int64_t,                             \
                                          const CrossEntropyBand<A, T>&, void*);
#define PINMEM_FOR_MAPS(A, T)                                                                      \
  PINMEM_FOR_LABELS(A, T, uint8_t)                                                                 \
  PINMEM_FOR_LABELS(A, T, int64_t)                                                                 \
  template void cross_entropy_join(const Upsampling<A>&, int64_t, int64_t, const A*, const A*, T*, \
                                   void*);                                                         \
  template void scale_to(const A*, A, T*, int64_t);                                                \
  template double dot(const A*, const T*, int64_t);

PINMEM_FOR_MAPS(double, double)
PINMEM_FOR_MAPS(float, float)
PINMEM_FOR_MAPS(float, bfloat16)
template void convert(const double*, double*, int64_t);
template void convert(const float*, double*, int64_t);
template void convert(const float*, float*, int64_t);
template void convert(const bfloat16*, float*, int64_t);
template int64_t cross_entropy_scratch(const Upsampling<double>&);
template int64_t cross_entropy_scratch(const Upsampling<float>&);
template int64_t count_labels(const uint8_t*, int64_t, int64_t, int64_t, int64_t*);
template int64_t count_labels(const int64_t*, int64_t, int64_t, int64_t, int64_t*);

}  // namespace pinmem::PINMEM_ISA
