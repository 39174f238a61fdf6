// Glue of memory_read and memory_read_project: tensors as what the passes read, and how the work is
// cut into blocks, by the shape alone.
#pragma once

#include "features_glue.h"
#include "memory_read_passes.h"

namespace pinmem {

/// Checks the arguments that every pass begins with; returns where the query lies.
inline Map check_read(const Tensor& query, const Tensor& memory, const MaybeTensor& gumbel) {
  const Map map = map_of("query", query);
  STD_TORCH_CHECK(memory.dim() == 2 && memory.size(0) > 0 && memory.size(1) == map.channels,
                  "memory: expected [K >= 1, ", map.channels, "]");
  STD_TORCH_CHECK(memory.size(0) <= 256, "memory: expected at most 256 slots on a GPU, got ",
                  memory.size(0));
  check_contiguous("memory", memory);
  if (gumbel) check_map("gumbel", *gumbel, map, memory.size(0));
  return map;
}

/// Part `part` of the `parts` equal ones that the channels of a map consist of.
template <class T, class P>
MapPart<P> part_of(const Runs& runs, P* data, int64_t channels, int parts, int part) {
  const int64_t each = channels / parts;
  return {data, static_cast<int>(channels), static_cast<int>(part * each),
          vectors_fit<T>(runs, each) && aligned16(data)};
}
template <class T>
MapPart<const T> input_part(const Runs& runs, const MaybeTensor& map, int parts = 1, int part = 0) {
  if (!map) return {};
  return part_of<T, const T>(runs, read<T>(*map), map->size(1), parts, part);
}
template <class T>
MapPart<T> output_part(const Runs& runs, const Tensor& map, int parts = 1, int part = 0) {
  return part_of<T, T>(runs, write<T>(map), map.size(1), parts, part);
}

/// Columns from `first` on of a contiguous matrix of a map of T: of its type or float32.
template <class T>
Matrix matrix_of(const char* name, const Tensor& matrix, int64_t first = 0) {
  check_contiguous(name, matrix);
  STD_TORCH_CHECK(
      matrix.scalar_type() == scalar_type<T>() || matrix.scalar_type() == ScalarType::Float, name,
      ": expected the type of the map or float32");
  const Element type = element_of(name, matrix);
  const auto* data = static_cast<const unsigned char*>(matrix.const_data_ptr()) +
                     first * (type == Element::f64   ? 8
                              : type == Element::f32 ? 4
                                                     : 2);
  const int64_t stride = matrix.size(1);
  return {data, type, stride,
          matrix.scalar_type() == scalar_type<T>() && stride % Vector16<T>::size == 0 &&
              aligned16(data)};
}
template <class T>
Matrix matrix_of(const char* name, const MaybeTensor& matrix, int64_t first = 0) {
  return matrix ? matrix_of<T>(name, *matrix, first) : Matrix{};
}

/// A few hundred tiles, of 64 pixels where there are enough and what a block keeps fits.
template <class T>
void plan_read(Reading<T>& task, int rows) {
  constexpr int64_t kEnough = 264;
  ReadPlan& plan = task.plan;
  plan.padded_slots = round_up(task.slots, kDepthStep);
  plan.row_pitch = plan.padded_slots + 16 / static_cast<int>(sizeof(accumulator_t<T>));
  plan.stages = 2;
  const auto fits = [&] { return ReadBlock<T>::shared_bytes(plan, rows) <= Stream::kMostShared; };
  for (plan.pixels = kTileRows; plan.pixels > kLeastPixels<T>; plan.pixels /= 2) {
    if (fits() && (plan.pixels <= 16 || task.runs.tiles(plan.pixels) >= kEnough)) break;
  }
  if (!fits()) plan.stages = 1;
  plan.lanes = kReadThreads / plan.pixels;
  task.tiles = task.runs.tiles(plan.pixels);
}

/// `rows` of a pixel the pass keeps.
template <class T>
Reading<T> reading_of(const Map& map, const Tensor& query, const Tensor& memory,
                      const MaybeTensor& gumbel, int rows) {
  Reading<T> task{};
  task.runs = runs_of(map);
  task.channels = task.outputs = static_cast<int>(map.channels);
  task.slots = static_cast<int>(memory.size(0));
  task.query = input_part<T>(task.runs, query);
  task.gumbel = read<T>(gumbel);
  task.memory = task.values = matrix_of<T>("memory", memory);
  plan_read(task, rows);
  return task;
}

/// Blocks of the passes that sum over pixels: eight rounds of 132 multiprocessors at most.
inline int tiles_of_share(int64_t tiles, int64_t share_bytes) {
  int64_t most = (int64_t{64} << 20) / share_bytes;
  most = most < 1 ? 1 : most > 1056 ? 1056 : most;
  const int64_t each = ceil_div(tiles, most);
  return static_cast<int>(each < 1 ? 1 : each);
}

}  // namespace pinmem
