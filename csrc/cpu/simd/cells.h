// Cells of an upsampled map at work: softmax, loss and gradient of the output pixels between two
// source rows (docs/math.md 2).
#pragma once

#include "simd/bilinear.h"
#include "simd/scratch.h"
#include "simd/softmax.h"
#include "simd/upsampled_cross_entropy.h"
#include "simd/vec.h"

namespace pinmem::PINMEM_ISA {

/// What is wanted: the loss; the loss and its gradient; the gradient's derivative.
enum class Order { loss, first, second };

// Bytes of softmax numerators kept between the pass over pixels and the pass over classes: what
// fits the first-level cache beside the rest.
inline constexpr int64_t kNumeratorBytes = 32 << 10;
inline constexpr int64_t kMostPixels = 32;
// Output rows whose labels are held at a time.
inline constexpr int64_t kTileRows = 16;

/// The cells between two source rows. Pixels are taken a group of cells and a few vectors at a
/// time: the first pass goes pixel by pixel over the classes (maximum, numerators, loss), the
/// second class by class over the pixels (gradient), so that its sums stay in registers.
template <class A, Order order>
class Cells {
  static constexpr int64_t kLane = kLanes<A>;

 public:
  Cells(const CrossEntropy<A>& task, void* scratch)
      : task_(task),
        up_(task.up),
        channels_(task.up.channels),
        stride_(row_stride(task.up)),
        pixel_stride_((channels_ + 1) | 1),
        most_(pixels_at_once(pixel_stride_)),
        sharpness_(A{1} / task.temperature) {
    Scratch memory{static_cast<char*>(scratch)};
    const int64_t plane = channels_ * stride_;
    for (auto& rows : rows_) rows = memory.take<A>(plane);
    for (auto& sums : sums_) sums = memory.take<A>(plane);
    spare_ = memory.take<A>(plane);
    labels_ = memory.take<int32_t>(kTileRows * (up_.out_width + 1));
    ends_ = memory.take<Vec<A>>(2 * channels_);
    slopes_ = memory.take<Vec<A>>(2 * channels_);
    numerators_ = memory.take<Vec<A>>(most_ * pixel_stride_);
    left_ = memory.take<Vec<A>>(most_);
    right_ = memory.take<Vec<A>>(most_);
    bytes_ = memory.next - static_cast<char*>(scratch);
  }

  int64_t scratch_bytes() const { return bytes_; }

  /// Where to put the source row below the cells; the one that was there is now above. The same
  /// for the tangent of a second derivative.
  A* next_row() {
    swap(rows_[0], rows_[1]);
    return rows_[1];
  }
  A* next_tangent() {
    swap(rows_[2], rows_[3]);
    return rows_[3];
  }

  /// Where to put the labels of a tile's output row.
  int32_t* labels(int64_t row) { return labels_ + row * (up_.out_width + 1); }

  /// Works on the tile of output rows [begin, end).
  __attribute__((noinline)) void add(int64_t begin, int64_t end) {
    for (int64_t group = 0; group < up_.groups; ++group) add_group(group, begin, end);
  }

  double loss() const { return loss_; }

  void clear_gradient() {
    for (auto& sums : sums_) clear(sums);
  }

  /// The gradient of the source row above the cells, complete as far as these rows of cells go;
  /// the one below takes its place. Valid until the next call.
  const A* finish_row() {
    // What went to the right corner of a cell belongs to the next column's left.
    for (int64_t k = 0; k < channels_; ++k) {
      A* left = sums_[0] + k * stride_;
      const A* right = sums_[1] + k * stride_;
      for (int64_t x = 1; x < up_.width; ++x) left[x] += right[x - 1];
    }
    const A* row = sums_[0];
    swap(sums_[0], sums_[2]);
    swap(sums_[1], sums_[3]);
    swap(sums_[2], spare_);
    clear(sums_[2]);
    clear(sums_[3]);
    return row;
  }

 private:
  static int64_t pixels_at_once(int64_t pixel_stride) {
    const int64_t fit = kNumeratorBytes / (pixel_stride * kVecBytes);
    return fit < 4 ? 4 : fit > kMostPixels ? kMostPixels : fit;
  }

  static void swap(A*& a, A*& b) {
    A* const c = a;
    a = b;
    b = c;
  }

  void clear(A* plane) const {
    for (int64_t i = 0; i < channels_ * stride_; ++i) plane[i] = A{0};
  }

