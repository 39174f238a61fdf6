#pragma once

#include "dtypes.h"
#include "isa.h"
#include "simd/bilinear.h"

namespace pinmem {

/// One call of upsampled_cross_entropy or of its second derivative, A the accumulation type.
template <class A>
struct CrossEntropy {
  Upsampling<A> up;
  int64_t ignore_index;
  /// [K], or null for ones.
  const A* class_weight;
  A temperature;
  /// What multiplies the gradient.
  A scale;
};

/// What a band leaves of the loss and the gradient. Each of its source rows is written to
/// `gradient` but the first, which the band above reaches too: the band's share of it goes to
/// `head` [K,w], and its share of the row after its last to `tail` [K,w].
template <class A, class G>
struct CrossEntropyBand {
  double* loss;
  G* gradient;
  A* head;
  A* tail;
};

// clang-format off
// Bytes of scratch memory a call of one of the kernels below needs.
PINMEM_KERNEL(template <class A> int64_t cross_entropy_scratch(const Upsampling<A>& up))

// How many labels of `count` are classes; where `counts` [K] is given, how many of each (added).
PINMEM_KERNEL(template <class L> int64_t count_labels(
    const L* labels, int64_t count, int64_t num_classes, int64_t ignore_index, int64_t* counts))

// The cells of source rows [first, last) of image `image`: adds up w (logsumexp(z) - z_t) and,
// where band.gradient is given, scale U^T[w (softmax(z) - onehot)].
PINMEM_KERNEL(template <class A, class T, class L> void cross_entropy_band(
    const CrossEntropy<A>& task, const T* logits, const L* target, int64_t image, int64_t first,
    int64_t last, const CrossEntropyBand<A, A>& band, void* scratch))

// The same for scale U^T[w p (u - p.u)], u = U(tangent).
PINMEM_KERNEL(template <class A, class T, class L> void cross_entropy_second_band(
    const CrossEntropy<A>& task, const T* logits, const T* tangent, const L* target,
    int64_t image, int64_t first, int64_t last, const CrossEntropyBand<A, T>& band, void* scratch))

// Writes source row `row` of `gradient`: the sum of two shares, `above` may be null.
PINMEM_KERNEL(template <class A, class G> void cross_entropy_join(
    const Upsampling<A>& up, int64_t image, int64_t row, const A* above, const A* below,
    G* gradient, void* scratch))

// to = from.
PINMEM_KERNEL(template <class A, class T> void convert(const T* from, A* to, int64_t count))

// to = from * factor.
PINMEM_KERNEL(template <class A, class T> void scale_to(
    const A* from, A factor, T* to, int64_t count))

// The sum of a * b.
PINMEM_KERNEL(template <class A, class T> double dot(const A* a, const T* b, int64_t count))
// clang-format on

}  // namespace pinmem
