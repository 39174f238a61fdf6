#pragma once

#include "dtypes.h"
#include "isa.h"

namespace pinmem {

/// Feature maps [B,C,h,w] and the labels [B,H,W] that their pixels read (align_corners=True).
template <class A>
struct SoftLabels {
  int64_t batch, channels, height, width, label_height, label_width;
  bool channels_last;
  int64_t num_classes, ignore_index;
  /// The length that rows of channels are padded to, with zeros: whole vectors.
  int64_t stride;
  /// [h] and [w]: the label above (left of) a pixel, and how far the pixel lies to the next.
  const int32_t* row;
  const A* row_fraction;
  const int32_t* column;
  const A* column_fraction;
};

// In these kernels the pixels of all images are numbered through.
// clang-format off
// Bytes of scratch memory a call needs.
PINMEM_KERNEL(template <class A> int64_t class_sums_scratch(const SoftLabels<A>& task))

// Sets sums [K, stride] and mass [K] to those of the pixels [begin, end).
PINMEM_KERNEL(template <class A, class T, class L> void class_sums_chunk(
    const SoftLabels<A>& task, const T* features, const L* labels, int64_t begin, int64_t end,
    A* sums, double* mass, void* scratch))

// The gradient with respect to the features of pixels [begin, end), grad_sums [K, stride].
PINMEM_KERNEL(template <class A, class T, class L> void class_sums_backward_chunk(
    const SoftLabels<A>& task, const A* grad_sums, const T* features, const L* labels,
    int64_t begin, int64_t end, T* grad_features, void* scratch))

// Its derivative along features_tangent: sets sums_dot [K, stride] to the pixels' part.
PINMEM_KERNEL(template <class A, class T, class L> void class_sums_double_backward_chunk(
    const SoftLabels<A>& task, const T* features_tangent, const A* grad_sums, const T* features,
    const L* labels, int64_t begin, int64_t end, A* sums_dot, T* grad_features, void* scratch))
// clang-format on

}  // namespace pinmem