  PINMEM_INLINE void add_group(int64_t group, int64_t from, int64_t to) {
    const int64_t begin = up_.group_begin[group];
    const int64_t end = up_.group_begin[group + 1];
    if (begin == end) return;
    // As many whole rows as fit, or pieces of a row.
    const int64_t rows = most_ / (end - begin) > 0 ? most_ / (end - begin) : 1;
    for (int64_t y = from; y < to; y += rows) {
      const int64_t y_end = y + rows < to ? y + rows : to;
      for (int64_t v = begin; v < end; v += most_) {
        const int64_t v_end = v + most_ < end ? v + most_ : end;
        int64_t pixel = 0;
        for (int64_t row = y; row < y_end; ++row) {
          const int64_t x = group * kLane;
          const A fraction = up_.row_fraction[row];
          load_ends(rows_[0] + x, rows_[1] + x, channels_, stride_, fraction, ends_);
          if constexpr (order == Order::second) {
            load_ends(rows_[2] + x, rows_[3] + x, channels_, stride_, fraction, slopes_);
          }
          const int32_t* labels = this->labels(row - from);
          int64_t i = v;
          for (; i + 2 <= v_end; i += 2, pixel += 2) some_vectors<2>(i, labels, pixel);
          for (; i < v_end; ++i, ++pixel) some_vectors<1>(i, labels, pixel);
        }
        if constexpr (order != Order::loss) add_gradient(group * kLane, y, y_end, v_end - v);
      }
    }
    loss_ += reduce_add<A>(group_loss_);
    group_loss_ = Vec<A>{};
  }

  // The softmax of N vectors of output pixels from `vector` on, their loss and, in numerators_,
  // left_ and right_ from `pixel` on, what their gradient is made of. Several at a time, since one
  // alone is a chain of dependent instructions.
  template <int N>
  PINMEM_INLINE void some_vectors(int64_t vector, const int32_t* labels, int64_t pixel) {
    using Int = IntOf<A>;
    Vec<A> x[N], largest[N], sum[N], mean[N], weight[N];
    Vec<A>* numerators[N];
    Int place[N][kLane];
    A gathered[N][kLane];
    for (int n = 0; n < N; ++n) {
      x[n] = load<A>(up_.column_fraction + (vector + n) * kLane);
      numerators[n] = numerators_ + (pixel + n) * pixel_stride_;
      for (int64_t l = 0; l < kLane; ++l) {
        place[n][l] = static_cast<Int>(labels[up_.column[(vector + n) * kLane + l]]);
      }
      weight[n] = load<Int>(place[n]) < static_cast<Int>(channels_) ? splat<A>(A{1}) : Vec<A>{};
      if (task_.class_weight != nullptr) {
        for (int64_t l = 0; l < kLane; ++l) {
          gathered[n][l] = place[n][l] < channels_ ? task_.class_weight[place[n][l]] : A{0};
        }
        weight[n] = load<A>(gathered[n]);
      }
    }

    for (int n = 0; n < N; ++n) numerators[n][0] = largest[n] = ends_[0] + x[n] * ends_[1];
    for (int64_t k = 1; k < channels_; ++k) {
      for (int n = 0; n < N; ++n) {
        const Vec<A> z = ends_[2 * k] + x[n] * ends_[2 * k + 1];
        numerators[n][k] = z;
        largest[n] = z > largest[n] ? z : largest[n];
      }
    }
    for (int n = 0; n < N; ++n) {
      numerators[n][channels_] = Vec<A>{};
      if constexpr (order != Order::second) {
        const A* lanes = reinterpret_cast<const A*>(numerators[n]);
        for (int64_t l = 0; l < kLane; ++l) gathered[n][l] = lanes[place[n][l] * kLane + l];
      }
      sum[n] = mean[n] = Vec<A>{};
    }

    for (int64_t k = 0; k < channels_; ++k) {
      for (int n = 0; n < N; ++n) {
        const Vec<A> e = exp_of_nonpositive<A>((numerators[n][k] - largest[n]) * sharpness_);
        sum[n] += e;
        if constexpr (order != Order::loss) numerators[n][k] = e;
        if constexpr (order == Order::second) {
          mean[n] += e * (slopes_[2 * k] + x[n] * slopes_[2 * k + 1]);
        }
      }
    }

    for (int n = 0; n < N; ++n) {
      if constexpr (order != Order::second) {
        const Vec<A> below = (load<A>(gathered[n]) - largest[n]) * sharpness_;
        const Vec<A> loss = weight[n] * (log_of_at_least_one<A>(sum[n]) - below);
        group_loss_ += weight[n] == A{0} ? Vec<A>{} : loss;
      }
      if constexpr (order == Order::first) {
        A* lanes = reinterpret_cast<A*>(numerators[n]);
        for (int64_t l = 0; l < kLane; ++l) lanes[place[n][l] * kLane + l] -= sum[n][l];
      }
      if constexpr (order == Order::second) mean[n] /= sum[n];
      if constexpr (order != Order::loss) {
        const Vec<A> factor = weight[n] * task_.scale / sum[n];
        left_[pixel + n] = factor * (A{1} - x[n]);
        right_[pixel + n] = factor * x[n];
      }
    }
    if constexpr (order == Order::second) {
      // What rounding left out of the mean: under a peaked softmax the tangents less their mean are
      // no larger than that.
      Vec<A> rest[N] = {};
      for (int64_t k = 0; k < channels_; ++k) {
        for (int n = 0; n < N; ++n) {
          rest[n] += numerators[n][k] * (slopes_[2 * k] + x[n] * slopes_[2 * k + 1] - mean[n]);
        }
      }
      for (int n = 0; n < N; ++n) rest[n] /= sum[n];
      for (int64_t k = 0; k < channels_; ++k) {
        for (int n = 0; n < N; ++n) {
          numerators[n][k] *= slopes_[2 * k] + x[n] * slopes_[2 * k + 1] - mean[n] - rest[n];
        }
      }
    }
  }

