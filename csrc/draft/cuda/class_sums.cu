// Per-class sums of normalised features under soft labels (docs/math.md 3).
//
// Bytes, for N pixels of C channels of e bytes: forward reads N C e and four labels a pixel, and
// writes and reads one partial sum [K,C] of 4 bytes an element for every two tiles of 32 pixels (at
// most 512); backward reads and writes N C e. Operations: 4 multiply-adds an element, far below the
// bytes. At N=18,432, C=256, bfloat16 the floor is 9.4 MB, 2.3 us at 4.1 TB/s; the launches cost as
// much. Launches: 2 forward, 1 backward, 3 second order.
//
// The one-hot labels are never formed: a pixel reads the four labels around it and has at most four
// classes, mostly one. Forward, a block brings a tile of pixels to shared memory once, takes their
// norms, and then every thread owns a channel: it goes through the pixels with a register for the
// class at hand, which it adds to the block's sums when the class changes. All threads see the same
// classes, so they never diverge, and no two write to the same place.
#include <tuple>

#include "features.h"
#include "features_glue.h"
#include "upsampling.h"

namespace pinmem {
namespace {

constexpr int kThreads = 256;
constexpr int kTilePixels = 32;

/// The classes of a pixel and their weights, equal ones joined; class -1 where there are fewer.
template <class A>
struct SoftLabel {
  int label[4];
  A weight[4];
};

struct SoftLabels {
  Labels labels;
  Axis rows, columns;  // from the labels to the features
  int64_t image_pixels;

  /// Of pixel `pixel` of run `image`.
  template <class A>
  __device__ SoftLabel<A> load(int64_t image, int64_t pixel) const {
    const int64_t at = image * image_pixels + pixel;  // a run may hold several images
    const int64_t batch = divide(at, image_pixels);
    const int64_t in_image = at - batch * image_pixels;
    const int64_t i = divide(in_image, columns.out), j = in_image - i * columns.out;
    const int64_t y = rows.cell_of(i), x = columns.cell_of(j);
    const A ly = rows.fraction<A>(i, y), lx = columns.fraction<A>(j, x);
    const int64_t y_next = y + 1 < rows.in ? y + 1 : y, x_next = x + 1 < columns.in ? x + 1 : x;
    const int64_t above = (batch * rows.in + y) * columns.in;
    const int64_t below = (batch * rows.in + y_next) * columns.in;
    SoftLabel<A> soft{{labels.load(above + x), labels.load(above + x_next), labels.load(below + x),
                       labels.load(below + x_next)},
                      {(1 - ly) * (1 - lx), (1 - ly) * lx, ly * (1 - lx), ly * lx}};
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      if (soft.weight[a] == 0) soft.label[a] = -1;
#pragma unroll
      for (int b = 0; b < a; ++b) {
        if (soft.label[a] >= 0 && soft.label[a] == soft.label[b]) {
          soft.weight[b] += soft.weight[a];
          soft.label[a] = -1;
        }
      }
    }
    return soft;
  }
};

// --- Sums ----------------------------------------------------------------------------------------

template <class T>
struct Sums {
  using A = accumulator_t<T>;
  Runs runs;
  SoftLabels soft;
  int channels, num_classes;
  int tile_pixels, pitch;  // of a tile in shared memory
  bool aligned;
  const T* features;
  const T* direction;  // second order: lies as the features do
  int64_t tiles, tiles_each;
  bool shared_sums;
  A* partials;  // of every block: sums [K,C], then masses [K]

