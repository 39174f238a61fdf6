#include "simd/memory_read_project.h"

#include "attention.h"

namespace pinmem {
namespace {

Map check_project(const Tensor& query, const Tensor& memory, const Tensor& weight,
                  const MaybeTensor& gumbel) {
  const Map map = check_read(query, memory, gumbel);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) > 0 && weight.size(1) == 2 * map.channels,
                  "weight: expected [O >= 1, ", 2 * map.channels, "]");
  return map;
}

/// The weight [O,2C] as its halves W_q and W_c, [O,C] each.
template <class A>
class Weight {
 public:
  Weight(const char* name, const Tensor& weight) : parameter_(name, weight) {}
  int64_t outputs() const { return parameter_.matrix().rows; }
  Matrix<A> query() const { return columns_of(parameter_.matrix(), 0, half()); }
  Matrix<A> context() const { return columns_of(parameter_.matrix(), half(), half()); }

 private:
  int64_t half() const { return parameter_.matrix().columns / 2; }
  Parameter<A> parameter_;
};

/// [upper; lower]^T as a left operand.
template <class A>
Rows<A> stacked(const Matrix<A>& upper, const Matrix<A>& lower) {
  Rows<A> rows(upper.rows + lower.rows, upper.columns);
  PINMEM_CALL(pack_rows<A, A>)(upper, rows.data());
  PINMEM_CALL(pack_rows<A, A>)(lower, rows.data() + upper.rows * rows.stride());
  return rows;
}

/// What the passes read. Of the large operands, those of `passes` alone.
template <class T>
class ProjectOperands {
 public:
  using A = accumulator_t<T>;
  enum Passes { forward, backward, both };

  ProjectOperands(const Map& map, const Tensor& query, const Tensor& memory, const Tensor& weight,
                  const MaybeTensor& gumbel, Passes passes)
      : read_(map, query, memory, gumbel), weight_("weight", weight) {
    const Rows<A> slots_t = product(context(), transposed(read_.memory()));
    op_.read = read_.op();
    op_.outputs = weight_.outputs();
    // The second derivative (`both`) is formed in the accumulation type throughout.
    const bool pairs =
        std::is_same_v<T, bfloat16> && passes != both && PINMEM_CALL(multiplies_pairs)();
    if (passes != backward) {
      op_.slots_t = keep(panels_of(slots_t.matrix()));
      large(weight_.query(), pairs, &op_.weight, &op_.weight_pairs);
    }
    if (passes != forward) {
      op_.slots = keep(panels_of(transposed(slots_t.matrix())));
      const Rows<A> back = stacked(weight_.query(), read_.memory());
      large(transposed(back.matrix()), pairs, &op_.back, &op_.back_pairs);
    }
  }

  const Matrix<A>& memory() const { return read_.memory(); }
  Matrix<A> context() const { return weight_.context(); }
  const MemoryReadProject<T>& op() const { return op_; }

 private:
  void large(const Matrix<A>& from, bool pairs, const A** full, const uint32_t** as_pairs) {
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (pairs) {
        kept_pairs_ = pair_panels_of(from);
        *as_pairs = kept_pairs_.data();
        return;
      }
    }
    *full = keep(panels_of(from));
  }
  const A* keep(Buffer<A> buffer) { return (kept_[count_++] = std::move(buffer)).data(); }

  ReadOperands<T> read_;
  Weight<A> weight_;
  Buffer<A> kept_[4];
  int count_ = 0;
  Buffer<uint32_t> kept_pairs_;
  MemoryReadProject<T> op_{};
};

/// The tangents of a second derivative.
template <class T>
class ProjectTangents {
 public:
  using A = accumulator_t<T>;

  ProjectTangents(const Map& map, const ProjectOperands<T>& operands,
                  const MaybeTensor& query_tangent, const MaybeTensor& memory_tangent,
                  const MaybeTensor& weight_tangent)
      : read_(map, query_tangent, memory_tangent) {
    if (memory_tangent) memory_.emplace("memory_tangent", *memory_tangent);
    if (weight_tangent) weight_.emplace("weight_tangent", *weight_tangent);
    op_.read = read_.op();
    if (!memory_ && !weight_) return;
    const int64_t outputs = operands.op().outputs, slots = operands.memory().rows;
    const Rows<A> none(std::max(outputs, slots), map.channels);
    std::memset(none.data(), 0,
                static_cast<size_t>(none.matrix().rows * none.stride()) * sizeof(A));
    // P^T = W_c M^T moves by W_c V^T + Y_c M^T.
    const Rows<A> slots_t(outputs, slots);
    if (memory_) add_product(operands.context(), transposed(*memory()), slots_t, false);
    if (weight_) {
      add_product(weight_->context(), transposed(operands.memory()), slots_t, memory_.has_value());
      op_.weight = keep(panels_of(weight_->query()));
    }
    op_.slots_t = keep(panels_of(slots_t.matrix()));
    op_.slots = keep(panels_of(transposed(slots_t.matrix())));
    const Rows<A> back = stacked(weight_ ? weight_->query() : rows_of(none.matrix(), 0, outputs),
                                 memory_ ? *memory() : rows_of(none.matrix(), 0, slots));
    op_.back = keep(panels_of(transposed(back.matrix())));
  }

