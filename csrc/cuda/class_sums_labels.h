// The soft labels of class_sums: bilinear weights of the four labels around a pixel. The one-hot
// labels are never formed: a pixel has at most four classes, mostly one.
#pragma once

#include "upsampling.h"

namespace pinmem {
namespace class_sums_op {

inline constexpr int kThreads = 256;
inline constexpr int kTilePixels = 32;

/// The classes of a pixel and their weights, equal ones joined; class -1 where there are fewer.
template <class A>
struct SoftLabel {
  int label[4];
  A weight[4];
};

struct SoftLabels {
  Labels labels;
  Axis rows, columns;  // from the labels to the features
  int64_t image_pixels;

  /// Of pixel `pixel` of run `image`.
  template <class A>
  __device__ SoftLabel<A> load(int64_t image, int64_t pixel) const {
    const int64_t at = image * image_pixels + pixel;  // a run may hold several images
    const int64_t batch = divide(at, image_pixels);
    const int64_t in_image = at - batch * image_pixels;
    const int64_t i = divide(in_image, columns.out), j = in_image - i * columns.out;
    const int64_t y = rows.cell_of(i), x = columns.cell_of(j);
    const A ly = rows.fraction<A>(i, y), lx = columns.fraction<A>(j, x);
    const int64_t y_next = y + 1 < rows.in ? y + 1 : y, x_next = x + 1 < columns.in ? x + 1 : x;
    const int64_t above = (batch * rows.in + y) * columns.in;
    const int64_t below = (batch * rows.in + y_next) * columns.in;
    SoftLabel<A> soft{{labels.load(above + x), labels.load(above + x_next), labels.load(below + x),
                       labels.load(below + x_next)},
                      {(1 - ly) * (1 - lx), (1 - ly) * lx, ly * (1 - lx), ly * lx}};
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      if (soft.weight[a] == 0) soft.label[a] = -1;
#pragma unroll
      for (int b = 0; b < a; ++b) {
        if (soft.label[a] >= 0 && soft.label[a] == soft.label[b]) {
          soft.weight[b] += soft.weight[a];
          soft.label[a] = -1;
        }
      }
    }
    return soft;
  }
};

}  // namespace class_sums_op
}  // namespace pinmem