  __host__ __device__ int64_t size() const {
    return static_cast<int64_t>(num_classes) * (channels + 1);
  }
  __host__ __device__ int tile_elements() const {
    return runs.channels_last ? tile_pixels * pitch : channels * pitch;
  }
};

/// What a pixel's feature is multiplied with to be normalised (second order: and its direction).
template <class A>
struct PixelScale {
  A feature, direction;
};

/// Copies a tile of a map to shared memory as it lies: [pixel][channel] or [channel][pixel].
template <class T>
__device__ void load_tile(const Sums<T>& task, const PixelTile& tile, const T* from, T* to) {
  constexpr int kSize = Vector16<T>::size;
  const int inner = task.runs.channels_last ? task.channels : tile.count;
  const int outer = task.runs.channels_last ? tile.count : task.channels;
  const int64_t first = task.runs.offset(tile.image, tile.begin, 0, task.channels);
  const int64_t step = task.runs.channels_last ? task.channels : task.runs.pixels;
  // A tile's last vector may reach past its pixels only where the run does too.
  if (task.aligned && inner % kSize == 0) {
    const unsigned vectors = static_cast<unsigned>(inner) / kSize;
    for (unsigned i = threadIdx.x; i < vectors * outer; i += kThreads) {
      const unsigned o = i / vectors, v = (i - o * vectors) * kSize;
      const auto vector = *reinterpret_cast<const Vector16<T>*>(from + first + o * step + v);
      T* place = to + o * task.pitch + v;
      if (task.runs.channels_last) {
        *reinterpret_cast<Vector16<T>*>(place) = vector;
      } else {
#pragma unroll
        for (int k = 0; k < kSize; ++k) place[k] = vector.at[k];
      }
    }
    return;
  }
  for (unsigned i = threadIdx.x; i < static_cast<unsigned>(inner * outer); i += kThreads) {
    const unsigned o = i / static_cast<unsigned>(inner), n = i - o * inner;
    to[o * task.pitch + n] = from[first + o * step + n];
  }
}

template <class T, bool kSecond>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    class_sums_block(const __grid_constant__ Sums<T> task) {
  using A = accumulator_t<T>;
  __shared__ SoftLabel<A> soft[kTilePixels];
  __shared__ PixelScale<A> scales[kTilePixels];
  T* tile_features = dynamic_shared<T>();
  T* tile_direction = tile_features + task.tile_elements();
  A* own = task.partials + blockIdx.x * task.size();
  A* sums = task.shared_sums
                ? reinterpret_cast<A*>(tile_features + (kSecond ? 2 : 1) * task.tile_elements())
                : own;
  const int size = static_cast<int>(task.size());
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int pixel_step = task.runs.channels_last ? task.pitch : 1;
  const int channel_step = task.runs.channels_last ? 1 : task.pitch;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) sums[i] = 0;

  const int64_t begin = blockIdx.x * task.tiles_each;
  const int64_t end = begin + task.tiles_each < task.tiles ? begin + task.tiles_each : task.tiles;
  for (int64_t index = begin; index < end; ++index) {
    const PixelTile tile(task.runs, index, task.tile_pixels);
    __syncthreads();
    load_tile(task, tile, task.features, tile_features);
    if (kSecond) load_tile(task, tile, task.direction, tile_direction);
    if (static_cast<int>(threadIdx.x) < tile.count) {
      soft[threadIdx.x] = task.soft.template load<A>(tile.image, tile.begin + threadIdx.x);
    }
    __syncthreads();
    for (int p = warp; p < tile.count; p += kThreads / kWarp) {
      A squared = 0, product = 0;
      for (int c = lane; c < task.channels; c += kWarp) {
        const int at = p * pixel_step + c * channel_step;
        const A x = widen(tile_features[at]);
        squared += x * x;
        if (kSecond) product += x * widen(tile_direction[at]);
      }
      squared = warp_sum(squared);
      if (kSecond) product = warp_sum(product);
      bool linear;
      const A r = inverse_norm(squared, linear);
      if (lane == 0) {
        scales[p].feature = !kSecond ? r : linear ? A(0) : -r * r * (r * product);
        scales[p].direction = r;
      }
    }
    __syncthreads();
    // Channel C stands for the constant 1: its sums are the masses.
    for (int c = static_cast<int>(threadIdx.x); c < task.channels + (kSecond ? 0 : 1);
         c += kThreads) {
      A* to = sums + (c < task.channels ? c : task.num_classes * task.channels);
      const int class_step = c < task.channels ? task.channels : 1;
      int at_hand = -1;
      A sum = 0;
      for (int p = 0; p < tile.count; ++p) {
        A q = 1;
        if (c < task.channels) {
          const int at = p * pixel_step + c * channel_step;
          q = scales[p].feature * widen(tile_features[at]);
          if (kSecond) q += scales[p].direction * widen(tile_direction[at]);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int label = soft[p].label[e];
          if (label < 0) continue;
          if (label != at_hand) {
            if (at_hand >= 0) to[at_hand * class_step] += sum;
            at_hand = label;
            sum = 0;
          }
          sum += soft[p].weight[e] * q;
        }
      }
      if (at_hand >= 0) to[at_hand * class_step] += sum;
    }
  }
  if (!task.shared_sums) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) own[i] = sums[i];
}

