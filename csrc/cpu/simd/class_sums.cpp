// Sums of normalised features under soft labels and their derivatives (docs/math.md 3).
#include "simd/class_sums.h"

#include "simd/transpose.h"
#include "simd/vec.h"

namespace pinmem::PINMEM_ISA {
namespace {

// Bytes of pixel rows held at a time: they are read twice, the second time from the cache.
constexpr int64_t kTileBytes = 64 << 10;

// Pixels of a tile: whole vectors, for the transposition.
template <class A>
PINMEM_INLINE int64_t tile_pixels(int64_t stride) {
  const int64_t fit = kTileBytes / (stride * static_cast<int64_t>(sizeof(A)));
  const int64_t vectors = fit / kLanes<A>;
  return (vectors < 1 ? 1 : vectors > 8 ? 8 : vectors) * kLanes<A>;
}

// Pixels [begin, end), all of one image, as rows [pixels, stride] of C channels and zeros.
template <class A, class T>
void load_pixels(const SoftLabels<A>& task, const T* map, int64_t begin, int64_t end, A* rows) {
  const int64_t channels = task.channels;
  const int64_t stride = task.stride;
  const int64_t pixels = task.height * task.width;
  const int64_t image = begin / pixels;
  if (task.channels_last) {
    for (int64_t p = begin; p < end; ++p) {
      const T* from = map + p * channels;
      A* to = rows + (p - begin) * stride;
      int64_t c = 0;
      for (; c + kLanes<A> <= channels; c += kLanes<A>) store<A>(to + c, load<A>(from + c));
      for (; c < channels; ++c) to[c] = to_acc<A>(from[c]);
    }
  } else {
    transpose<A>(map + image * channels * pixels + begin % pixels, pixels, channels, end - begin,
                 rows, stride);
  }
  for (int64_t p = 0; p < end - begin; ++p) {
    for (int64_t c = channels; c < stride; ++c) rows[p * stride + c] = A{0};
  }
}

template <class A, class T>
void store_pixels(const SoftLabels<A>& task, const A* rows, int64_t begin, int64_t end, T* map) {
  const int64_t channels = task.channels;
  const int64_t stride = task.stride;
  const int64_t pixels = task.height * task.width;
  const int64_t image = begin / pixels;
  if (!task.channels_last) {
    transpose<A>(rows, stride, end - begin, channels,
                 map + image * channels * pixels + begin % pixels, pixels);
    return;
  }
  for (int64_t p = begin; p < end; ++p) {
    const A* from = rows + (p - begin) * stride;
    T* to = map + p * channels;
    int64_t c = 0;
    for (; c + kLanes<A> <= channels; c += kLanes<A>) store<A>(to + c, load<A>(from + c));
    for (; c < channels; ++c) to[c] = from_acc<T>(from[c]);
  }
}

// The classes that have a share of a pixel: at most four, each once.
template <class A>
struct SoftLabel {
  int count;
  int64_t label[4];
  A weight[4];
};

template <class A, class L>
PINMEM_INLINE SoftLabel<A> soft_label_of(const SoftLabels<A>& task, const L* labels,
                                         int64_t pixel) {
  const int64_t pixels = task.height * task.width;
  const int64_t y = pixel % pixels / task.width;
  const int64_t x = pixel % task.width;
  const int64_t below = task.row[y] + 1 < task.label_height ? task.label_width : 0;
  const int64_t right = task.column[x] + 1 < task.label_width ? 1 : 0;
  const L* corner = labels + (pixel / pixels * task.label_height + task.row[y]) * task.label_width +
                    task.column[x];
  const A fy = task.row_fraction[y];
  const A fx = task.column_fraction[x];
  const L corners[4] = {corner[0], corner[right], corner[below], corner[below + right]};
  const A weights[4] = {(A{1} - fy) * (A{1} - fx), (A{1} - fy) * fx, fy * (A{1} - fx), fy * fx};
  SoftLabel<A> soft{};
  for (int i = 0; i < 4; ++i) {
    const auto label = static_cast<int64_t>(corners[i]);
    const bool counts = label >= 0 && label < task.num_classes && label != task.ignore_index;
    if (!counts || weights[i] == A{0}) continue;
    int j = 0;
    while (j < soft.count && soft.label[j] != label) ++j;
    soft.label[j] = label;
    soft.weight[j] += weights[i];
    if (j == soft.count) ++soft.count;
  }
  return soft;
}

template <class A>
PINMEM_INLINE A dot(const A* a, const A* b, int64_t stride) {
  Vec<A> sum = Vec<A>{};
  for (int64_t c = 0; c < stride; c += kLanes<A>) sum += load<A>(a + c) * load<A>(b + c);
  return reduce_add<A>(sum);
}

template <class A>
PINMEM_INLINE void add_scaled(A* to, A factor, const A* from, int64_t stride) {
  for (int64_t c = 0; c < stride; c += kLanes<A>) {
    store<A>(to + c, load<A>(to + c) + factor * load<A>(from + c));
  }
}

template <class A>
void clear(A* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = A{0};
}

// r with q = r x; `curved` is false where |x| is so small that q is linear in x.
template <class A>
struct Norm {
  A inverse;
  bool curved;
};

PINMEM_INLINE float square_root(float value) { return __builtin_sqrtf(value); }
PINMEM_INLINE double square_root(double value) { return __builtin_sqrt(value); }

template <class A>
PINMEM_INLINE Norm<A> norm_of(const A* x, int64_t stride) {
  constexpr A least = static_cast<A>(1e-12);
  const A norm = square_root(dot(x, x, stride));
  const bool linear = norm <= least;
  return {A{1} / (linear ? least : norm), !linear};
}

// e, the cotangent of a pixel's q.
template <class A>
PINMEM_INLINE void cotangent(const SoftLabel<A>& soft, const A* grad_sums, int64_t stride, A* e) {
  clear(e, stride);
  for (int i = 0; i < soft.count; ++i) {
    add_scaled(e, soft.weight[i], grad_sums + soft.label[i] * stride, stride);
  }
}

// Calls body(first, last) for tiles of [begin, end), each inside one image.
template <class A, class Body>
PINMEM_INLINE void for_tiles(const SoftLabels<A>& task, int64_t begin, int64_t end,
                             const Body& body) {
  const int64_t pixels = task.height * task.width;
  const int64_t tile = tile_pixels<A>(task.stride);
  while (begin < end) {
    const int64_t image_end = (begin / pixels + 1) * pixels;
    int64_t last = begin + tile < end ? begin + tile : end;
    last = last < image_end ? last : image_end;
    body(begin, last);
    begin = last;
  }
}

}  // namespace

template <class A>
int64_t class_sums_scratch(const SoftLabels<A>& task) {
  // Rows of features and of a tangent, and e.
  return (2 * tile_pixels<A>(task.stride) + 1) * task.stride * static_cast<int64_t>(sizeof(A));
}

template <class A, class T, class L>
void class_sums_chunk(const SoftLabels<A>& task, const T* features, const L* labels, int64_t begin,
                      int64_t end, A* sums, double* mass, void* scratch) {
  const int64_t stride = task.stride;
  A* const rows = static_cast<A*>(scratch);
  clear(sums, task.num_classes * stride);
  for (int64_t k = 0; k < task.num_classes; ++k) mass[k] = 0;
  for_tiles(task, begin, end, [&](int64_t first, int64_t last) {
    load_pixels(task, features, first, last, rows);
    for (int64_t p = first; p < last; ++p) {
      const SoftLabel<A> soft = soft_label_of(task, labels, p);
      if (soft.count == 0) continue;
      const A* x = rows + (p - first) * stride;
      const Norm<A> norm = norm_of(x, stride);
      for (int i = 0; i < soft.count; ++i) {
        mass[soft.label[i]] += static_cast<double>(soft.weight[i]);
        add_scaled(sums + soft.label[i] * stride, soft.weight[i] * norm.inverse, x, stride);
      }
    }
  });
}

template <class A, class T, class L>
void class_sums_backward_chunk(const SoftLabels<A>& task, const A* grad_sums, const T* features,
                               const L* labels, int64_t begin, int64_t end, T* grad_features,
                               void* scratch) {
  const int64_t stride = task.stride;
  A* const rows = static_cast<A*>(scratch);
  A* const e = rows + 2 * tile_pixels<A>(task.stride) * stride;
  for_tiles(task, begin, end, [&](int64_t first, int64_t last) {
    load_pixels(task, features, first, last, rows);
    for (int64_t p = first; p < last; ++p) {
      A* x = rows + (p - first) * stride;
      const SoftLabel<A> soft = soft_label_of(task, labels, p);
      if (soft.count == 0) {
        clear(x, stride);
        continue;
      }
      cotangent(soft, grad_sums, stride, e);
      const Norm<A> norm = norm_of(x, stride);
      const A r = norm.inverse;
      // dx = r (e - q (q.e)), in place of x.
      const A along = norm.curved ? r * r * r * dot(x, e, stride) : A{0};
      for (int64_t c = 0; c < stride; c += kLanes<A>) {
        store<A>(x + c, r * load<A>(e + c) - along * load<A>(x + c));
      }
    }
    store_pixels(task, rows, first, last, grad_features);
  });
}

template <class A, class T, class L>
void class_sums_double_backward_chunk(const SoftLabels<A>& task, const T* features_tangent,
                                      const A* grad_sums, const T* features, const L* labels,
                                      int64_t begin, int64_t end, A* sums_dot, T* grad_features,
                                      void* scratch) {
  const int64_t stride = task.stride;
  A* const rows = static_cast<A*>(scratch);
  A* const tangents = rows + tile_pixels<A>(task.stride) * stride;
  A* const e = tangents + tile_pixels<A>(task.stride) * stride;
  clear(sums_dot, task.num_classes * stride);
  for_tiles(task, begin, end, [&](int64_t first, int64_t last) {
    load_pixels(task, features, first, last, rows);
    load_pixels(task, features_tangent, first, last, tangents);
    for (int64_t p = first; p < last; ++p) {
      A* x = rows + (p - first) * stride;
      const A* v = tangents + (p - first) * stride;
      const SoftLabel<A> soft = soft_label_of(task, labels, p);
      if (soft.count == 0) {
        clear(x, stride);
        continue;
      }
      cotangent(soft, grad_sums, stride, e);
      const Norm<A> norm = norm_of(x, stride);
      const A r = norm.inverse;
      const A qv = norm.curved ? r * dot(x, v, stride) : A{0};
      const A qe = norm.curved ? r * dot(x, e, stride) : A{0};
      const A ve = norm.curved ? dot(v, e, stride) : A{0};
      // sums_dot gets m q', q' = r (v - q (q.v)).
      for (int i = 0; i < soft.count; ++i) {
        A* sum = sums_dot + soft.label[i] * stride;
        const A scaled = soft.weight[i] * r;
        const A along = scaled * r * qv;
        for (int64_t c = 0; c < stride; c += kLanes<A>) {
          store<A>(sum + c, load<A>(sum + c) + scaled * load<A>(v + c) - along * load<A>(x + c));
        }
      }
      // The derivative of dx along v: -r^2 ((q.v) e + (q.e) v + (v.e - 3 (q.v)(q.e)) q).
      const A of_e = -r * r * qv;
      const A of_v = -r * r * qe;
      const A of_x = norm.curved ? -r * r * r * (ve - A{3} * qv * qe) : A{0};
      for (int64_t c = 0; c < stride; c += kLanes<A>) {
        store<A>(x + c, of_e * load<A>(e + c) + of_v * load<A>(v + c) + of_x * load<A>(x + c));
      }
    }
    store_pixels(task, rows, first, last, grad_features);
  });
}

#define PINMEM_FOR_LABELS(A, T, L)                                                               \
  template void class_sums_chunk(const SoftLabels<A>&, const T*, const L*, int64_t, int64_t, A*, \
                                 double*, void*);                                                \
  template void class_sums_backward_chunk(const SoftLabels<A>&, const A*, const T*, const L*,    \
                                          int64_t, int64_t, T*, void*);                          \
  template void class_sums_double_backward_chunk(const SoftLabels<A>&, const T*, const A*,       \
                                                 const T*, const L*, int64_t, int64_t, A*, T*,   \
                                                 void*);
#define PINMEM_FOR_MAPS(A, T)      \
  PINMEM_FOR_LABELS(A, T, uint8_t) \
  PINMEM_FOR_LABELS(A, T, int64_t)

PINMEM_FOR_MAPS(double, double)
PINMEM_FOR_MAPS(float, float)
PINMEM_FOR_MAPS(float, bfloat16)
template int64_t class_sums_scratch(const SoftLabels<double>&);
template int64_t class_sums_scratch(const SoftLabels<float>&);

}  // namespace pinmem::PINMEM_ISA
