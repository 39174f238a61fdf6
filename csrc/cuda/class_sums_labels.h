// The soft labels of class_sums: bilinear weights of the four labels around a pixel, and the
// classes of some neighbouring pixels, each with a weight per pixel.
//
// The one-hot labels are never formed: a pixel has at most four classes, mostly one, and so have
// its neighbours.
#pragma once

#include "upsampling.h"

namespace pinmem {
namespace class_sums_op {

/// One of the four labels around a pixel; class -1 where it has no weight or none.
template <class A>
struct Tap {
  int label;
  A weight;
};

struct SoftLabels {
  Labels labels;
  Axis rows, columns;  // from the labels to the features
  int64_t image_pixels;

  /// Tap 0 .. 3 of pixel `pixel` of run `image`.
  template <class A>
  __device__ __forceinline__ Tap<A> load(int64_t image, int64_t pixel, int tap) const {
    const int64_t at = image * image_pixels + pixel;  // a run may hold several images
    const int64_t batch = divide(at, image_pixels);
    const int64_t in_image = at - batch * image_pixels;
    const int64_t i = divide(in_image, columns.out), j = in_image - i * columns.out;
    int64_t y = rows.cell_of(i), x = columns.cell_of(j);
    const A ly = rows.fraction<A>(i, y), lx = columns.fraction<A>(j, x);
    const bool below = tap / 2 != 0, right = tap % 2 != 0;
    if (below && y + 1 < rows.in) ++y;
    if (right && x + 1 < columns.in) ++x;
    const A weight = (below ? ly : 1 - ly) * (right ? lx : 1 - lx);
    if (weight == 0) return {-1, 0};
    return {labels.load((batch * rows.in + y) * columns.in + x), weight};
  }
};

/// The classes of a group of kSize neighbouring pixels; a group of a warp's lanes has four taps a
/// pixel.
template <class A, int kSize, int kSlots, int kScales>
struct alignas(16) GroupClasses {
  A weight[kSlots][kScales][kSize];  // of a class in every pixel, times its scales
  int label[kSlots];
  A mass[kSlots];
  int count;
  bool more;  // more classes than slots: taps of these are left

  /// Called by a warp. Takes the taps of the classes it finds room for.
  __device__ __forceinline__ void gather(Tap<A>& tap, const A (&scale)[kScales]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    int found = 0;
    unsigned left = __ballot_sync(kAllLanes, tap.label >= 0);
    while (left != 0 && found < kSlots) {
      const int at_hand = __shfl_sync(kAllLanes, tap.label, __ffs(left) - 1);
      const bool mine = tap.label == at_hand;
      A sum = mine ? tap.weight : A(0);
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (lane % 4 == 0 && lane < 4 * kSize) {
#pragma unroll
        for (int i = 0; i < kScales; ++i) {
          weight[found][i][lane / 4] = sum == 0 ? A(0) : sum * scale[i];
        }
      }
      for (int offset = 4; offset < kWarp; offset *= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, offset);
      }
      if (lane == 0) {
        label[found] = at_hand;
        mass[found] = sum;
      }
      if (mine) tap.label = -1;
      left = __ballot_sync(kAllLanes, tap.label >= 0);
      ++found;
    }
    if (lane == 0) {
      count = found;
      more = left != 0;
    }
  }
};

}  // namespace class_sums_op
}  // namespace pinmem
