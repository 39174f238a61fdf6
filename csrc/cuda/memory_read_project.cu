// memory_read_project over the passes of memory_read (memory_read_passes.h): with P = M W_c^T the
// readout is never formed, projected = r (x W_q^T) + a P. Launches: forward 2; backward 5: P, the
// pixels, the weight's gradient, the sum of the shares, and from P's gradient to the others; second
// order the same.
#include <tuple>

#include "memory_read_weights.h"
#include "reading_glue.h"

namespace pinmem {
namespace {

/// The inputs of all passes.
struct Inputs {
  Tensor query, memory, weight;
  MaybeTensor gumbel;
  Map map;
  int64_t slots, outputs;

  Inputs(const Tensor& query, const Tensor& memory, const Tensor& weight, const MaybeTensor& gumbel)
      : query(query),
        memory(memory),
        weight(weight),
        gumbel(gumbel),
        map(check_read(query, memory, gumbel)),
        slots(memory.size(0)),
        outputs(weight.size(0)) {
    STD_TORCH_CHECK(weight.dim() == 2 && outputs > 0 && weight.size(1) == 2 * map.channels,
                    "weight: expected [O >= 1, ", 2 * map.channels, "]");
  }
};

template <class T>
Reading<T> projecting(const Inputs& inputs, int rows) {
  Reading<T> task = reading_of<T>(inputs.map, inputs.query, inputs.memory, inputs.gumbel, rows);
  task.outputs = static_cast<int>(inputs.outputs);
  task.weight = matrix_of<T>("weight", inputs.weight);
  return task;
}

/// Lines of 16 bytes for the projected memory.
int64_t padded_outputs(const Inputs& inputs) { return ceil_div(inputs.outputs, 16) * 16; }

/// left W_c^T + moved_left moved_W_c^T as the values of a pass.
template <class T>
Matrix project(const Stream& stream, const Inputs& inputs, const Matrix& left, const Matrix& right,
               const Matrix& moved_left, const Matrix& moved_right, T* to) {
  const int64_t stride = padded_outputs(inputs);
  run<accumulator_t<T>>(
      stream, ProjectSlots{left, right, moved_left, moved_right, static_cast<int>(inputs.slots),
                           static_cast<int>(inputs.outputs), static_cast<int>(inputs.map.channels),
                           to, kElement<T>, stride});
  return {to, kElement<T>, stride, true};
}

std::tuple<Tensor, Tensor> memory_read_project(Tensor query, Tensor memory, Tensor weight,
                                               MaybeTensor gumbel) {
  const Inputs inputs(query, memory, weight, gumbel);
  const Stream stream(query);
  const Tensor projected = empty_map_beside(query, inputs.map, inputs.outputs, query.scalar_type());
  const Tensor scores = empty_map_beside(query, inputs.map, inputs.slots, query.scalar_type());
  dispatch_elements("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    Scratch scratch;
    const int64_t values = scratch.take<T>(inputs.slots * padded_outputs(inputs));
    scratch.allocate(query);
    ReadForward<T> pass{};
    pass.read = projecting<T>(inputs, 1);
    const Matrix context = matrix_of<T>("weight", weight, inputs.map.channels);
    pass.read.values =
        project<T>(stream, inputs, pass.read.memory, context, {}, {}, scratch.at<T>(values));
    pass.context = output_part<T>(pass.read.runs, projected);
    pass.scores = write<T>(scores);
    run(stream, pass);
  });
  return {projected, scores};
}

/// What backward and its derivative share.
template <class T>
class Gradients {
 public:
  using A = accumulator_t<T>;

