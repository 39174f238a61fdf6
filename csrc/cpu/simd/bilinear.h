// Bilinear upsampling without the upsampled map: how the label-size kernels walk it.
//
// The output pixels that fall between the same two source rows and columns form a cell; inside a
// cell the upsampled map is bilinear in the cell's four corners. A vector holds one output pixel of
// each of kLanes neighbouring cells of a row: corners are then plain loads, nothing is gathered
// or shuffled, and gradients add up lane by lane.
#pragma once

#include <cstdint>

#include "isa.h"

namespace pinmem {

/// A map [B,K,h,w] upsampled to H x W (align_corners=True), with the tables of ../bilinear.h.
template <class A>
struct Upsampling {
  int64_t channels, height, width, out_height, out_width;
  bool channels_last;
  /// Output rows row_begin[i] to row_begin[i + 1] lie row_fraction[Y] of the way from source row i
  /// to the next.
  const int32_t* row_begin;
  const A* row_fraction;
  /// Vectors group_begin[g] to group_begin[g + 1] belong to the cells from g * lanes on. Lane l of
  /// vector v is output column column[v * lanes + l]; out_width where that cell has no more.
  int64_t groups;
  const int32_t* group_begin;
  const int32_t* column;
  const A* column_fraction;
};

/// The number of cells in a vector.
PINMEM_KERNEL(template <class A> int64_t vector_lanes())

}  // namespace pinmem

#ifdef PINMEM_ISA

#include "simd/scratch.h"
#include "simd/transpose.h"
#include "simd/vec.h"

namespace pinmem::PINMEM_ISA {

/// The distance between two channels of a source row in the kernels' scratch: whole vectors, and
/// one more for the neighbour of the last cell.
template <class A>
PINMEM_INLINE int64_t row_stride(const Upsampling<A>& up) {
  return (up.groups + 1) * kLanes<A>;
}

/// Source row `row` of one image as [K][row_stride], the last column repeated to the end. A row
/// behind the last is the last.
template <class A, class T>
inline void load_row(const Upsampling<A>& up, const T* image, int64_t row, A* to) {
  const int64_t stride = row_stride(up);
  const int64_t pixels = up.height * up.width;
  if (row >= up.height) row = up.height - 1;
  if (up.channels_last) {
    transpose<A>(image + row * up.width * up.channels, up.channels, up.width, up.channels, to,
                 stride);
  }
  for (int64_t k = 0; k < up.channels; ++k, to += stride) {
    if (!up.channels_last) {
      const T* from = image + k * pixels + row * up.width;
      int64_t x = 0;
      for (; x + kLanes<A> <= up.width; x += kLanes<A>) store<A>(to + x, load<A>(from + x));
      for (; x < up.width; ++x) to[x] = to_acc<A>(from[x]);
    }
    for (int64_t x = up.width; x < stride; ++x) to[x] = to[up.width - 1];
  }
}

/// Writes [K][stride] to row `row` of image `image` of a map [B,K,h,w].
template <class A, class T>
inline void write_row(const Upsampling<A>& up, int64_t image, int64_t row, const A* from,
                      int64_t stride, T* map) {
  const int64_t pixels = up.height * up.width;
  if (up.channels_last) {
    transpose<A>(from, stride, up.channels, up.width,
                 map + (image * pixels + row * up.width) * up.channels, up.channels);
    return;
  }
  for (int64_t k = 0; k < up.channels; ++k, from += stride) {
    T* to = map + (image * up.channels + k) * pixels + row * up.width;
    int64_t x = 0;
    for (; x + kLanes<A> <= up.width; x += kLanes<A>) store<A>(to + x, load<A>(from + x));
    for (; x < up.width; ++x) to[x] = from_acc<T>(from[x]);
  }
}

/// Labels of one output row, `channels` for those that do not count and behind the end.
template <class A, class L>
inline void load_labels(const Upsampling<A>& up, const L* from, int64_t ignore_index, int32_t* to) {
  const auto last = static_cast<uint64_t>(up.channels - 1);
  const auto none = static_cast<int32_t>(up.channels);
  if constexpr (sizeof(L) == 1) {
    const auto last_byte = static_cast<uint8_t>(last > 255 ? 255 : last);
    const bool possible = ignore_index >= 0 && ignore_index <= 255;
    // A label that does not exist stands in for an ignore_index that no label can be.
    const int32_t ignored = possible ? static_cast<int32_t>(ignore_index) : -1;
    for (int64_t x = 0; x < up.out_width; ++x) {
      const int32_t label = from[x];
      to[x] = (label > last_byte) | (label == ignored) ? none : label;
    }
  } else {
    for (int64_t x = 0; x < up.out_width; ++x) {
      const int64_t label = from[x];
      const bool wrong = (static_cast<uint64_t>(label) > last) | (label == ignore_index);
      to[x] = wrong ? none : static_cast<int32_t>(label);
    }
  }
  to[up.out_width] = none;
}

/// The left and right ends of one output row in kLanes neighbouring cells, channel by channel:
/// the value at the left source column, and the step to the right one.
template <class A>
PINMEM_INLINE void load_ends(const A* upper, const A* lower, int64_t channels, int64_t stride,
                             A fraction, Vec<A>* ends) {
  for (int64_t k = 0; k < channels; ++k, upper += stride, lower += stride) {
    const Vec<A> above = load<A>(upper);
    const Vec<A> above_right = load<A>(upper + 1);
    const Vec<A> left = above + fraction * (load<A>(lower) - above);
    const Vec<A> right = above_right + fraction * (load<A>(lower + 1) - above_right);
    ends[2 * k] = left;
    ends[2 * k + 1] = right - left;
  }
}

}  // namespace pinmem::PINMEM_ISA

#endif
