// Geometry of bilinear resizing with align_corners=True, in exact integers. For glue only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "simd/bilinear.h"
#include "tensor.h"

namespace pinmem {

/// Where a pixel of the resized map falls: `fraction` of the way from source pixel `index` to the
/// next.
struct Source {
  int64_t index;
  double fraction;
};

inline Source source_of(int64_t i, int64_t out, int64_t in) {
  if (out <= 1 || in <= 1) return {0, 0.0};
  const int64_t position = i * (in - 1);
  return {position / (out - 1),
          static_cast<double>(position % (out - 1)) / static_cast<double>(out - 1)};
}

/// The first of `out` pixels whose source index is at least `index`.
inline int64_t first_output_of(int64_t index, int64_t out, int64_t in) {
  if (index == 0) return 0;
  if (index >= in || out <= 1) return out;
  return (index * (out - 1) + in - 2) / (in - 1);
}

/// Labels [B,H,W] for a map.
inline void check_target(const char* name, const Tensor& target, const Map& map) {
  STD_TORCH_CHECK(
      target.dim() == 3 && target.size(0) == map.batch && target.size(1) > 0 && target.size(2) > 0,
      name, ": expected [", map.batch, ",H,W]");
  check_contiguous(name, target);
}

/// The tables behind an Upsampling<A>, for vectors of `lanes` cells.
template <class A>
class UpsamplingTables {
 public:
  UpsamplingTables(int64_t height, int64_t width, int64_t out_height, int64_t out_width,
                   int64_t lanes) {
    for (int64_t i = 0; i <= height; ++i) {
      row_begin_.push_back(static_cast<int32_t>(first_output_of(i, out_height, height)));
    }
    for (int64_t y = 0; y < out_height; ++y) {
      row_fraction_.push_back(static_cast<A>(source_of(y, out_height, height).fraction));
    }
    group_begin_.push_back(0);
    for (int64_t cell = 0; cell < width; cell += lanes) {
      add_group(cell, std::min(cell + lanes, width), lanes, width, out_width);
      group_begin_.push_back(static_cast<int32_t>(column_.size() / static_cast<size_t>(lanes)));
    }
  }

  Upsampling<A> of(int64_t channels, int64_t height, int64_t width, int64_t out_height,
                   int64_t out_width, bool channels_last) const {
    return {channels,
            height,
            width,
            out_height,
            out_width,
            channels_last,
            row_begin_.data(),
            row_fraction_.data(),
            static_cast<int64_t>(group_begin_.size()) - 1,
            group_begin_.data(),
            column_.data(),
            column_fraction_.data()};
  }

 private:
  void add_group(int64_t cell, int64_t end, int64_t lanes, int64_t in, int64_t out) {
    const auto first = [&](int64_t c) { return first_output_of(c, out, in); };
    int64_t longest = 0;
    for (int64_t c = cell; c < end; ++c) longest = std::max(longest, first(c + 1) - first(c));
    for (int64_t offset = 0; offset < longest; ++offset) {
      for (int64_t c = cell; c < cell + lanes; ++c) {
        const int64_t x = c < end ? first(c) + offset : out;
        const bool inside = c < end && x < first(c + 1);
        column_.push_back(static_cast<int32_t>(inside ? x : out));
        column_fraction_.push_back(static_cast<A>(inside ? source_of(x, out, in).fraction : 0.0));
      }
    }
  }

  std::vector<int32_t> row_begin_, group_begin_, column_;
  std::vector<A> row_fraction_, column_fraction_;
};

/// Images are worked on in bands of source rows, whose number depends on the shape alone: enough
/// for many threads, few enough that the rows shared by two bands cost little.
inline int64_t rows_per_band(int64_t height) { return (height + 31) / 32; }

}  // namespace pinmem