  /// Sums over pixels are wanted where `shares`, with the weight's own part where `weights`.
  Gradients(const Stream& stream, const Inputs& inputs, const MaybeTensor& grad_projected,
            const MaybeTensor& grad_scores, bool second, bool shares, bool weights)
      : inputs_(inputs), context_(matrix_of<T>("weight", inputs.weight, inputs.map.channels)) {
    if (grad_projected) check_map("grad_projected", *grad_projected, inputs.map, inputs.outputs);
    if (grad_scores) check_map("grad_scores", *grad_scores, inputs.map, inputs.slots);
    pass.read = projecting<T>(inputs, second ? 4 : 2);
    pass.grad_context = input_part<T>(pass.read.runs, grad_projected);
    pass.grad_scores = read<T>(grad_scores);
    pass.tiles_each = 1;
    const int64_t products = second ? 2 : 1;
    pass.share_size = inputs.slots * (inputs.map.channels + products * inputs.outputs);
    if (shares) {
      pass.tiles_each = tiles_of_share(pass.read.tiles, pass.share_size * sizeof(A));
      count_ = ceil_div(pass.read.tiles, pass.tiles_each);
    }
    if (weights && grad_projected) cut_weights();
    const int64_t pixels = pass.read.runs.images * pass.read.runs.pixels;
    const int64_t one = scratch_.template take<T>(inputs.slots * padded_outputs(inputs));
    const int64_t other = scratch_.template take<T>(inputs.slots * padded_outputs(inputs));
    const int64_t parts = scratch_.template take<A>(count_ * pass.share_size);
    const int64_t total = scratch_.template take<A>(pass.share_size);
    const int64_t norms = scratch_.template take<A>(pixels);
    const int64_t turns = scratch_.template take<A>(pixels);
    const int64_t weight_parts =
        scratch_.template take<A>(weight_.count * inputs.outputs * inputs.map.channels);
    scratch_.allocate(inputs.query);
    pass.read.values = project<T>(stream, inputs, pass.read.memory, context_, {}, {},
                                  scratch_.template at<T>(one));
    moved_values = scratch_.template at<T>(other);
    if (shares) pass.shares = scratch_.template at<A>(parts);
    if (weight_.count > 0) {
      pass.inverse_norms = scratch_.template at<A>(norms);
      turns_ = scratch_.template at<A>(turns);
    }
    weight_.shares = scratch_.template at<A>(weight_parts);
    total_ = scratch_.template at<A>(total);
  }

  const Matrix& context() const { return context_; }
  A* turns() const { return turns_; }

  /// From the shares to the gradients; those not needed are null.
  void finish(const Stream& stream, const MapPart<const T>& direction, const Matrix& moved_memory,
              const Matrix& moved_context, bool second, const Tensor* grad_memory,
              const Tensor* grad_weight) {
    const bool moves = !second || direction;
    if (weight_.count > 0 && moves) {
      weight_.features[0] = direction;
      weight_.features[1] = pass.read.query;
      weight_.factors[0] = pass.inverse_norms;
      weight_.factors[1] = second ? turns_ : pass.inverse_norms;
      run(stream, weight_);
    }
    PartialSums<A> sums{};
    sums.partials = pass.shares;
    sums.count = count_;
    sums.stride = sums.split = sums.size = pass.share_size;
    sums.first = total_;
    sums.first_type = sums.second_type = sizeof(A) == 8 ? Element::f64 : Element::f32;
    stream.launch(add_partials<A>, sums.blocks(), kSumThreads, 0, sums);

    FinishGradients<A> task{};
    task.slots = pass.read.slots;
    task.channels = pass.read.channels;
    task.outputs = pass.read.outputs;
    task.sums = total_;
    task.values = total_ + inputs_.slots * inputs_.map.channels;
    if (second) {
      task.still = task.values;
      task.values += inputs_.slots * inputs_.outputs;
    }
    task.memory = pass.read.memory;
    task.weight = context_;
    task.moved_memory = moved_memory;
    task.moved_weight = moved_context;
    task.weight_shares = weight_.shares;
    task.weight_count = moves ? weight_.count : 0;
    if (grad_memory != nullptr) task.grad_memory = grad_memory->mutable_data_ptr();
    if (grad_weight != nullptr) task.grad_weight = grad_weight->mutable_data_ptr();
    task.memory_type = element_of("memory", inputs_.memory);
    task.weight_type = element_of("weight", inputs_.weight);
    run(stream, task);
  }

  ReadBackward<T> pass{};
  T* moved_values = nullptr;

 private:
  /// The product over all pixels: shares so that there are some four hundred blocks.
  void cut_weights() {
    weight_.runs = pass.read.runs;
    weight_.cotangent = pass.grad_context;
    weight_.outputs = pass.read.outputs;
    weight_.channels = pass.read.channels;
    const int64_t tiles =
        ceil_div(weight_.outputs, kTileRows) * ceil_div(weight_.channels, TileSize<T>::columns);
    const int64_t chunks = weight_.runs.tiles(kWeightChunk);
    const int64_t shares = tiles < 396 ? 396 / tiles : 1;
    weight_.chunks_each = chunks < shares ? 1 : ceil_div(chunks, shares);
    weight_.count = ceil_div(chunks, weight_.chunks_each);
  }