// --- Gradients -----------------------------------------------------------------------------------

template <class T>
struct Gradient {
  using A = accumulator_t<T>;
  Runs runs;
  SoftLabels soft;
  int channels;
  bool aligned;
  const T* features;
  const T* direction;  // second order
  const A* grad_sums;  // [K,C]
  T* gradient;
};

/// gradient = cotangent * e + feature * x + direction * v, per pixel.
template <class A>
struct Factors {
  A cotangent, feature, direction;
};

/// The sums over channels that the factors follow from: x.x, x.e, x.v, v.e.
template <class A>
struct Products {
  A xx, xe, xv, ve;
};

template <bool kSecond, class A>
__device__ __forceinline__ Factors<A> factors_of(const Products<A>& sums) {
  bool linear;
  const A r = inverse_norm(sums.xx, linear);
  if (!kSecond) return {r, linear ? A(0) : -r * r * (r * sums.xe), A(0)};
  if (linear) return {0, 0, 0};
  const A qe = r * sums.xe, qv = r * sums.xv;
  return {-r * r * qv, r * r * (r * (3 * qv * qe - sums.ve)), -r * r * qe};
}

/// The cotangent of a normalised feature, channels c .. c + kSize: the sums' cotangents, weighted.
template <int kSize, class A>
__device__ __forceinline__ void cotangent_of(const SoftLabel<A>& soft, const A* grad_sums,
                                             int channels, int c, bool aligned, A (&e)[kSize]) {
  constexpr int kPart = Vector16<A>::size;
#pragma unroll
  for (int i = 0; i < kSize; ++i) e[i] = 0;
#pragma unroll
  for (int a = 0; a < 4; ++a) {
    if (soft.label[a] < 0) continue;
    const A* row = grad_sums + static_cast<int64_t>(soft.label[a]) * channels + c;
    if (kSize >= kPart && aligned) {
#pragma unroll
      for (int i = 0; i < kSize; i += kPart) {
        const auto part = *reinterpret_cast<const Vector16<A>*>(row + i);
#pragma unroll
        for (int j = 0; j < kPart && i + j < kSize; ++j) e[i + j] += soft.weight[a] * part.at[j];
      }
      continue;
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (c + i < channels) e[i] += soft.weight[a] * row[i];
    }
  }
}

template <bool kSecond, int kSize, class A>
__device__ __forceinline__ void add_products(const A (&x)[kSize], const A (&v)[kSize],
                                             const A (&e)[kSize], Products<A>& sums) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    sums.xx += x[i] * x[i];
    sums.xe += x[i] * e[i];
    if (kSecond) {
      sums.xv += x[i] * v[i];
      sums.ve += v[i] * e[i];
    }
  }
}

