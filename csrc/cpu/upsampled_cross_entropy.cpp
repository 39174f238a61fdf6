#include "simd/upsampled_cross_entropy.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "bilinear.h"
#include "pixel_blocks.h"
#include "tensor.h"

namespace pinmem {
namespace {

// Labels counted, or elements multiplied, by one task.
constexpr int64_t kBlock = 1 << 16;

template <class A, class T>
std::vector<A> class_weights(const MaybeTensor& weight, int64_t num_classes) {
  std::vector<A> values;
  if (!weight) return values;
  STD_TORCH_CHECK(weight->dim() == 1 && weight->size(0) == num_classes, "class_weight: expected [",
                  num_classes, "]");
  check_contiguous("class_weight", *weight);
  values.resize(static_cast<size_t>(num_classes));
  dispatch_parameter<T>("class_weight", *weight, [&](auto type) {
    using W = typename decltype(type)::type;
    PINMEM_CALL(convert<A, W>)(read<W>(*weight), values.data(), num_classes);
  });
  return values;
}

// The sum of the weights of the labels that count.
template <class A, class L>
double mass_of(const Tensor& target, int64_t num_classes, int64_t ignore_index,
               const std::vector<A>& weights) {
  const L* labels = read<L>(target);
  const int64_t count = target.numel();
  const auto blocks = static_cast<size_t>(num_blocks(count, kBlock));
  const auto classes = static_cast<size_t>(num_classes);
  std::vector<int64_t> counted(blocks), counts(weights.empty() ? 0 : blocks * classes);
  for_blocks(count, kBlock, [&](int64_t block, int64_t begin, int64_t end) {
    const auto b = static_cast<size_t>(block);
    counted[b] =
        PINMEM_CALL(count_labels<L>)(labels + begin, end - begin, num_classes, ignore_index,
                                     weights.empty() ? nullptr : &counts[b * classes]);
  });
  double mass = 0;
  for (size_t b = 0; b < blocks; ++b) {
    if (weights.empty()) mass += static_cast<double>(counted[b]);
    for (size_t k = 0; k < weights.size(); ++k) {
      mass += static_cast<double>(weights[k]) * static_cast<double>(counts[b * classes + k]);
    }
  }
  return mass;
}

// What the passes over pixels share: the geometry, the bands and their partial results.
template <class A, class T>
class Problem {
 public:
  Problem(const Map& map, const Tensor& target, const MaybeTensor& class_weight, double temperature,
          int64_t ignore_index)
      : map_(map),
        target_(target),
        weights_(class_weights<A, T>(class_weight, map.channels)),
        tables_(map.height, map.width, target.size(1), target.size(2),
                PINMEM_CALL(vector_lanes<A>)()),
        band_rows_(rows_per_band(map.height)),
        bands_(num_blocks(map.height, band_rows_)) {
    task_ = {tables_.of(map.channels, map.height, map.width, target.size(1), target.size(2),
                        map.channels_last),
             ignore_index, weights_.empty() ? nullptr : weights_.data(),
             static_cast<A>(temperature), A{0}};
  }

  double mass() const {
    double mass = 0;
    dispatch_labels("target", target_, [&](auto type) {
      using L = typename decltype(type)::type;
      mass = mass_of<A, L>(target_, map_.channels, task_.ignore_index, weights_);
    });
    return mass;
  }

  // Calls run_band(task, image, first row, last row, result, scratch) for every band, joins the
  // gradient where the bands meet and returns the loss. `gradient` may be null.
  template <class G, class RunBand>
  double run(A scale, G* gradient, const RunBand& run_band) {
    task_.scale = scale;
    const int64_t count = map_.batch * bands_;
    const int64_t row_size = map_.channels * map_.width;
    std::vector<double> losses(static_cast<size_t>(count));
    // The parts of the rows that two bands reach.
    const Buffer<A> shared(gradient == nullptr ? 0 : 2 * count * row_size);
    const auto head = [&](int64_t band) { return shared.data() + 2 * band * row_size; };
    for_bands([&](int64_t band, void* scratch) {
      const int64_t first = band % bands_ * band_rows_;
      CrossEntropyBand<A, G> result{&losses[static_cast<size_t>(band)], gradient, nullptr, nullptr};
      if (gradient != nullptr) {
        result.head = head(band);
        result.tail = head(band) + row_size;
      }
      run_band(task_, band / bands_, first, std::min(first + band_rows_, map_.height), result,
               scratch);
    });
    if (gradient != nullptr) {
      for_bands([&](int64_t band, void* scratch) {
        const A* above = band % bands_ == 0 ? nullptr : head(band) - row_size;
        PINMEM_CALL(cross_entropy_join<A, G>)(task_.up, band / bands_, band % bands_ * band_rows_,
                                              above, head(band), gradient, scratch);
      });
    }
    double loss = 0;
    for (const double one : losses) loss += one;
    return loss;
  }

 private:
  // Calls body(band, scratch) for all bands of all images.
  template <class Body>
  void for_bands(const Body& body) const {
    const int64_t bytes = PINMEM_CALL(cross_entropy_scratch<A>)(task_.up);
    for_tiles(map_.batch * bands_, 1, bytes,
              [&](int64_t band, int64_t, int64_t, void* scratch) { body(band, scratch); });
  }