  const Inputs& inputs_;
  Matrix context_;
  WeightShares<T> weight_{};
  int64_t count_ = 0;
  A* turns_ = nullptr;
  A* total_ = nullptr;
  Scratch scratch_;
};

Tensor gradient_of(const Tensor& input, bool needed) {
  return needed ? empty_beside(input, {input.size(0), input.size(1)}, input.scalar_type())
                : empty_beside(input, {0}, input.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> memory_read_project_backward(
    MaybeTensor grad_projected, MaybeTensor grad_scores, Tensor query, Tensor memory, Tensor weight,
    MaybeTensor gumbel, bool need_query, bool need_memory, bool need_weight) {
  const Inputs inputs(query, memory, weight, gumbel);
  const Stream stream(query);
  const Tensor grad_query =
      need_query ? empty_map_beside(query, inputs.map, inputs.map.channels, query.scalar_type())
                 : empty_beside(query, {0}, query.scalar_type());
  const Tensor grad_memory = gradient_of(memory, need_memory);
  const Tensor grad_weight = gradient_of(weight, need_weight);
  if (!need_query && !need_memory && !need_weight) return {grad_query, grad_memory, grad_weight};
  dispatch_elements("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool shares = need_memory || need_weight;
    Gradients<T> gradients(stream, inputs, grad_projected, grad_scores, false, shares, need_weight);
    if (need_query) {
      gradients.pass.grad_query = output_part<T>(gradients.pass.read.runs, grad_query);
    }
    run(stream, gradients.pass);
    if (!shares) return;
    gradients.finish(stream, {}, {}, {}, false, need_memory ? &grad_memory : nullptr,
                     need_weight ? &grad_weight : nullptr);
  });
  return {grad_query, grad_memory, grad_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> memory_read_project_double_backward(
    MaybeTensor gg_query, MaybeTensor gg_memory, MaybeTensor gg_weight, MaybeTensor grad_projected,
    MaybeTensor grad_scores, Tensor query, Tensor memory, Tensor weight, MaybeTensor gumbel) {
  const Inputs inputs(query, memory, weight, gumbel);
  const Map& map = inputs.map;
  if (gg_query) check_map("gg_query", *gg_query, map, map.channels);
  const Stream stream(query);
  const auto dtype = query.scalar_type();
  const Tensor gg_projected = empty_map_beside(query, map, inputs.outputs, dtype);
  const Tensor gg_scores = empty_map_beside(query, map, inputs.slots, dtype);
  const Tensor grad_query = empty_map_beside(query, map, map.channels, dtype);
  const Tensor grad_memory = gradient_of(memory, true);
  const Tensor grad_weight = gradient_of(weight, true);
  dispatch_elements("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    Gradients<T> gradients(stream, inputs, grad_projected, grad_scores, true, true, true);
    const Runs& runs = gradients.pass.read.runs;
    const Matrix moved_context = matrix_of<T>("gg_weight", gg_weight, map.channels);
    gradients.pass.grad_query = output_part<T>(runs, grad_query);
    ReadSecond<T> pass{};
    pass.first = gradients.pass;
    pass.direction = input_part<T>(runs, gg_query);
    pass.memory = matrix_of<T>("gg_memory", gg_memory);
    pass.weight = matrix_of<T>("gg_weight", gg_weight);
    if (pass.memory || pass.weight) {
      // P moves by V W_c^T + M Y_c^T.
      pass.values = project<T>(stream, inputs, pass.memory, gradients.context(),
                               pass.first.read.memory, moved_context, gradients.moved_values);
    }
    pass.context = output_part<T>(runs, gg_projected);
    pass.scores = write<T>(gg_scores);
    pass.turns = gradients.turns();
    run(stream, pass);
    gradients.finish(stream, pass.direction, pass.memory, moved_context, true, &grad_memory,
                     &grad_weight);
  });
  return {gg_projected, gg_scores, grad_query, grad_memory, grad_weight};
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cuda, PINMEM_CUDA_KEY, m) {
  m.impl("memory_read_project", TORCH_BOX(&pinmem::memory_read_project));
  m.impl("memory_read_project_backward", TORCH_BOX(&pinmem::memory_read_project_backward));
  m.impl("memory_read_project_double_backward",
         TORCH_BOX(&pinmem::memory_read_project_double_backward));
}