/// channels_last: a warp a pixel, 16 bytes a lane.
template <class T, bool kSecond>
__device__ void gradient_by_pixel(const Gradient<T>& task, const PixelTile& tile,
                                  const SoftLabel<accumulator_t<T>>* soft) {
  using A = accumulator_t<T>;
  constexpr int kSize = Vector16<T>::size;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int p = warp; p < tile.count; p += kThreads / kWarp) {
    const int64_t at = task.runs.offset(tile.image, tile.begin + p, 0, task.channels);
    Products<A> sums{0, 0, 0, 0};
    A x[kSize], v[kSize] = {}, e[kSize];
    const auto load = [&](int c) {
      load_vector<T, A>(task.features + at + c, task.channels - c, task.aligned, x);
      if (kSecond) {
        load_vector<T, A>(task.direction + at + c, task.channels - c, task.aligned, v);
      }
      cotangent_of<kSize, A>(soft[p], task.grad_sums, task.channels, c, task.aligned, e);
    };
    for (int c = lane * kSize; c < task.channels; c += kWarp * kSize) {
      load(c);
      add_products<kSecond, kSize, A>(x, v, e, sums);
    }
    sums.xx = warp_sum(sums.xx);
    sums.xe = warp_sum(sums.xe);
    if (kSecond) {
      sums.xv = warp_sum(sums.xv);
      sums.ve = warp_sum(sums.ve);
    }
    const Factors<A> factors = factors_of<kSecond>(sums);
    for (int c = lane * kSize; c < task.channels; c += kWarp * kSize) {
      // Of a feature that fits one step the registers still hold it.
      if (task.channels > kWarp * kSize) load(c);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        x[i] = factors.cotangent * e[i] + factors.feature * x[i];
        if (kSecond) x[i] += factors.direction * v[i];
      }
      store_vector<T, A>(task.gradient + at + c, task.channels - c, task.aligned, x);
    }
  }
}

/// NCHW: a lane a pixel, the warps share the channels.
template <class T, bool kSecond>
__device__ void gradient_by_plane(const Gradient<T>& task, const PixelTile& tile,
                                  const SoftLabel<accumulator_t<T>>* soft) {
  using A = accumulator_t<T>;
  constexpr int kWarps = kThreads / kWarp;
  __shared__ Products<A> shares[kWarps][kTilePixels];
  const int p = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const bool inside = p < tile.count;
  const SoftLabel<A> label = soft[inside ? p : 0];
  const int64_t at = task.runs.offset(tile.image, tile.begin + p, 0, task.channels);
  Products<A> sums{0, 0, 0, 0};
  A x[1], v[1] = {0}, e[1];
  const auto load = [&](int c) {
    x[0] = widen(task.features[at + c * task.runs.pixels]);
    if (kSecond) v[0] = widen(task.direction[at + c * task.runs.pixels]);
    cotangent_of<1, A>(label, task.grad_sums, task.channels, c, false, e);
  };
  if (inside) {
#pragma unroll 4
    for (int c = warp; c < task.channels; c += kWarps) {
      load(c);
      add_products<kSecond, 1, A>(x, v, e, sums);
    }
  }
  shares[warp][p] = sums;
  __syncthreads();
  sums = shares[0][p];
  for (int other = 1; other < kWarps; ++other) {
    sums.xx += shares[other][p].xx;
    sums.xe += shares[other][p].xe;
    sums.xv += shares[other][p].xv;
    sums.ve += shares[other][p].ve;
  }
  if (!inside) return;
  const Factors<A> factors = factors_of<kSecond>(sums);
#pragma unroll 4
  for (int c = warp; c < task.channels; c += kWarps) {
    load(c);
    A value = factors.cotangent * e[0] + factors.feature * x[0];
    if (kSecond) value += factors.direction * v[0];
    task.gradient[at + c * task.runs.pixels] = narrow<T>(value);
  }
}