  /// Null where absent.
  const Matrix<A>* memory() const { return memory_ ? &memory_->matrix() : nullptr; }
  std::optional<Matrix<A>> context() const {
    return weight_ ? std::optional(weight_->context()) : std::nullopt;
  }
  const MemoryReadProjectTangents<T>& op() const { return op_; }

 private:
  const A* keep(Buffer<A> buffer) { return (kept_[count_++] = std::move(buffer)).data(); }

  ReadTangents<T> read_;
  std::optional<Parameter<A>> memory_;
  std::optional<Weight<A>> weight_;
  Buffer<A> kept_[4];
  int count_ = 0;
  MemoryReadProjectTangents<T> op_{};
};

/// The sums over pixels, by what they are sums of (see simd/memory_read_project.h).
template <class T>
class ProjectSums {
 public:
  using A = accumulator_t<T>;

  /// With the slots' weights, and where they move also with how they move.
  ProjectSums(const MemoryReadProject<T>& op, bool moving)
      : channels_(op.read.channels),
        slots_(op.read.slots),
        outputs_(op.outputs),
        features_(PINMEM_CALL(padded_columns<A>)(channels_)),
        weights_(PINMEM_CALL(padded_columns<A>)(slots_)),
        blocks_(num_tiles(op.read.pixels), outputs_ + slots_,
                features_ + (moving ? 2 : 1) * weights_,
                op.read.pixels.images * op.read.pixels.pixels * channels_) {}

  const PixelSums<A>& blocks() const { return blocks_; }
  void add_up() { total_ = blocks_.total(); }
  /// D^T q (moving: D^T q'), [O,C].
  Matrix<A> weight() const { return columns_of(rows_of(total_, 0, outputs_), 0, channels_); }
  /// D^T a, and D^T a', [O,K].
  Matrix<A> slots_t(int part = 0) const {
    return columns_of(rows_of(total_, 0, outputs_), features_ + part * weights_, slots_);
  }
  /// ds^T q (moving: ds'^T q + ds^T q'), [K,C].
  Matrix<A> memory() const { return columns_of(rows_of(total_, outputs_, slots_), 0, channels_); }

 private:
  int64_t channels_, slots_, outputs_, features_, weights_;
  PixelSums<A> blocks_;
  Matrix<A> total_{};
};

template <class T>
MemoryReadCotangents<T> cotangents(const MaybeTensor& grad_projected,
                                   const MaybeTensor& grad_scores, const Map& map, int64_t outputs,
                                   int64_t slots) {
  if (grad_projected) check_map("grad_projected", *grad_projected, map, outputs);
  if (grad_scores) check_map("grad_scores", *grad_scores, map, slots);
  return {read<T>(grad_projected), read<T>(grad_scores)};
}

template <class T>
int64_t scratch_bytes(const MemoryReadProject<T>& op) {
  return PINMEM_CALL(memory_read_project_scratch<T>)(op.read.channels, op.read.slots, op.outputs);
}

std::tuple<Tensor, Tensor> memory_read_project(Tensor query, Tensor memory, Tensor weight,
                                               MaybeTensor gumbel) {
  const Map map = check_project(query, memory, weight, gumbel);
  const Tensor projected = empty_map(map, weight.size(0), query.scalar_type());
  const Tensor scores = empty_map(map, memory.size(0), query.scalar_type());
  dispatch_floats("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    using Operands = ProjectOperands<T>;
    const Operands operands(map, query, memory, weight, gumbel, Operands::forward);
    const auto& op = operands.op();
    for_tiles(num_tiles(op.read.pixels), kTilesPerBlock, scratch_bytes(op),
              [&, to = write<T>(projected), to_scores = write<T>(scores)](
                  int64_t, int64_t begin, int64_t end, char* scratch) {
                PINMEM_CALL(memory_read_project<T>)(op, begin, end, to, to_scores, scratch);
              });
  });
  return {projected, scores};
}

