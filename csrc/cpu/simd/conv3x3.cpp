#include "simd/conv3x3.h"

#include "simd/gemm.h"
#include "simd/scratch.h"
#include "simd/transpose.h"

namespace pinmem::PINMEM_ISA {

namespace {

constexpr int kLane = kLanes<float>;
constexpr int kOuts = kStripe<float>;
constexpr int kElements = 16;  // of a transformed tile

int64_t depths_of(int64_t channels) { return (channels + kDepth - 1) / kDepth; }

/// The distance of two elements of `count` numbers each: an odd number of cache lines. Else all 16,
/// which are written in turn, would meet in few sets of the caches.
PINMEM_INLINE int64_t apart(int64_t count) { return ((count + 15) / 16 | 1) * 16; }

PINMEM_INLINE Vec<float> load_some(const float* from, int64_t count) {
  return count >= kLane ? load<float>(from) : load_first<float>(from, count < 0 ? 0 : count);
}

PINMEM_INLINE void store_some(float* to, Vec<float> value, int64_t count) {
  count >= kLane ? store<float>(to, value) : store_first<float>(to, value, count);
}

/// G^T [a, b, c, d].
PINMEM_INLINE void times_gt(const Vec<float> (&v)[4], Vec<float> (&to)[3]) {
  const Vec<float> sum = (v[1] + v[2]) * 0.5f;
  to[0] = v[0] + sum, to[1] = (v[1] - v[2]) * 0.5f, to[2] = sum + v[3];
}

/// G [a, b, c].
PINMEM_INLINE void times_g(const Vec<float> (&v)[3], Vec<float> (&to)[4]) {
  const Vec<float> ends = (v[0] + v[2]) * 0.5f, middle = v[1] * 0.5f;
  to[0] = v[0], to[1] = ends + middle, to[2] = ends - middle, to[3] = v[2];
}

/// B^T [a, b, c, d], in place.
PINMEM_INLINE void times_b(Vec<float> (&v)[4]) {
  const Vec<float> a = v[0] - v[2], b = v[1] + v[2], c = v[2] - v[1], d = v[1] - v[3];
  v[0] = a, v[1] = b, v[2] = c, v[3] = d;
}

/// A [a, b].
PINMEM_INLINE void times_at(const Vec<float> (&v)[2], Vec<float> (&to)[4]) {
  to[0] = v[0], to[1] = v[0] + v[1], to[2] = v[0] - v[1], to[3] = -v[1];
}

/// A^T [a, b, c, d].
PINMEM_INLINE void times_a(const Vec<float> (&v)[4], Vec<float> (&to)[2]) {
  to[0] = v[0] + v[1] + v[2];
  to[1] = v[1] - v[2] - v[3];
}

/// G g G^T of a vector of kernels, tap(t) being their t-th numbers.
template <class Tap>
PINMEM_INLINE void transform_kernels(const Tap& tap, Vec<float> (&to)[4][4]) {
  Vec<float> columns[3][4];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    const Vec<float> column[3] = {tap(j), tap(3 + j), tap(6 + j)};
    times_g(column, columns[j]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Vec<float> row[3] = {columns[0][i], columns[1][i], columns[2][i]};
    times_g(row, to[i]);
  }
}

/// Outputs [o, o + kLane) of the reversed weight [in,3,3,out], to to[element][in][kOuts].
void reversed_outputs(int64_t in, int64_t out, const float* weight, int64_t o, int64_t begin,
                      int64_t end, float* to) {
  for (int64_t c = begin; c < end; ++c) {
    const float* kernel = weight + c * 9 * out + o;
    Vec<float> found[4][4];
    transform_kernels([&](int t) { return load_some(kernel + (8 - t) * out, out - o); }, found);
    for (int e = 0; e < kElements; ++e) {
      store<float>(to + (e * in + c) * kOuts, found[e / 4][e % 4]);
    }
  }
}

/// The same of the weight [out,3,3,in].
void outputs(int64_t in, int64_t out, const float* weight, int64_t o, int64_t begin, int64_t end,
             float* to) {
  const int64_t outs = out - o < kLane ? out - o : kLane;
  float square[kElements][kLane][kLane];  // [element][out][in]
  for (int64_t l = 0; l < kLane; ++l) {
    for (int e = 0; e < kElements; ++e) store<float>(square[e][l], Vec<float>{});
  }
  for (int64_t c = begin; c < end; c += kLane) {
    for (int64_t l = 0; l < outs; ++l) {
      const float* kernel = weight + (o + l) * 9 * in + c;
      Vec<float> found[4][4];
      transform_kernels([&](int t) { return load_some(kernel + t * in, in - c); }, found);
      for (int e = 0; e < kElements; ++e) store<float>(square[e][l], found[e / 4][e % 4]);
    }
    for (int e = 0; e < kElements; ++e) {
      Vec<float> rows[kLane];
#pragma GCC unroll 16
      for (int l = 0; l < kLane; ++l) rows[l] = load<float>(square[e][l]);
      transpose_square<float>(rows);
      for (int l = 0; l < kLane && c + l < end; ++l) {
        store<float>(to + (e * in + c + l) * kOuts, rows[l]);
      }
    }
  }
}

/// The first output of a tile.
struct Place {
  int64_t image, row, column;
};

PINMEM_INLINE Place place_of(const Conv3x3& conv, int64_t tile) {
  // With a dilation, tiles of interleaved maps: first those of the first rows, or columns, of each.
  const auto first = [](int64_t i, int64_t dilation) {
    return i % dilation + i / dilation * 2 * dilation;
  };
  const int64_t row = tile / conv.tile_columns;
  return {row / conv.tile_rows, first(row % conv.tile_rows, conv.row_dilation),
          first(tile % conv.tile_columns, conv.column_dilation)};
}

/// B^T d B of a tile: element e of channel c to to[e * element + c / Block * block + c % Block].
template <int Block>
void transform_inputs(const Conv3x3& conv, const Place& at, const float* from, float* to,
                      int64_t element, int64_t block) {
  const float* pixels[4][4];  // null outside
  for (int i = 0; i < 4; ++i) {
    const int64_t row = at.row - conv.padding_rows + i * conv.row_dilation;
    for (int j = 0; j < 4; ++j) {
      const int64_t column = at.column - conv.padding_columns + j * conv.column_dilation;
      const bool inside = row >= 0 && row < conv.height && column >= 0 && column < conv.width;
      const int64_t pixel = (at.image * conv.height + row) * conv.width + column;
      pixels[i][j] = inside ? from + pixel * conv.in : nullptr;
    }
  }
  for (int64_t c = 0; c < conv.in; c += kLane) {
    float* place = to + c / Block * block + c % Block;
    Vec<float> rows[4][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      Vec<float> column[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        column[i] = pixels[i][j] ? load_some(pixels[i][j] + c, conv.in - c) : Vec<float>{};
      }
      times_b(column);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) rows[i][j] = column[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      times_b(rows[i]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store<float>(place + (4 * i + j) * element, rows[i][j]);
    }
  }
}

/// A dY A^T of a tile's outputs, likewise.
template <int Block>
void transform_outputs(const Conv3x3& conv, const Place& at, const float* from, float* to,
                       int64_t element, int64_t block) {
  const float* pixels[2][2];  // null outside
  for (int i = 0; i < 2; ++i) {
    const int64_t row = at.row + i * conv.row_dilation;
    for (int j = 0; j < 2; ++j) {
      const int64_t column = at.column + j * conv.column_dilation;
      const int64_t pixel = (at.image * conv.out_height + row) * conv.out_width + column;
      const bool inside = row < conv.out_height && column < conv.out_width;
      pixels[i][j] = inside ? from + pixel * conv.out : nullptr;
    }
  }
  for (int64_t o = 0; o < conv.out; o += kLane) {
    float* place = to + o / Block * block + o % Block;
    Vec<float> columns[2][4];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      Vec<float> column[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        column[i] = pixels[i][j] ? load_some(pixels[i][j] + o, conv.out - o) : Vec<float>{};
      }
      times_at(column, columns[j]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec<float> row[2] = {columns[0][i], columns[1][i]};
      Vec<float> found[4];
      times_at(row, found);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store<float>(place + (4 * i + j) * element, found[j]);
    }
  }
}

/// A^T m A of a tile's outputs [o, o + kLane), element e of m at m[e * element].
PINMEM_INLINE void store_outputs(const Conv3x3& conv, const Place& at, const float* m,
                                 int64_t element, int64_t o, const Conv3x3After& after, float* to) {
  Vec<float> columns[2][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vec<float> column[4] = {load<float>(m + j * element), load<float>(m + (4 + j) * element),
                                  load<float>(m + (8 + j) * element),
                                  load<float>(m + (12 + j) * element)};
    Vec<float> ends[2];
    times_a(column, ends);
    columns[0][j] = ends[0], columns[1][j] = ends[1];
  }
  const int64_t count = conv.out - o;
  const Vec<float> bias = after.bias ? load_some(after.bias + o, count) : Vec<float>{};
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    Vec<float> values[2];
    times_a(columns[i], values);
    const int64_t row = at.row + i * conv.row_dilation;
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const int64_t column = at.column + j * conv.column_dilation;
      if (row >= conv.out_height || column >= conv.out_width) continue;
      const int64_t pixel = (at.image * conv.out_height + row) * conv.out_width + column;
      Vec<float> value = values[j] + bias;
      if (after.other) value += load_some(after.other + pixel * conv.out + o, count);
      if (after.rectify) value = value < 0.f ? Vec<float>{} : value;  // a NaN stays one
      store_some(to + pixel * conv.out + o, value, count);
    }
  }
}

}  // namespace