template <class T, bool kSecond>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    class_sums_gradient(const __grid_constant__ Gradient<T> task) {
  using A = accumulator_t<T>;
  __shared__ SoftLabel<A> soft[kTilePixels];
  const PixelTile tile(task.runs, blockIdx.x, kTilePixels);
  if (static_cast<int>(threadIdx.x) < tile.count) {
    soft[threadIdx.x] = task.soft.template load<A>(tile.image, tile.begin + threadIdx.x);
  }
  __syncthreads();
  if (task.runs.channels_last) {
    gradient_by_pixel<T, kSecond>(task, tile, soft);
  } else {
    gradient_by_plane<T, kSecond>(task, tile, soft);
  }
}

// --- Glue ----------------------------------------------------------------------------------------

SoftLabels soft_labels(const Map& map, const Tensor& labels, int64_t num_classes,
                       int64_t ignore_index) {
  return {labels_of("labels", labels, map.batch, num_classes, ignore_index),
          {labels.size(1), map.height},
          {labels.size(2), map.width},
          map.pixels()};
}

/// sums (and mass, in the forward pass) of the features, or of their normalisation's derivative
/// along a direction.
template <class T>
void run_sums(const Stream& stream, const Map& map, const SoftLabels& soft, int64_t num_classes,
              const T* features, const T* direction, const Tensor& sums, const Tensor* mass) {
  using A = accumulator_t<T>;
  constexpr int kSize = Vector16<T>::size;
  const auto element = static_cast<int64_t>(sizeof(T));
  const int64_t maps = direction == nullptr ? 1 : 2;
  Sums<T> task{};
  task.runs = runs_of(map);
  task.soft = soft;
  task.channels = static_cast<int>(map.channels);
  task.num_classes = static_cast<int>(num_classes);
  task.features = features;
  task.direction = direction;
  task.aligned =
      vectors_fit<T>(task.runs, map.channels) && aligned16(features) && aligned16(direction);
  task.tile_pixels = kTilePixels;
  while (task.tile_pixels > 1 && maps * task.tile_pixels * map.channels * element > 64 << 10) {
    task.tile_pixels /= 2;
  }
  // In NCHW an odd number of words, since threads read along the channels.
  const int a_word = element == 2 ? 2 : 1;
  task.pitch = task.runs.channels_last ? static_cast<int>(ceil_div(map.channels, kSize)) * kSize
                                       : (ceil_div(task.tile_pixels, a_word) | 1) * a_word;
  const Shares shares = share_tiles(task.runs.tiles(task.tile_pixels), task.size());
  task.tiles = task.runs.tiles(task.tile_pixels);
  task.tiles_each = shares.tiles_each;
  const int64_t tile_bytes = ceil_div(maps * task.tile_elements() * element, 16) * 16;
  const int64_t sum_bytes = task.size() * static_cast<int64_t>(sizeof(A));
  // Next to them lie the labels and scales of the tile's pixels.
  task.shared_sums = tile_bytes + sum_bytes <= Stream::kMostShared - (4 << 10);

  Scratch scratch;
  const int64_t partials = scratch.take<A>(shares.count * task.size());
  scratch.allocate(sums);
  task.partials = scratch.at<A>(partials);
  stream.launch(direction == nullptr ? class_sums_block<T, false> : class_sums_block<T, true>,
                shares.count, kThreads, tile_bytes + (task.shared_sums ? sum_bytes : 0), task);

  PartialSums<A> total{};
  total.partials = task.partials;
  total.count = shares.count;
  total.stride = task.size();
  total.split = num_classes * map.channels;
  total.size = total.split + (mass == nullptr ? 0 : num_classes);
  total.first = write<A>(sums);
  total.second = mass == nullptr ? nullptr : write<A>(*mass);
  total.first_type = total.second_type = sizeof(A) == 8 ? Element::f64 : Element::f32;
  stream.launch(add_partials<A>, total.blocks(), kSumThreads, 0, total);
}