  const Map map_;
  const Tensor target_;
  const std::vector<A> weights_;
  const UpsamplingTables<A> tables_;
  const int64_t band_rows_, bands_;
  CrossEntropy<A> task_;
};

template <class T>
std::tuple<Tensor, Tensor> forward(const Tensor& logits, const Tensor& target,
                                   const MaybeTensor& class_weight, double temperature,
                                   int64_t ignore_index, bool need_grad) {
  using A = accumulator_t<T>;
  const Map map = map_of("logits", logits);
  check_target("target", target, map);
  Tensor loss = empty({}, scalar_type<A>());
  Tensor unit_grad =
      need_grad ? empty_map(map, map.channels, scalar_type<A>()) : empty({0}, scalar_type<A>());
  Problem<A, T> problem(map, target, class_weight, temperature, ignore_index);
  const double mass = problem.mass();
  const double unit = mass > 0 ? 1 / mass : 0;
  double total = 0;
  dispatch_labels("target", target, [&](auto type) {
    using L = typename decltype(type)::type;
    const T* from = read<T>(logits);
    const L* labels = read<L>(target);
    A* gradient = need_grad ? write<A>(unit_grad) : nullptr;
    total = problem.run(static_cast<A>(unit / temperature), gradient,
                        [&](const auto& task, int64_t image, int64_t first, int64_t last,
                            const auto& result, void* scratch) {
                          PINMEM_CALL(cross_entropy_band<A, T, L>)(task, from, labels, image, first,
                                                                   last, result, scratch);
                        });
  });
  *write<A>(loss) = static_cast<A>(total * unit);
  return {loss, unit_grad};
}

template <class T>
Tensor backward(const Tensor& grad_loss, const Tensor& unit_grad, const Tensor& logits) {
  using A = accumulator_t<T>;
  const Map map = map_of("logits", logits);
  check_map("unit_grad", unit_grad, map, map.channels);
  Tensor grad_logits = empty_map(map, map.channels, scalar_type<T>());
  const A factor = *read<A>(grad_loss);
  const A* from = read<A>(unit_grad);
  T* to = write<T>(grad_logits);
  for_blocks(logits.numel(), kBlock, [&](int64_t, int64_t begin, int64_t end) {
    PINMEM_CALL(scale_to<A, T>)(from + begin, factor, to + begin, end - begin);
  });
  return grad_logits;
}

template <class T>
std::tuple<Tensor, Tensor> double_backward(const Tensor& logits_tangent, const Tensor& grad_loss,
                                           const Tensor& unit_grad, const Tensor& logits,
                                           const Tensor& target, const MaybeTensor& class_weight,
                                           double temperature, int64_t ignore_index) {
  using A = accumulator_t<T>;
  const Map map = map_of("logits", logits);
  check_target("target", target, map);
  check_map("unit_grad", unit_grad, map, map.channels);
  check_map("logits_tangent", logits_tangent, map, map.channels);
  Tensor loss_dot = empty({}, scalar_type<A>());
  Tensor grad_logits = empty_map(map, map.channels, scalar_type<T>());
  const T* tangent = read<T>(logits_tangent);
  const A* first_derivative = read<A>(unit_grad);
  const int64_t count = logits.numel();
  std::vector<double> products(static_cast<size_t>(num_blocks(count, kBlock)));
  for_blocks(count, kBlock, [&](int64_t block, int64_t begin, int64_t end) {
    products[static_cast<size_t>(block)] =
        PINMEM_CALL(dot<A, T>)(first_derivative + begin, tangent + begin, end - begin);
  });
  double product = 0;
  for (const double one : products) product += one;
  *write<A>(loss_dot) = static_cast<A>(product);

  Problem<A, T> problem(map, target, class_weight, temperature, ignore_index);
  const double mass = problem.mass();
  const double unit = mass > 0 ? 1 / mass : 0;
  const double upstream = static_cast<double>(*read<A>(grad_loss));
  dispatch_labels("target", target, [&](auto type) {
    using L = typename decltype(type)::type;
    const T* from = read<T>(logits);
    const L* labels = read<L>(target);
    problem.run(static_cast<A>(upstream * unit / (temperature * temperature)),
                write<T>(grad_logits),
                [&](const auto& task, int64_t image, int64_t first, int64_t last,
                    const auto& result, void* scratch) {
                  PINMEM_CALL(cross_entropy_second_band<A, T, L>)(
                      task, from, tangent, labels, image, first, last, result, scratch);
                });
  });
  return {loss_dot, grad_logits};
}

std::tuple<Tensor, Tensor> upsampled_cross_entropy(Tensor logits, Tensor target,
                                                   MaybeTensor class_weight, double temperature,
                                                   int64_t ignore_index, bool need_grad) {
  return dispatch_floats("logits", logits, [&](auto type) {
    return forward<typename decltype(type)::type>(logits, target, class_weight, temperature,
                                                  ignore_index, need_grad);
  });
}

Tensor upsampled_cross_entropy_backward(Tensor grad_loss, Tensor unit_grad, Tensor logits, Tensor,
                                        MaybeTensor, double, int64_t) {
  return dispatch_floats("logits", logits, [&](auto type) {
    return backward<typename decltype(type)::type>(grad_loss, unit_grad, logits);
  });
}

std::tuple<Tensor, Tensor> upsampled_cross_entropy_double_backward(
    Tensor logits_tangent, Tensor grad_loss, Tensor unit_grad, Tensor logits, Tensor target,
    MaybeTensor class_weight, double temperature, int64_t ignore_index) {
  return dispatch_floats("logits", logits, [&](auto type) {
    return double_backward<typename decltype(type)::type>(logits_tangent, grad_loss, unit_grad,
                                                          logits, target, class_weight, temperature,
                                                          ignore_index);
  });
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cpu, CPU, m) {
  m.impl("upsampled_cross_entropy", TORCH_BOX(&pinmem::upsampled_cross_entropy));
  m.impl("upsampled_cross_entropy_backward", TORCH_BOX(&pinmem::upsampled_cross_entropy_backward));
  m.impl("upsampled_cross_entropy_double_backward",
         TORCH_BOX(&pinmem::upsampled_cross_entropy_double_backward));
}
