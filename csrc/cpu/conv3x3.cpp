#include "simd/conv3x3.h"

#include <algorithm>
#include <vector>

#include "pixel_blocks.h"
#include "tensor.h"

namespace pinmem {
namespace {

// Tiles of a block: of a transformed input's 16 elements so many numbers each, to lie in the second
// cache, but enough tiles that the transformed weight is not all that moves; in panels of 12 rows.
constexpr int64_t kBlock = 12288, kFewestTiles = 24, kMostTiles = 72, kPanel = 12;
// Input channels whose kernels are transformed at once.
constexpr int64_t kKernels = 64;
// Of a chunk: numbers of its transformed maps by element, at most four times as many where threads
// would have fewer multiplications than these between two waits for all of them.
constexpr int64_t kChunk = 1 << 17, kWork = 1 << 19;
constexpr int64_t kElements = 16;

int64_t tiles_along(int64_t outputs, int64_t dilation) {
  return dilation * num_blocks(num_blocks(outputs, dilation), 2);
}

void check_channels_last(const char* name, const Tensor& tensor) {
  const Map map = map_of(name, tensor);
  STD_TORCH_CHECK(map.channels_last || map.channels == 1 || map.pixels() == 1 || map.batch == 0,
                  name, ": expected channels_last");
}

// The convolution of `in` channels of a map to `out`.
Conv3x3 conv_of(const Map& map, int64_t in, int64_t out, const std::vector<int64_t>& padding,
                const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(in >= 1 && in == map.channels, "weight: expected ", map.channels,
                  " input channels");
  STD_TORCH_CHECK(map.batch >= 1, "features: expected at least one image");
  STD_TORCH_CHECK(out >= 1, "weight: expected at least one output channel");
  STD_TORCH_CHECK(padding.size() == 2 && dilation.size() == 2,
                  "padding, dilation: expected two numbers each");
  STD_TORCH_CHECK(padding[0] >= 0 && padding[1] >= 0 && dilation[0] >= 1 && dilation[1] >= 1,
                  "padding: expected at least 0, dilation: at least 1");
  Conv3x3 conv;
  conv.batch = map.batch, conv.in = in, conv.out = out;
  conv.height = map.height, conv.width = map.width;
  conv.padding_rows = padding[0], conv.padding_columns = padding[1];
  conv.row_dilation = dilation[0], conv.column_dilation = dilation[1];
  conv.out_height = map.height + 2 * (padding[0] - dilation[0]);
  conv.out_width = map.width + 2 * (padding[1] - dilation[1]);
  STD_TORCH_CHECK(conv.out_height >= 1 && conv.out_width >= 1,
                  "features: the kernel is larger than the padded map");
  conv.tile_rows = tiles_along(conv.out_height, dilation[0]);
  conv.tile_columns = tiles_along(conv.out_width, dilation[1]);
  return conv;
}

// The convolution, or with `reversed` the gradient of its input from that of its output; then the
// padding is 2 * dilation minus the convolution's.
Tensor conv3x3(Tensor features, Tensor weight, MaybeTensor bias, MaybeTensor other,
               std::vector<int64_t> padding, std::vector<int64_t> dilation, bool reversed,
               bool rectify) {
  const Map map = map_of("features", features);
  check_channels_last("features", features);
  check_channels_last("weight", weight);
  STD_TORCH_CHECK(weight.size(2) == 3 && weight.size(3) == 3, "weight: expected kernels of 3x3");
  const int64_t in = weight.size(reversed ? 0 : 1), out = weight.size(reversed ? 1 : 0);
  const Conv3x3 conv = conv_of(map, in, out, padding, dilation);
  const Map like{map.batch, out, conv.out_height, conv.out_width, true};
  const Tensor result = empty_map(like, out, ScalarType::Float);
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == out, "bias: expected [", out, "]");
    check_contiguous("bias", *bias);
  }
  if (other) check_map("other", *other, like, out);
  const Conv3x3After after{read<float>(bias), read<float>(other), rectify};
  const float *from = read<float>(features), *kernels = read<float>(weight);
  float* to = write<float>(result);

