#include "simd/class_sums.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "bilinear.h"
#include "pixel_blocks.h"
#include "tensor.h"

namespace pinmem {
namespace {

// Blocks are whole numbers of kUnit pixels; where nothing is summed, of kBlock.
constexpr int64_t kUnit = 64;
constexpr int64_t kBlock = 4 * kUnit;

// What the passes share: the soft labels, and the pixels in blocks, whose sums are formed apart.
template <class A>
class Problem {
 public:
  Problem(const Tensor& features, const Tensor& labels, int64_t num_classes, int64_t ignore_index)
      : map_(map_of("features", features)), num_classes_(num_classes) {
    check_target("labels", labels, map_);
    STD_TORCH_CHECK(num_classes >= 1, "num_classes: got ", num_classes, ", expected at least 1");
    fill(map_.height, labels.size(1), row_, row_fraction_);
    fill(map_.width, labels.size(2), column_, column_fraction_);
    task_ = {map_.batch,         map_.channels,
             map_.height,        map_.width,
             labels.size(1),     labels.size(2),
             map_.channels_last, num_classes,
             ignore_index,       PINMEM_CALL(padded_columns<A>)(map_.channels),
             row_.data(),        row_fraction_.data(),
             column_.data(),     column_fraction_.data()};
  }

  const Map& map() const { return map_; }
  const SoftLabels<A>& task() const { return task_; }
  PixelSums<A> sums() const {
    const int64_t pixels = map_.batch * map_.pixels();
    return {num_blocks(pixels, kUnit), num_classes_, task_.stride, pixels * task_.stride};
  }

  // Calls body(index, first pixel, last pixel, scratch) for every `block` of pixels.
  template <class Body>
  void for_pixels(int64_t block, const Body& body) const {
    for_tiles(map_.batch * map_.pixels(), block, PINMEM_CALL(class_sums_scratch<A>)(task_), body);
  }

  Tensor total(const PixelSums<A>& sums) const {
    const Tensor total = empty({num_classes_, map_.channels}, scalar_type<A>());
    PINMEM_CALL(unpack_rows<A, A>)(columns_of(sums.total(), 0, map_.channels), write<A>(total),
                                   map_.channels);
    return total;
  }

  // The cotangents of sums, in rows of the kernels' stride.
  Rows<A> padded(const Tensor& grad_sums) const {
    STD_TORCH_CHECK(grad_sums.dim() == 2 && grad_sums.size(0) == num_classes_ &&
                        grad_sums.size(1) == map_.channels,
                    "grad_sums: expected [", num_classes_, ",", map_.channels, "]");
    check_contiguous("grad_sums", grad_sums);
    return Rows<A>(Matrix<A>{read<A>(grad_sums), num_classes_, map_.channels, map_.channels, 1});
  }

 private:
  static void fill(int64_t out, int64_t in, std::vector<int32_t>& index, std::vector<A>& fraction) {
    for (int64_t i = 0; i < out; ++i) {
      const Source source = source_of(i, out, in);
      index.push_back(static_cast<int32_t>(source.index));
      fraction.push_back(static_cast<A>(source.fraction));
    }
  }