  // Adds the gradient of the pixels at hand to the four corners of their cells.
  PINMEM_INLINE void add_gradient(int64_t x, int64_t y, int64_t y_end, int64_t vectors) {
    int64_t k = 0;
    for (; k + 4 <= channels_; k += 4) add_gradient_of<4>(k, x, y, y_end, vectors);
    for (; k < channels_; ++k) add_gradient_of<1>(k, x, y, y_end, vectors);
  }

  template <int N>
  PINMEM_INLINE void add_gradient_of(int64_t k, int64_t x, int64_t y, int64_t y_end,
                                     int64_t vectors) {
    const Vec<A>* numerators = numerators_ + k;
    const Vec<A>* left_factor = left_;
    const Vec<A>* right_factor = right_;
    Vec<A> upper_left[N] = {}, upper_right[N] = {}, lower_left[N] = {}, lower_right[N] = {};
    for (int64_t row = y; row < y_end; ++row) {
      Vec<A> left[N] = {}, right[N] = {};
      for (int64_t i = 0; i < vectors; ++i, numerators += pixel_stride_) {
        for (int n = 0; n < N; ++n) {
          left[n] += numerators[n] * *left_factor;
          right[n] += numerators[n] * *right_factor;
        }
        ++left_factor;
        ++right_factor;
      }
      const A lower = up_.row_fraction[row];
      const A upper = A{1} - lower;
      for (int n = 0; n < N; ++n) {
        upper_left[n] += upper * left[n];
        upper_right[n] += upper * right[n];
        lower_left[n] += lower * left[n];
        lower_right[n] += lower * right[n];
      }
    }
    for (int n = 0; n < N; ++n) {
      const int64_t at = (k + n) * stride_ + x;
      add_to(sums_[0] + at, upper_left[n]);
      add_to(sums_[1] + at, upper_right[n]);
      add_to(sums_[2] + at, lower_left[n]);
      add_to(sums_[3] + at, lower_right[n]);
    }
  }

  static PINMEM_INLINE void add_to(A* p, Vec<A> v) { store<A>(p, load<A>(p) + v); }

  const CrossEntropy<A>& task_;
  const Upsampling<A>& up_;
  const int64_t channels_, stride_;
  // Vectors from a pixel's numerators to the next: one more than there are classes, for the labels
  // that do not count, and odd, lest the same class of all pixels falls into the same cache set.
  const int64_t pixel_stride_;
  const int64_t most_;
  const A sharpness_;
  // Source rows above and below the cells: of the logits, then of the tangent.
  A* rows_[order == Order::second ? 4 : 2];
  // Gradients: left and right corners above, left and right corners below.
  A *sums_[4], *spare_;
  int32_t* labels_;
  Vec<A>*ends_, *slopes_, *numerators_, *left_, *right_;
  int64_t bytes_;
  Vec<A> group_loss_ = Vec<A>{};
  double loss_ = 0;
};

}  // namespace pinmem::PINMEM_ISA
