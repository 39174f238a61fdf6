// memory_read over its passes (memory_read_passes.h). Launches: forward 1; backward 2, of which the
// second adds the shares of the memory's gradient; second order 2.
#include <tuple>

#include "reading_glue.h"

namespace pinmem {
namespace {

std::tuple<Tensor, Tensor> memory_read(Tensor query, Tensor memory, MaybeTensor gumbel) {
  const Map map = check_read(query, memory, gumbel);
  const Stream stream(query);
  const Tensor readout = empty_map_beside(query, map, 2 * map.channels, query.scalar_type());
  const Tensor scores = empty_map_beside(query, map, memory.size(0), query.scalar_type());
  dispatch_elements("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    ReadForward<T> pass{};
    pass.read = reading_of<T>(map, query, memory, gumbel, 1);
    pass.normalized = output_part<T>(pass.read.runs, readout, 2, 0);
    pass.context = output_part<T>(pass.read.runs, readout, 2, 1);
    pass.scores = write<T>(scores);
    run(stream, pass);
  });
  return {readout, scores};
}

/// What backward and its derivative share, with one share of the memory's gradient a block of
/// tiles.
template <class T>
class Gradients {
 public:
  using A = accumulator_t<T>;

  Gradients(const Map& map, const MaybeTensor& grad_readout, const MaybeTensor& grad_scores,
            const Tensor& query, const Tensor& memory, const MaybeTensor& gumbel, int rows,
            bool shares) {
    if (grad_readout) check_map("grad_readout", *grad_readout, map, 2 * map.channels);
    if (grad_scores) check_map("grad_scores", *grad_scores, map, memory.size(0));
    pass.read = reading_of<T>(map, query, memory, gumbel, rows);
    const Runs& runs = pass.read.runs;
    pass.grad_normalized = input_part<T>(runs, grad_readout, 2, 0);
    pass.grad_context = input_part<T>(runs, grad_readout, 2, 1);
    pass.grad_scores = read<T>(grad_scores);
    pass.tiles_each = 1;
    if (!shares) return;
    pass.share_size = memory.size(0) * map.channels;
    pass.tiles_each = tiles_of_share(pass.read.tiles, pass.share_size * sizeof(A));
    count_ = ceil_div(pass.read.tiles, pass.tiles_each);
    const int64_t place = scratch_.template take<A>(count_ * pass.share_size);
    scratch_.allocate(query);
    pass.shares = scratch_.template at<A>(place);
  }

  void add_shares(const Stream& stream, const Tensor& grad_memory) const {
    PartialSums<A> sums{};
    sums.partials = pass.shares;
    sums.count = count_;
    sums.stride = sums.split = sums.size = pass.share_size;
    sums.first = grad_memory.mutable_data_ptr();
    sums.first_type = sums.second_type = element_of("memory", grad_memory);
    stream.launch(add_partials<A>, sums.blocks(), kSumThreads, 0, sums);
  }

  ReadBackward<T> pass{};

 private:
  int64_t count_ = 0;
  Scratch scratch_;
};

std::tuple<Tensor, Tensor> memory_read_backward(MaybeTensor grad_readout, MaybeTensor grad_scores,
                                                Tensor query, Tensor memory, MaybeTensor gumbel,
                                                bool need_query, bool need_memory) {
  const Map map = check_read(query, memory, gumbel);
  const Stream stream(query);
  const Tensor grad_query = need_query
                                ? empty_map_beside(query, map, map.channels, query.scalar_type())
                                : empty_beside(query, {0}, query.scalar_type());
  const Tensor grad_memory =
      need_memory ? empty_beside(memory, {memory.size(0), map.channels}, memory.scalar_type())
                  : empty_beside(memory, {0}, memory.scalar_type());
  if (!need_query && !need_memory) return {grad_query, grad_memory};
  dispatch_elements("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    Gradients<T> gradients(map, grad_readout, grad_scores, query, memory, gumbel, 2, need_memory);
    if (need_query) {
      gradients.pass.grad_query = output_part<T>(gradients.pass.read.runs, grad_query);
    }
    run(stream, gradients.pass);
    if (need_memory) gradients.add_shares(stream, grad_memory);
  });
  return {grad_query, grad_memory};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> memory_read_double_backward(
    MaybeTensor gg_query, MaybeTensor gg_memory, MaybeTensor grad_readout, MaybeTensor grad_scores,
    Tensor query, Tensor memory, MaybeTensor gumbel) {
  const Map map = check_read(query, memory, gumbel);
  if (gg_query) check_map("gg_query", *gg_query, map, map.channels);
  const Stream stream(query);
  const auto dtype = query.scalar_type();
  const Tensor gg_readout = empty_map_beside(query, map, 2 * map.channels, dtype);
  const Tensor gg_scores = empty_map_beside(query, map, memory.size(0), dtype);
  const Tensor grad_query = empty_map_beside(query, map, map.channels, dtype);
  const Tensor grad_memory =
      empty_beside(memory, {memory.size(0), map.channels}, memory.scalar_type());
  dispatch_elements("query", query, [&](auto type) {
    using T = typename decltype(type)::type;
    Gradients<T> gradients(map, grad_readout, grad_scores, query, memory, gumbel, 4, true);
    const Runs& runs = gradients.pass.read.runs;
    gradients.pass.grad_query = output_part<T>(runs, grad_query);
    ReadSecond<T> pass{};
    pass.first = gradients.pass;
    pass.direction = input_part<T>(runs, gg_query);
    pass.memory = pass.values = matrix_of<T>("gg_memory", gg_memory);
    pass.normalized = output_part<T>(runs, gg_readout, 2, 0);
    pass.context = output_part<T>(runs, gg_readout, 2, 1);
    pass.scores = write<T>(gg_scores);
    run(stream, pass);
    gradients.add_shares(stream, grad_memory);
  });
  return {gg_readout, gg_scores, grad_query, grad_memory};
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cuda, PINMEM_CUDA_KEY, m) {
  m.impl("memory_read", TORCH_BOX(&pinmem::memory_read));
  m.impl("memory_read_backward", TORCH_BOX(&pinmem::memory_read_backward));
  m.impl("memory_read_double_backward", TORCH_BOX(&pinmem::memory_read_double_backward));
}
