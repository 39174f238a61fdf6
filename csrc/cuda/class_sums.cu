// Per-class sums of normalised features under soft labels (docs/math.md 3).
//
// Bytes, for N pixels of C channels of e bytes: forward reads N C e and four labels a pixel, and
// writes and reads one partial sum [K,C] of 4 bytes an element for every tile of 128 bytes of
// pixels (at most 396); backward reads and writes N C e. Operations: 4 multiply-adds an element,
// far below the bytes. At N=18,432, C=256, bfloat16 the floor is 9.4 MB, 2.3 us at 4.1 TB/s; the
// launches cost as much. Launches: 2 forward, 1 backward, 3 second order.
#include <tuple>

#include "class_sums_block.h"
#include "class_sums_gradient.h"
#include "features_glue.h"

namespace pinmem {
namespace {

using namespace class_sums_op;

/// Next to tiles and sums lie the classes of the pixels and partial sums of their norms.
constexpr int64_t kMostTileBytes = Stream::kMostShared - (24 << 10);

template <class T>
int64_t tile_bytes(const Tiles<T>& tiles, int64_t maps) {
  return ceil_div(maps * tiles.elements() * static_cast<int64_t>(sizeof(T)), 16) * 16;
}

SoftLabels soft_labels(const Map& map, const Tensor& labels, int64_t num_classes,
                       int64_t ignore_index) {
  return {labels_of("labels", labels, map.batch, num_classes, ignore_index),
          {labels.size(1), map.height},
          {labels.size(2), map.width},
          map.pixels()};
}

/// Tiles of as many groups of pixels as leave room for `sum_bytes`, or for nothing else.
template <class T>
Tiles<T> tiles_of(const Map& map, int64_t maps, int64_t sum_bytes) {
  constexpr int kSize = Vector16<T>::size;
  Tiles<T> tiles{};
  tiles.runs = runs_of(map);
  tiles.channels = static_cast<int>(map.channels);
  tiles.aligned = vectors_fit<T>(tiles.runs, map.channels);
  for (tiles.groups = kMostGroups; tiles.groups > 0; tiles.groups /= 2) {
    // In NCHW an odd number of vectors, since threads read along the channels.
    tiles.pitch = kSize * (tiles.runs.channels_last ? tiles.vectors() : tiles.groups | 1);
    if (tile_bytes(tiles, maps) + (tiles.groups > 1 ? sum_bytes : 0) <= kMostTileBytes) break;
  }
  STD_TORCH_CHECK(tiles.groups > 0, "features: got ", map.channels,
                  " channels, more than a GPU's shared memory holds of ", kSize, " pixels");
  return tiles;
}

/// sums (and mass, in the forward pass) of the features, or of their normalisation's derivative
/// along a tangent.
template <class T>
void run_sums(const Stream& stream, const Map& map, const SoftLabels& soft, int64_t num_classes,
              const T* features, const T* tangent, const Tensor& sums, const Tensor* mass) {
  using A = accumulator_t<T>;
  const int64_t maps = tangent == nullptr ? 1 : 2;
  const int64_t size = num_classes * (map.channels + 1);
  const int64_t sum_bytes = size * static_cast<int64_t>(sizeof(A));
  Sums<T> task{};
  // Sums that leave room for a tile.
  task.shared_sums = sum_bytes <= kMostTileBytes / 2;
  task.tiles = tiles_of<T>(map, maps, task.shared_sums ? sum_bytes : 0);
  task.tiles.aligned = task.tiles.aligned && aligned16(features) && aligned16(tangent);
  task.soft = soft;
  task.num_classes = static_cast<int>(num_classes);
  task.features = features;
  task.tangent = tangent;
  const TileSplit split = split_tiles(task.tiles.count(), size);
  task.tiles_each = split.tiles_each;
  task.shared_sums = task.shared_sums && tile_bytes(task.tiles, maps) + sum_bytes <= kMostTileBytes;

  Scratch scratch;
  const int64_t partials = scratch.take<A>(split.count * size);
  scratch.allocate(sums);
  task.partials = scratch.at<A>(partials);
  stream.launch(tangent == nullptr ? class_sums_block<T, false> : class_sums_block<T, true>,
                split.count, kThreads,
                tile_bytes(task.tiles, maps) + (task.shared_sums ? sum_bytes : 0), task);

  PartialSums<A> total{};
  total.partials = task.partials;
  total.count = split.count;
  total.stride = size;
  total.split = num_classes * map.channels;
  total.size = total.split + (mass == nullptr ? 0 : num_classes);
  total.first = write<A>(sums);
  total.second = mass == nullptr ? nullptr : write<A>(*mass);
  total.first_type = total.second_type = sizeof(A) == 8 ? Element::f64 : Element::f32;
  stream.launch(add_partials<A>, total.blocks(), kSumThreads, 0, total);
}

template <class T>
void run_gradient(const Stream& stream, const Map& map, const SoftLabels& soft, const T* features,
                  const T* tangent, const Tensor& grad_sums, const Tensor& gradient) {
  const int64_t maps = tangent == nullptr ? 1 : 2;
  Gradient<T> task{};
  task.tiles = tiles_of<T>(map, maps, 0);
  task.soft = soft;
  task.features = features;
  task.tangent = tangent;
  task.grad_sums = read<accumulator_t<T>>(grad_sums);
  task.gradient = write<T>(gradient);
  task.tiles.aligned = task.tiles.aligned && aligned16(features) && aligned16(tangent) &&
                       aligned16(task.grad_sums) && aligned16(task.gradient);
  const bool last = task.tiles.runs.channels_last;
  const auto kernel =
      tangent == nullptr
          ? (last ? class_sums_gradient<T, false, true> : class_sums_gradient<T, false, false>)
          : (last ? class_sums_gradient<T, true, true> : class_sums_gradient<T, true, false>);
  stream.launch(kernel, task.tiles.count(), kThreads, last ? 0 : tile_bytes(task.tiles, maps),
                task);
}

void check_sums(const char* name, const Tensor& sums, int64_t num_classes, const Map& map) {
  check_contiguous(name, sums);
  STD_TORCH_CHECK(sums.dim() == 2 && sums.size(0) == num_classes && sums.size(1) == map.channels,
                  name, ": expected [", num_classes, ",", map.channels, "]");
}

std::tuple<Tensor, Tensor> class_sums(Tensor features, Tensor labels, int64_t num_classes,
                                      int64_t ignore_index) {
  const Map map = map_of("features", features);
  const SoftLabels soft = soft_labels(map, labels, num_classes, ignore_index);
  const Stream stream(features);
  return dispatch_elements("features", features, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = typename decltype(type)::type;
    constexpr ScalarType kSum = scalar_type<accumulator_t<T>>();
    const Tensor sums = empty_beside(features, {num_classes, map.channels}, kSum);
    const Tensor mass = empty_beside(features, {num_classes}, kSum);
    run_sums<T>(stream, map, soft, num_classes, read<T>(features), nullptr, sums, &mass);
    return {sums, mass};
  });
}

Tensor class_sums_backward(Tensor grad_sums, Tensor features, Tensor labels, int64_t num_classes,
                           int64_t ignore_index) {
  const Map map = map_of("features", features);
  const SoftLabels soft = soft_labels(map, labels, num_classes, ignore_index);
  check_sums("grad_sums", grad_sums, num_classes, map);
  const Stream stream(features);
  const Tensor gradient = empty_map_beside(features, map, map.channels, features.scalar_type());
  dispatch_elements("features", features, [&](auto type) {
    using T = typename decltype(type)::type;
    run_gradient<T>(stream, map, soft, read<T>(features), nullptr, grad_sums, gradient);
  });
  return gradient;
}

std::tuple<Tensor, Tensor> class_sums_double_backward(Tensor features_tangent, Tensor grad_sums,
                                                      Tensor features, Tensor labels,
                                                      int64_t num_classes, int64_t ignore_index) {
  const Map map = map_of("features", features);
  const SoftLabels soft = soft_labels(map, labels, num_classes, ignore_index);
  check_sums("grad_sums", grad_sums, num_classes, map);
  check_map("features_tangent", features_tangent, map, map.channels);
  const Stream stream(features);
  const Tensor sums_dot =
      empty_beside(features, {num_classes, map.channels}, grad_sums.scalar_type());
  const Tensor gradient = empty_map_beside(features, map, map.channels, features.scalar_type());
  dispatch_elements("features", features, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* x = read<T>(features);
    const T* v = read<T>(features_tangent);
    run_sums<T>(stream, map, soft, num_classes, x, v, sums_dot, nullptr);
    run_gradient<T>(stream, map, soft, x, v, grad_sums, gradient);
  });
  return {sums_dot, gradient};
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cuda, PINMEM_CUDA_KEY, m) {
  m.impl("class_sums", TORCH_BOX(&pinmem::class_sums));
  m.impl("class_sums_backward", TORCH_BOX(&pinmem::class_sums_backward));
  m.impl("class_sums_double_backward", TORCH_BOX(&pinmem::class_sums_double_backward));
}
