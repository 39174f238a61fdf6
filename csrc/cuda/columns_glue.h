// Glue of the ops on upsampled logits: how the work is cut into blocks, by the shape alone.
#pragma once

#include <algorithm>

#include "columns.h"
#include "tensor.h"

namespace pinmem {

inline Logits logits_of(const Map& map, const Tensor& logits) {
  const int64_t c = map.channels, w = map.width, pixels = map.pixels();
  const Element type = element_of("logits", logits);
  const void* data = logits.const_data_ptr();
  if (map.channels_last) return {data, type, c * pixels, 1, w * c, c};
  return {data, type, c * pixels, pixels, w, 1};
}

/// The classes a lane holds: few choices, since each is a large kernel.
template <class A>
int classes_a_lane(int64_t num_classes) {
  return sizeof(A) == 8 || num_classes <= 8 ? 8 : 19;
}

inline void check_groups(const Grid& grid) {
  STD_TORCH_CHECK(grid.groups <= kWarp, "logits: expected at most ", kWarp * grid.classes_a_lane,
                  " classes on a GPU, got ", grid.num_classes);
}

/// Cuts [B,K,h,w] -> [B,K,H,W] into blocks, by the shape alone.
inline Grid make_grid(int64_t batch, int64_t num_classes, Axis rows, Axis columns,
                      int classes_a_lane, bool channels_last) {
  Grid grid{};
  grid.batch = batch;
  grid.num_classes = static_cast<int>(num_classes);
  grid.classes_a_lane = classes_a_lane;
  grid.channels_last = channels_last;
  grid.groups = 1;
  grid.columns_log2 = 5;
  for (; grid.groups * classes_a_lane < num_classes; grid.groups *= 2) --grid.columns_log2;
  // Long bands share fewer rows; short ones make enough blocks of a small batch.
  const int64_t pixels = batch * rows.out * columns.out * grid.groups;
  int64_t height = pixels / (1024 * kColumnThreads);
  height = height < 4 ? 4 : height > 32 ? 32 : height;
  grid.bands = cut(rows, height);
  const Pieces& bands = grid.bands;
  for (int64_t band = 0; band < bands.count; ++band) {
    const auto count = static_cast<int>(bands.begin(band + 1) - bands.begin(band));
    grid.most_rows = std::max(grid.most_rows, count);
  }
  // Where columns are skipped, a strip is narrower, so that what it reads stays small.
  int64_t width = grid.columns();
  if (!columns.flat() && columns.in > columns.out) {
    width = width * (columns.out - 1) / (columns.in - 1);
    width = width < 1 ? 1 : width;
  }
  grid.strips = cut_anywhere(columns, width);
  const auto source = [&](int64_t part) { return part * (columns.in - 1) / (columns.out - 1); };
  grid.most_staged = static_cast<int>(columns.flat() ? 2 : source(width - 1) + 3);
  grid.most_emitted = static_cast<int>(columns.flat() ? columns.in + 2 : source(width) + 3);
  const int staged = grid.most_staged, classes = grid.num_classes;
  grid.staging = channels_last ? Extents{staged, classes} : Extents{classes, staged};
  return grid;
}

}  // namespace pinmem
