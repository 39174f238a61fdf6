// The confusion matrix of upsampled logits (docs/math.md 5), band by band.
#include "simd/upsampled_confusion.h"

#include "simd/bilinear.h"
#include "simd/vec.h"

namespace pinmem::PINMEM_ISA {
namespace {

// The scratch memory of a band.
template <class A>
struct Rows {
  A *upper, *lower;
  Vec<A>* ends;
  int32_t* labels;
  char* end;
};

template <class A>
Rows<A> rows_in(const Upsampling<A>& up, void* scratch) {
  Scratch memory{static_cast<char*>(scratch)};
  Rows<A> rows{};
  rows.upper = memory.take<A>(up.channels * row_stride(up));
  rows.lower = memory.take<A>(up.channels * row_stride(up));
  rows.ends = memory.take<Vec<A>>(2 * up.channels);
  rows.labels = memory.take<int32_t>(up.out_width + 1);
  rows.end = memory.next;
  return rows;
}

// Counts N vectors of output pixels; several at a time, since one alone is a chain of dependent
// instructions.
template <int N, class A>
PINMEM_INLINE void count_vectors(const Upsampling<A>& up, const Rows<A>& rows, int64_t vector,
                                 int64_t* counts) {
  using Int = IntOf<A>;
  constexpr int64_t lanes = kLanes<A>;
  Vec<A> x[N], largest[N];
  Vec<Int> winner[N];
  for (int n = 0; n < N; ++n) {
    x[n] = load<A>(up.column_fraction + (vector + n) * lanes);
    largest[n] = rows.ends[0] + x[n] * rows.ends[1];
    winner[n] = Vec<Int>{};
  }
  for (int64_t k = 1; k < up.channels; ++k) {
    for (int n = 0; n < N; ++n) {
      const Vec<A> z = rows.ends[2 * k] + x[n] * rows.ends[2 * k + 1];
      const auto more = z > largest[n];
      largest[n] = more ? z : largest[n];
      winner[n] = more ? splat<Int>(static_cast<Int>(k)) : winner[n];
    }
  }
  for (int n = 0; n < N; ++n) {
    Int winners[lanes];
    store<Int>(winners, winner[n]);
    const int32_t* columns = up.column + (vector + n) * lanes;
    for (int64_t l = 0; l < lanes; ++l) {
      ++counts[rows.labels[columns[l]] * up.channels + winners[l]];
    }
  }
}

}  // namespace

template <class A>
int64_t confusion_scratch(const Upsampling<A>& up) {
  return rows_in(up, nullptr).end - static_cast<char*>(nullptr);
}

template <class A, class T, class L>
void confusion_band(const Upsampling<A>& up, const T* logits, const L* target, int64_t ignore_index,
                    int64_t image, int64_t first, int64_t last, int64_t* counts, void* scratch) {
  Rows<A> rows = rows_in(up, scratch);
  logits += image * up.channels * up.height * up.width;
  target += image * up.out_height * up.out_width;
  load_row(up, logits, first, rows.lower);
  for (int64_t row = first; row < last; ++row) {
    A* const upper = rows.lower;
    rows.lower = rows.upper;
    rows.upper = upper;
    load_row(up, logits, row + 1, rows.lower);
    for (int64_t y = up.row_begin[row]; y < up.row_begin[row + 1]; ++y) {
      load_labels(up, target + y * up.out_width, ignore_index, rows.labels);
      for (int64_t group = 0; group < up.groups; ++group) {
        const int64_t at = group * kLanes<A>;
        load_ends(rows.upper + at, rows.lower + at, up.channels, row_stride(up), up.row_fraction[y],
                  rows.ends);
        int64_t vector = up.group_begin[group];
        const int64_t end = up.group_begin[group + 1];
        for (; vector + 4 <= end; vector += 4) count_vectors<4>(up, rows, vector, counts);
        for (; vector < end; ++vector) count_vectors<1>(up, rows, vector, counts);
      }
    }
  }
}

#define PINMEM_FOR_LABELS(A, T, L)                                                         \
  template void confusion_band(const Upsampling<A>&, const T*, const L*, int64_t, int64_t, \
                               int64_t, int64_t, int64_t*, void*);
#define PINMEM_FOR_MAPS(A, T)      \
  PINMEM_FOR_LABELS(A, T, uint8_t) \
  PINMEM_FOR_LABELS(A, T, int64_t)

PINMEM_FOR_MAPS(double, double)
PINMEM_FOR_MAPS(float, float)
PINMEM_FOR_MAPS(float, bfloat16)
template int64_t confusion_scratch(const Upsampling<double>&);
template int64_t confusion_scratch(const Upsampling<float>&);

}  // namespace pinmem::PINMEM_ISA