std::tuple<Tensor, Tensor, Tensor> memory_read_project_backward(
    MaybeTensor grad_projected, MaybeTensor grad_scores, Tensor query, Tensor memory, Tensor weight,
    MaybeTensor gumbel, bool need_query, bool need_memory, bool need_weight) {
  const Map map = check_project(query, memory, weight, gumbel);
  const Tensor grad_query = need_query ? empty_map(map, map.channels, query.scalar_type())
                                       : empty({0}, query.scalar_type());
  Tensor grad_memory = empty({0}, memory.scalar_type());
  const Tensor grad_weight = need_weight
                                 ? empty({weight.size(0), weight.size(1)}, weight.scalar_type())
                                 : empty({0}, weight.scalar_type());
  dispatch_floats("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulator_t<T>;
    using Operands = ProjectOperands<T>;
    const Operands operands(map, query, memory, weight, gumbel, Operands::backward);
    const auto& op = operands.op();
    const auto grad = cotangents<T>(grad_projected, grad_scores, map, op.outputs, op.read.slots);
    ProjectSums<T> sums(op, false);
    const bool need_sums = need_memory || need_weight;
    for_tiles(num_tiles(op.read.pixels), sums.blocks().tiles_per_block(), scratch_bytes(op),
              [&, to = need_query ? write<T>(grad_query) : nullptr](int64_t i, int64_t begin,
                                                                    int64_t end, char* scratch) {
                PINMEM_CALL(memory_read_project_backward<T>)(
                    op, grad, begin, end, to, need_sums ? sums.blocks().of_block(i) : nullptr,
                    need_weight, scratch);
              });
    if (!need_sums) return;
    sums.add_up();
    if (need_weight) {
      round_into(sums.weight(), grad_weight);
      round_into(product(sums.slots_t(), operands.memory()).matrix(), grad_weight, map.channels);
    }
    if (need_memory) {
      const Rows<A> total(sums.memory());
      add_product(transposed(sums.slots_t()), operands.context(), total);
      grad_memory = rounded(total.matrix(), memory);
    }
  });
  return {grad_query, grad_memory, grad_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> memory_read_project_double_backward(
    MaybeTensor query_tangent, MaybeTensor memory_tangent, MaybeTensor weight_tangent,
    MaybeTensor grad_projected, MaybeTensor grad_scores, Tensor query, Tensor memory, Tensor weight,
    MaybeTensor gumbel) {
  const Map map = check_project(query, memory, weight, gumbel);
  const Tensor projected_dot = empty_map(map, weight.size(0), query.scalar_type());
  const Tensor scores_dot = empty_map(map, memory.size(0), query.scalar_type());
  const Tensor grad_query = empty_map(map, map.channels, query.scalar_type());
  const Tensor grad_weight = empty({weight.size(0), weight.size(1)}, weight.scalar_type());
  Tensor grad_memory;
  dispatch_floats("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulator_t<T>;
    using Operands = ProjectOperands<T>;
    const Operands operands(map, query, memory, weight, gumbel, Operands::both);
    const ProjectTangents<T> tangents(map, operands, query_tangent, memory_tangent, weight_tangent);
    const auto& op = operands.op();
    const auto grad = cotangents<T>(grad_projected, grad_scores, map, op.outputs, op.read.slots);
    ProjectSums<T> sums(op, true);
    for_tiles(
        num_tiles(op.read.pixels), sums.blocks().tiles_per_block(), scratch_bytes(op),
        [&, to = write<T>(projected_dot), to_scores = write<T>(scores_dot),
         to_query = write<T>(grad_query)](int64_t i, int64_t begin, int64_t end, char* scratch) {
          PINMEM_CALL(memory_read_project_double_backward<T>)(op, grad, tangents.op(), begin, end,
                                                              to, to_scores, to_query,
                                                              sums.blocks().of_block(i), scratch);
        });
    sums.add_up();
    const Rows<A> context = product(sums.slots_t(1), operands.memory());
    if (tangents.memory()) add_product(sums.slots_t(), *tangents.memory(), context);
    round_into(sums.weight(), grad_weight);
    round_into(context.matrix(), grad_weight, map.channels);
    const Rows<A> total(sums.memory());
    add_product(transposed(sums.slots_t(1)), operands.context(), total);
    if (tangents.context()) add_product(transposed(sums.slots_t()), *tangents.context(), total);
    grad_memory = rounded(total.matrix(), memory);
  });
  return {projected_dot, scores_dot, grad_query, grad_memory, grad_weight};
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cpu, CPU, m) {
  m.impl("memory_read_project", TORCH_BOX(&pinmem::memory_read_project));
  m.impl("memory_read_project_backward", TORCH_BOX(&pinmem::memory_read_project_backward));
  m.impl("memory_read_project_double_backward",
         TORCH_BOX(&pinmem::memory_read_project_double_backward));
}