int64_t conv3x3_stripe() { return kOuts; }

int64_t conv3x3_scratch(int64_t in, int64_t tiles) {
  const int64_t floats = kElements * (apart(depths_of(in) * tiles * kDepth) + apart(tiles * kOuts));
  return floats * static_cast<int64_t>(sizeof(float));
}

void conv3x3_weight(int64_t in, int64_t out, bool reversed, const float* weight, int64_t stripe,
                    int64_t begin, int64_t end, float* transformed) {
  const auto transform = reversed ? &reversed_outputs : &outputs;
  float* to = transformed + stripe * kElements * in * kOuts;
  for (int64_t half = 0; half < kOuts; half += kLane) {
    transform(in, out, weight, stripe * kOuts + half, begin, end, to + half);
  }
}

void conv3x3_tiles(const Conv3x3& conv, int64_t begin, int64_t end, int64_t first, int64_t last,
                   const float* from, const float* transformed, const Conv3x3After& after,
                   float* to, char* scratch) {
  const int64_t tiles = end - begin, block = tiles * kDepth;
  const int64_t element = apart(depths_of(conv.in) * block), product = apart(tiles * kOuts);
  Scratch pieces{scratch};
  float* inputs = pieces.take<float>(kElements * element);    // [element][block][tile][kDepth]
  float* products = pieces.take<float>(kElements * product);  // [element][tile][kOuts]
  for (int64_t t = 0; t < tiles; ++t) {
    transform_inputs<kDepth>(conv, place_of(conv, begin + t), from, inputs + t * kDepth, element,
                             block);
  }
  const float* right = transformed + first * kElements * conv.in * kOuts;
  for (int64_t stripe = first; stripe < last; ++stripe) {
    for (int64_t e = 0; e < kElements; ++e) {
      const float* left = inputs + e * element;
      for (int64_t c = 0; c < conv.in; c += kDepth, left += block) {
        const int64_t steps = conv.in - c < kDepth ? conv.in - c : kDepth;
        gemm_tile<MultiplyAdd<float>, kDepth>(tiles, kOuts, steps, left, right, kOuts,
                                              products + e * product, kOuts, c > 0);
        right += steps * kOuts;
      }
    }
    for (int64_t t = 0; t < tiles; ++t) {
      const Place at = place_of(conv, begin + t);
      for (int64_t half = 0; half < kOuts; half += kLane) {
        const int64_t o = stripe * kOuts + half;
        if (o >= conv.out) break;
        store_outputs(conv, at, products + t * kOuts + half, product, o, after, to);
      }
    }
  }
}