  const int64_t stripe = PINMEM_CALL(conv3x3_stripe)(), stripes = num_blocks(out, stripe);
  const Buffer<float> transformed(stripes * kElements * in * stripe);
  const int64_t parts = num_blocks(in, kKernels);
  for_blocks(stripes * parts, 1, [&](int64_t, int64_t begin, int64_t) {
    const int64_t first = begin % parts * kKernels;
    PINMEM_CALL(conv3x3_weight)(in, out, reversed, kernels, begin / parts, first,
                                std::min(in, first + kKernels), transformed.data());
  });
  const int64_t tiles = map.batch * conv.tile_rows * conv.tile_columns;
  const int64_t block = std::clamp(kBlock / in / kPanel * kPanel, kFewestTiles, kMostTiles);
  const int64_t blocks = num_blocks(tiles, block);
  // Where blocks are few, several units transform the same one, each for some of the stripes.
  const int64_t groups =
      std::min(stripes, num_blocks(2 * torch::stable::get_num_threads(), blocks));
  for_tiles(blocks * groups, 1, PINMEM_CALL(conv3x3_scratch)(in, block),
            [&](int64_t unit, int64_t, int64_t, char* scratch) {
              const int64_t begin = unit / groups * block, group = unit % groups;
              PINMEM_CALL(conv3x3_tiles)(conv, begin, std::min(tiles, begin + block),
                                         group * stripes / groups, (group + 1) * stripes / groups,
                                         from, transformed.data(), after, to, scratch);
            });
  return result;
}

Tensor conv3x3_weight_grad(Tensor cotangent, Tensor features, std::vector<int64_t> padding,
                           std::vector<int64_t> dilation) {
  const Map map = map_of("features", features);
  check_channels_last("features", features);
  check_channels_last("cotangent", cotangent);
  const int64_t out = cotangent.size(1);
  const Conv3x3 conv = conv_of(map, map.channels, out, padding, dilation);
  STD_TORCH_CHECK(cotangent.size(0) == map.batch && cotangent.size(2) == conv.out_height &&
                      cotangent.size(3) == conv.out_width,
                  "cotangent: expected [", map.batch, ",", out, ",", conv.out_height, ",",
                  conv.out_width, "]");
  const Tensor result = empty_map({out, conv.in, 3, 3, true}, conv.in, ScalarType::Float);
  const float *from = read<float>(features), *grads = read<float>(cotangent);
  float* to = write<float>(result);

  const int64_t in = conv.in, stripe = PINMEM_CALL(conv3x3_stripe)();
  const int64_t tiles = map.batch * conv.tile_rows * conv.tile_columns;
  const int64_t usual = kChunk / (in + out);
  const int64_t busy = kWork * torch::stable::get_num_threads() / (in * out);
  const int64_t wanted = std::min(std::max(usual, busy), 4 * usual);
  const int64_t chunk =
      std::min(tiles, std::max<int64_t>(1, num_blocks(wanted, kChunkStep)) * kChunkStep);
  const Buffer<float> inputs(PINMEM_CALL(conv3x3_inputs)(in, chunk));
  const Buffer<float> outputs(PINMEM_CALL(conv3x3_outputs)(out, chunk));
  const Buffer<float> sums(kElements * num_blocks(in, stripe) * stripe * out);
  for (int64_t first = 0; first < tiles; first += chunk) {
    const int64_t count = std::min(chunk, tiles - first);
    for_blocks(count, 8, [&](int64_t, int64_t begin, int64_t end) {
      PINMEM_CALL(conv3x3_transform)(conv, first, count, begin, end, from, grads, inputs.data(),
                                     outputs.data());
    });
    for_blocks(PINMEM_CALL(conv3x3_units)(in, out), 1, [&](int64_t, int64_t begin, int64_t end) {
      PINMEM_CALL(conv3x3_sums)(conv, count, begin, end, inputs.data(), outputs.data(), first > 0,
                                sums.data());
    });
  }
  for_blocks(out, 8, [&](int64_t, int64_t begin, int64_t end) {
    PINMEM_CALL(conv3x3_weight_gradient)(conv, begin, end, sums.data(), to);
  });
  return result;
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cpu, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&pinmem::conv3x3));
  m.impl("conv3x3_weight_grad", TORCH_BOX(&pinmem::conv3x3_weight_grad));
}
