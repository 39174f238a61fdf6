// What the glue of memory_read and memory_read_project shares.
#pragma once

#include "matrices.h"
#include "pixel_blocks.h"
#include "simd/memory_read.h"
#include "tensor.h"

namespace pinmem {

/// Tiles to a block where nothing is summed.
inline constexpr int64_t kTilesPerBlock = 2;

/// Checks the arguments that every pass begins with; returns where the query lies.
inline Map check_read(const Tensor& query, const Tensor& memory, const MaybeTensor& gumbel) {
  const Map map = map_of("query", query);
  STD_TORCH_CHECK(memory.dim() == 2 && memory.size(0) > 0 && memory.size(1) == map.channels,
                  "memory: expected [K >= 1, ", map.channels, "]");
  if (gumbel) check_map("gumbel", *gumbel, map, memory.size(0));
  return map;
}

/// The memory [K,C] as the operands of products.
template <class A>
class MemoryOperands {
 public:
  MemoryOperands(const char* name, const Tensor& memory)
      : parameter_(name, memory),
        left_(panels_of(parameter_.matrix())),
        left_t_(panels_of(transposed(parameter_.matrix()))) {}

  const Matrix<A>& matrix() const { return parameter_.matrix(); }
  const A* left() const { return left_.data(); }
  const A* left_t() const { return left_t_.data(); }

 private:
  Parameter<A> parameter_;
  Buffer<A> left_, left_t_;
};

/// What all passes read.
template <class T>
class ReadOperands {
 public:
  using A = accumulator_t<T>;

  ReadOperands(const Map& map, const Tensor& query, const Tensor& memory, const MaybeTensor& gumbel)
      : memory_("memory", memory),
        right_(memory_.matrix()),
        op_{pixels_of(map), map.channels,     memory.size(0), read<T>(query), read<T>(gumbel),
            memory_.left(), memory_.left_t(), right_.data(),  nullptr} {
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (map.channels % 2 == 0 && PINMEM_CALL(multiplies_pairs)()) {
        pairs_ = pair_panels_of(memory_.matrix());
        op_.memory_pairs = pairs_.data();
      }
    }
  }

  const Matrix<A>& memory() const { return memory_.matrix(); }
  const MemoryRead<T>& op() const { return op_; }

 private:
  MemoryOperands<A> memory_;
  Rows<A> right_;
  Buffer<uint32_t> pairs_;
  MemoryRead<T> op_;
};

/// The tangents of a second derivative.
template <class T>
class ReadTangents {
 public:
  using A = accumulator_t<T>;

  ReadTangents(const Map& map, const MaybeTensor& query, const MaybeTensor& memory)
      : query_(read<T>(query)) {
    if (query) check_map("query_tangent", *query, map, map.channels);
    if (memory) memory_.emplace("memory_tangent", *memory);
  }

  MemoryReadTangents<T> op() const {
    return {query_, memory_ ? memory_->left() : nullptr, memory_ ? memory_->left_t() : nullptr};
  }

 private:
  const T* query_;
  std::optional<MemoryOperands<A>> memory_;
};

}  // namespace pinmem