static_assert(kChunkStep % kSumSteps == 0, "a sum's blocks would depend on the chunk");

int64_t conv3x3_inputs(int64_t in, int64_t tiles) {
  return kElements * apart(padded<float>(in) * tiles);
}

int64_t conv3x3_outputs(int64_t out, int64_t tiles) {
  return kElements * apart(depths_of(out) * kDepth * tiles);
}

int64_t conv3x3_units(int64_t in, int64_t out) {
  return kElements * (padded<float>(in) / kOuts) * depths_of(out);
}

void conv3x3_transform(const Conv3x3& conv, int64_t first, int64_t tiles, int64_t begin,
                       int64_t end, const float* from, const float* cotangent, float* inputs,
                       float* outputs) {
  const int64_t inputs_apart = apart(padded<float>(conv.in) * tiles);
  const int64_t outputs_apart = apart(depths_of(conv.out) * kDepth * tiles);
  for (int64_t t = begin; t < end; ++t) {
    const Place at = place_of(conv, first + t);
    transform_inputs<kOuts>(conv, at, from, inputs + t * kOuts, inputs_apart, tiles * kOuts);
    transform_outputs<kDepth>(conv, at, cotangent, outputs + t * kDepth, outputs_apart,
                              tiles * kDepth);
  }
}

