// Convolutions with 3x3 kernels and stride 1 in channels_last, by Winograd's F(2x2, 3x3): 16
// multiplications give four outputs, where the sum as written takes 36.
//
// A tile is 2x2 outputs, `dilation` apart, and the 4x4 inputs they read. With d a tile's inputs of
// a channel and g a kernel,
//   outputs = A^T [sum over channels of (G g G^T) * (B^T d B)] A     (* element by element)
// where A, B and G hold 0, 1, -1 and 1/2 alone. Each of the 16 elements is a matrix product over
// channels. (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.)
#pragma once

#include "isa.h"

namespace pinmem {

/// A convolution of [batch,height,width,in] to [batch,out_height,out_width,out].
struct Conv3x3 {
  int64_t batch, in, out, height, width, out_height, out_width;
  int64_t padding_rows, padding_columns, row_dilation, column_dilation;
  int64_t tile_rows, tile_columns;  // tiles of an image
};

/// What follows it before outputs are stored: + bias [out] + other, a map like the output;
/// then max(., 0) where `rectify`. Null where absent.
struct Conv3x3After {
  const float *bias, *other;
  bool rectify;
};

// Outputs of a stripe, as many as a kernel makes at once.
PINMEM_KERNEL(int64_t conv3x3_stripe())

// Bytes of scratch memory for `tiles` tiles at once, aligned to 64.
PINMEM_KERNEL(int64_t conv3x3_scratch(int64_t in, int64_t tiles))

// G g G^T of input channels [begin, end) for a stripe of outputs, to
// transformed[stripe][element][in][conv3x3_stripe()]. The weight is [out,3,3,in]; or, `reversed`,
// [in,3,3,out] with its taps read from the last to the first, as the gradient of a convolution's
// input needs it. `begin` is a multiple of 16.
PINMEM_KERNEL(void conv3x3_weight(int64_t in, int64_t out, bool reversed, const float* weight,
                                  int64_t stripe, int64_t begin, int64_t end, float* transformed))

// Stripes [first, last) of tiles [begin, end) of the outputs.
PINMEM_KERNEL(void conv3x3_tiles(const Conv3x3& conv, int64_t begin, int64_t end, int64_t first,
                                 int64_t last, const float* from, const float* transformed,
                                 const Conv3x3After& after, float* to, char* scratch))

// For the gradient of the weight, G^T [sum over tiles of (A dY A^T) * (B^T d B)] G, tiles go in
// chunks of a multiple of kChunkStep, the last one aside: then the result is bitwise the same in
// chunks of any size.
inline constexpr int64_t kChunkStep = 256;

// Numbers that a chunk's maps take in transformed, and units of its sums: 16 elements, in each
// stripes of input channels, in each blocks of output channels.
PINMEM_KERNEL(int64_t conv3x3_inputs(int64_t in, int64_t tiles))
PINMEM_KERNEL(int64_t conv3x3_outputs(int64_t out, int64_t tiles))
PINMEM_KERNEL(int64_t conv3x3_units(int64_t in, int64_t out))

// Tiles [begin, end) of the `tiles` of a chunk that begins at `first`: B^T d B to
// inputs[element][stripe][tile][channel], A dY A^T to outputs[element][block][tile][channel].
PINMEM_KERNEL(void conv3x3_transform(const Conv3x3& conv, int64_t first, int64_t tiles,
                                     int64_t begin, int64_t end, const float* from,
                                     const float* cotangent, float* inputs, float* outputs))

// Units [begin, end) of a chunk's sums over tiles, to sums[element][stripe][out][channel], added
// where `add`.
PINMEM_KERNEL(void conv3x3_sums(const Conv3x3& conv, int64_t tiles, int64_t begin, int64_t end,
                                const float* inputs, const float* outputs, bool add, float* sums))

// The gradient [out,3,3,in] of output channels [begin, end).
PINMEM_KERNEL(void conv3x3_weight_gradient(const Conv3x3& conv, int64_t begin, int64_t end,
                                           const float* sums, float* to))

}  // namespace pinmem
