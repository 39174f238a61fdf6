#include "simd/memory_read.h"

#include "attention.h"

namespace pinmem {
namespace {

template <class T>
MemoryReadCotangents<T> cotangents(const MaybeTensor& grad_readout, const MaybeTensor& grad_scores,
                                   const Map& map, int64_t slots) {
  if (grad_readout) check_map("grad_readout", *grad_readout, map, 2 * map.channels);
  if (grad_scores) check_map("grad_scores", *grad_scores, map, slots);
  return {read<T>(grad_readout), read<T>(grad_scores)};
}

/// The sums that become the gradient of the memory.
template <class T>
PixelSums<accumulator_t<T>> memory_sums(const MemoryRead<T>& op) {
  using A = accumulator_t<T>;
  return {num_tiles(op.pixels), op.slots, PINMEM_CALL(padded_columns<A>)(op.channels),
          op.pixels.images * op.pixels.pixels * op.channels};
}

std::tuple<Tensor, Tensor> memory_read(Tensor query, Tensor memory, MaybeTensor gumbel) {
  const Map map = check_read(query, memory, gumbel);
  const Tensor readout = empty_map(map, 2 * map.channels, query.scalar_type());
  const Tensor scores = empty_map(map, memory.size(0), query.scalar_type());
  dispatch_floats("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    const ReadOperands<T> operands(map, query, memory, gumbel);
    const MemoryRead<T>& op = operands.op();
    for_tiles(num_tiles(op.pixels), kTilesPerBlock,
              PINMEM_CALL(memory_read_scratch<T>)(op.channels, op.slots),
              [&, to = write<T>(readout), to_scores = write<T>(scores)](
                  int64_t, int64_t begin, int64_t end, char* scratch) {
                PINMEM_CALL(memory_read<T>)(op, begin, end, to, to_scores, scratch);
              });
  });
  return {readout, scores};
}

std::tuple<Tensor, Tensor> memory_read_backward(MaybeTensor grad_readout, MaybeTensor grad_scores,
                                                Tensor query, Tensor memory, MaybeTensor gumbel,
                                                bool need_query, bool need_memory) {
  const Map map = check_read(query, memory, gumbel);
  const Tensor grad_query = need_query ? empty_map(map, map.channels, query.scalar_type())
                                       : empty({0}, query.scalar_type());
  Tensor grad_memory = empty({0}, memory.scalar_type());
  dispatch_floats("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    const ReadOperands<T> operands(map, query, memory, gumbel);
    const MemoryRead<T>& op = operands.op();
    const auto grad = cotangents<T>(grad_readout, grad_scores, map, op.slots);
    const auto sums = memory_sums(op);
    for_tiles(num_tiles(op.pixels), sums.tiles_per_block(),
              PINMEM_CALL(memory_read_scratch<T>)(op.channels, op.slots),
              [&, to = need_query ? write<T>(grad_query) : nullptr](int64_t i, int64_t begin,
                                                                    int64_t end, char* scratch) {
                PINMEM_CALL(memory_read_backward<T>)(
                    op, grad, begin, end, to, need_memory ? sums.of_block(i) : nullptr, scratch);
              });
    if (need_memory) grad_memory = rounded(columns_of(sums.total(), 0, op.channels), memory);
  });
  return {grad_query, grad_memory};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> memory_read_double_backward(
    MaybeTensor query_tangent, MaybeTensor memory_tangent, MaybeTensor grad_readout,
    MaybeTensor grad_scores, Tensor query, Tensor memory, MaybeTensor gumbel) {
  const Map map = check_read(query, memory, gumbel);
  const Tensor readout_dot = empty_map(map, 2 * map.channels, query.scalar_type());
  const Tensor scores_dot = empty_map(map, memory.size(0), query.scalar_type());
  const Tensor grad_query = empty_map(map, map.channels, query.scalar_type());
  Tensor grad_memory;
  dispatch_floats("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    const ReadOperands<T> operands(map, query, memory, gumbel);
    const ReadTangents<T> tangents(map, query_tangent, memory_tangent);
    const MemoryRead<T>& op = operands.op();
    const auto grad = cotangents<T>(grad_readout, grad_scores, map, op.slots);
    const auto sums = memory_sums(op);
    for_tiles(
        num_tiles(op.pixels), sums.tiles_per_block(),
        PINMEM_CALL(memory_read_scratch<T>)(op.channels, op.slots),
        [&, to = write<T>(readout_dot), to_scores = write<T>(scores_dot),
         to_query = write<T>(grad_query)](int64_t i, int64_t begin, int64_t end, char* scratch) {
          PINMEM_CALL(memory_read_double_backward<T>)(op, grad, tangents.op(), begin, end, to,
                                                      to_scores, to_query, sums.of_block(i),
                                                      scratch);
        });
    grad_memory = rounded(columns_of(sums.total(), 0, op.channels), memory);
  });
  return {readout_dot, scores_dot, grad_query, grad_memory};
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cpu, CPU, m) {
  m.impl("memory_read", TORCH_BOX(&pinmem::memory_read));
  m.impl("memory_read_backward", TORCH_BOX(&pinmem::memory_read_backward));
  m.impl("memory_read_double_backward", TORCH_BOX(&pinmem::memory_read_double_backward));
}