void conv3x3_sums(const Conv3x3& conv, int64_t tiles, int64_t begin, int64_t end,
                  const float* inputs, const float* outputs, bool add, float* sums) {
  const int64_t stripes = padded<float>(conv.in) / kOuts, blocks = depths_of(conv.out);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit % blocks, stripe = unit / blocks % stripes;
    const int64_t e = unit / blocks / stripes, o = block * kDepth;
    const float* left = outputs + e * apart(blocks * kDepth * tiles) + block * tiles * kDepth;
    // In the last stripe, columns beyond the channels were never written; nor are their sums read.
    const float* right = inputs + e * apart(stripes * kOuts * tiles) + stripe * tiles * kOuts;
    gemm_tile_t<MultiplyAdd<float>, kDepth>(
        conv.out - o < kDepth ? conv.out - o : kDepth, kOuts, tiles, left, right, kOuts,
        sums + ((e * stripes + stripe) * conv.out + o) * kOuts, kOuts, add);
  }
}

void conv3x3_weight_gradient(const Conv3x3& conv, int64_t begin, int64_t end, const float* sums,
                             float* to) {
  const int64_t element = padded<float>(conv.in) * conv.out;
  for (int64_t o = begin; o < end; ++o) {
    for (int64_t c = 0; c < conv.in; c += kLane) {
      const float* sum = sums + (c / kOuts * conv.out + o) * kOuts + c % kOuts;
      Vec<float> columns[4][3];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const Vec<float> column[4] = {
            load<float>(sum + j * element), load<float>(sum + (4 + j) * element),
            load<float>(sum + (8 + j) * element), load<float>(sum + (12 + j) * element)};
        times_gt(column, columns[j]);
      }
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        const Vec<float> row[4] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
        Vec<float> taps[3];
        times_gt(row, taps);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          store_some(to + (9 * o + 3 * i + j) * conv.in + c, taps[j], conv.in - c);
        }
      }
    }
  }
}

}  // namespace pinmem::PINMEM_ISA