template <class T>
void run_gradient(const Stream& stream, const Map& map, const SoftLabels& soft, const T* features,
                  const T* direction, const Tensor& grad_sums, const Tensor& gradient) {
  Gradient<T> task{};
  task.runs = runs_of(map);
  task.soft = soft;
  task.channels = static_cast<int>(map.channels);
  task.features = features;
  task.direction = direction;
  task.grad_sums = read<accumulator_t<T>>(grad_sums);
  task.gradient = write<T>(gradient);
  task.aligned = vectors_fit<T>(task.runs, map.channels) && aligned16(features) &&
                 aligned16(direction) && aligned16(task.grad_sums) && aligned16(task.gradient);
  stream.launch(direction == nullptr ? class_sums_gradient<T, false> : class_sums_gradient<T, true>,
                task.runs.tiles(kTilePixels), kThreads, 0, task);
}

void check_sums(const char* name, const Tensor& sums, int64_t num_classes, const Map& map) {
  check_contiguous(name, sums);
  STD_TORCH_CHECK(sums.dim() == 2 && sums.size(0) == num_classes && sums.size(1) == map.channels,
                  name, ": expected [", num_classes, ",", map.channels, "]");
}

std::tuple<Tensor, Tensor> class_sums(Tensor features, Tensor labels, int64_t num_classes,
                                      int64_t ignore_index) {
  const Map map = map_of("features", features);
  const SoftLabels soft = soft_labels(map, labels, num_classes, ignore_index);
  const Stream stream(features);
  return dispatch_elements("features", features, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = typename decltype(type)::type;
    constexpr ScalarType kSum = scalar_type<accumulator_t<T>>();
    const Tensor sums = empty_beside(features, {num_classes, map.channels}, kSum);
    const Tensor mass = empty_beside(features, {num_classes}, kSum);
    run_sums<T>(stream, map, soft, num_classes, read<T>(features), nullptr, sums, &mass);
    return {sums, mass};
  });
}

Tensor class_sums_backward(Tensor grad_sums, Tensor features, Tensor labels, int64_t num_classes,
                           int64_t ignore_index) {
  const Map map = map_of("features", features);
  const SoftLabels soft = soft_labels(map, labels, num_classes, ignore_index);
  check_sums("grad_sums", grad_sums, num_classes, map);
  const Stream stream(features);
  const Tensor gradient = empty_map_beside(features, map, map.channels, features.scalar_type());
  dispatch_elements("features", features, [&](auto type) {
    using T = typename decltype(type)::type;
    run_gradient<T>(stream, map, soft, read<T>(features), nullptr, grad_sums, gradient);
  });
  return gradient;
}

std::tuple<Tensor, Tensor> class_sums_double_backward(Tensor gg_features, Tensor grad_sums,
                                                      Tensor features, Tensor labels,
                                                      int64_t num_classes, int64_t ignore_index) {
  const Map map = map_of("features", features);
  const SoftLabels soft = soft_labels(map, labels, num_classes, ignore_index);
  check_sums("grad_sums", grad_sums, num_classes, map);
  check_map("gg_features", gg_features, map, map.channels);
  const Stream stream(features);
  const Tensor gg_sums =
      empty_beside(features, {num_classes, map.channels}, grad_sums.scalar_type());
  const Tensor gradient = empty_map_beside(features, map, map.channels, features.scalar_type());
  dispatch_elements("features", features, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* x = read<T>(features);
    const T* v = read<T>(gg_features);
    run_sums<T>(stream, map, soft, num_classes, x, v, gg_sums, nullptr);
    run_gradient<T>(stream, map, soft, x, v, grad_sums, gradient);
  });
  return {gg_sums, gradient};
}

}  // namespace
}  // namespace pinmem

STABLE_TORCH_LIBRARY_IMPL(pinmem_cuda, PINMEM_CUDA_KEY, m) {
  m.impl("class_sums", TORCH_BOX(&pinmem::class_sums));
  m.impl("class_sums_backward", TORCH_BOX(&pinmem::class_sums_backward));
  m.impl("class_sums_double_backward", TORCH_BOX(&pinmem::class_sums_double_backward));
}