  const Map map_;
  const int64_t num_classes_;
  std::vector<int32_t> row_, column_;
  std::vector<A> row_fraction_, column_fraction_;
  SoftLabels<A> task_;
};

template <class T, class L>
std::tuple<Tensor, Tensor> forward(const Tensor& features, const Tensor& labels,
                                   int64_t num_classes, int64_t ignore_index) {
  using A = accumulator_t<T>;
  const Problem<A> problem(features, labels, num_classes, ignore_index);
  const PixelSums<A> sums = problem.sums();
  const int64_t block = sums.tiles_per_block() * kUnit;
  const Map& map = problem.map();
  std::vector<double> masses(
      static_cast<size_t>(num_blocks(map.batch * map.pixels(), block) * num_classes));
  const T* from = read<T>(features);
  const L* targets = read<L>(labels);
  problem.for_pixels(block, [&](int64_t index, int64_t begin, int64_t end, void* scratch) {
    PINMEM_CALL(class_sums_chunk<A, T, L>)(problem.task(), from, targets, begin, end,
                                           sums.of_block(index),
                                           masses.data() + index * num_classes, scratch);
  });
  Tensor mass = empty({num_classes}, scalar_type<A>());
  for (int64_t k = 0; k < num_classes; ++k) {
    double sum = 0;
    for (size_t i = static_cast<size_t>(k); i < masses.size();
         i += static_cast<size_t>(num_classes)) {
      sum += masses[i];
    }
    write<A>(mass)[k] = static_cast<A>(sum);
  }
  return {problem.total(sums), mass};
}

template <class T, class L>
Tensor backward(const Tensor& grad_sums, const Tensor& features, const Tensor& labels,
                int64_t num_classes, int64_t ignore_index) {
  using A = accumulator_t<T>;
  const Problem<A> problem(features, labels, num_classes, ignore_index);
  Tensor grad_features = empty_map(problem.map(), problem.map().channels, scalar_type<T>());
  const Rows<A> cotangent = problem.padded(grad_sums);
  const T* from = read<T>(features);
  const L* targets = read<L>(labels);
  T* to = write<T>(grad_features);
  problem.for_pixels(kBlock, [&](int64_t, int64_t begin, int64_t end, void* scratch) {
    PINMEM_CALL(class_sums_backward_chunk<A, T, L>)(problem.task(), cotangent.data(), from, targets,
                                                    begin, end, to, scratch);
  });
  return grad_features;
}

template <class T, class L>
std::tuple<Tensor, Tensor> double_backward(const Tensor& features_tangent, const Tensor& grad_sums,
                                           const Tensor& features, const Tensor& labels,
                                           int64_t num_classes, int64_t ignore_index) {
  using A = accumulator_t<T>;
  const Problem<A> problem(features, labels, num_classes, ignore_index);
  check_map("features_tangent", features_tangent, problem.map(), problem.map().channels);
  Tensor grad_features = empty_map(problem.map(), problem.map().channels, scalar_type<T>());
  const Rows<A> cotangent = problem.padded(grad_sums);
  const PixelSums<A> sums = problem.sums();
  const int64_t block = sums.tiles_per_block() * kUnit;
  const T* from = read<T>(features);
  const T* tangent = read<T>(features_tangent);
  const L* targets = read<L>(labels);
  T* to = write<T>(grad_features);
  problem.for_pixels(block, [&](int64_t index, int64_t begin, int64_t end, void* scratch) {
    PINMEM_CALL(class_sums_double_backward_chunk<A, T, L>)(problem.task(), tangent,
                                                           cotangent.data(), from, targets, begin,
                                                           end, sums.of_block(index), to, scratch);
  });
  return {problem.total(sums), grad_features};
}

// Calls body(Type<T>{}, Type<L>{}).
template <class Body>
auto dispatch(const Tensor& features, const Tensor& labels, const Body& body) {
  return dispatch_floats("features", features, [&](auto map_type) {
    return dispatch_labels("labels", labels,
                           [&](auto label_type) { return body(map_type, label_type); });
  });
}

std::tuple<Tensor, Tensor> class_sums(Tensor features, Tensor labels, int64_t num_classes,
                                      int64_t ignore_index) {
  return dispatch(features, labels, [&](auto map_type, auto label_type) {
    return forward<typename decltype(map_type)::type, typename decltype(label_type)::type>(
        features, labels, num_classes, ignore_index);
  });
}

Tensor class_sums_backward(Tensor grad_sums, Tensor features, Tensor labels, int64_t num_classes,
                           int64_t ignore_index) {
  return dispatch(features, labels, [&](auto map_type, auto label_type) {
    return backward<typename decltype(map_type)::type, typename decltype(label_type)::type>(
        grad_sums, features, labels, num_classes, ignore_index);
  });
}

std::tuple<Tensor, Tensor> class_sums_double_backward(Tensor features_tangent, Tensor grad_sums,
                                                      Tensor features, Tensor labels,
                                                      int64_t num_classes, int64_t ignore_index) {
  return dispatch(features, labels, [&](auto map_type, auto label_type) {
    return double_backward<typename decltype(map_type)::type, typename decltype(label_type)::type>(
        features_tangent, grad_sums, features, labels, num_classes, ignore_index);
  });
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cpu, CPU, m) {
  m.impl("class_sums", TORCH_BOX(&pinmem::class_sums));
  m.impl("class_sums_backward", TORCH_BOX(&pinmem::class_sums_backward));
  m.impl("class_sums_double_backward", TORCH_BOX(&pinmem::class_sums_double_backward));
}
