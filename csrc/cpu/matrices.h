// Small dense matrices of a call, in the accumulation type: parameters, what is made of them, and
// the sums that become their gradients. For glue only.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <type_traits>

#include "parallel.h"
#include "simd/dense.h"
#include "tensor.h"

namespace pinmem {

/// Uninitialised memory, aligned to a vector.
template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t count = 0) : data_(allocate(count), &std::free) {}
  A* data() const { return data_.get(); }

 private:
  static A* allocate(int64_t count) {
    if (count <= 0) return nullptr;
    const auto bytes = (static_cast<size_t>(count) * sizeof(A) + 63) / 64 * 64;
    void* data = std::aligned_alloc(64, bytes);
    STD_TORCH_CHECK(data != nullptr, "out of memory: ", bytes, " bytes of scratch");
    return static_cast<A*>(data);
  }
  std::unique_ptr<A, decltype(&std::free)> data_;
};

template <class T>
Matrix<T> transposed(const Matrix<T>& m) {
  return {m.data, m.columns, m.rows, m.column_stride, m.row_stride};
}

/// Some columns of a matrix.
template <class T>
Matrix<T> columns_of(const Matrix<T>& m, int64_t first, int64_t count) {
  return {m.data + first * m.column_stride, m.rows, count, m.row_stride, m.column_stride};
}

/// Some rows of a matrix.
template <class T>
Matrix<T> rows_of(const Matrix<T>& m, int64_t first, int64_t count) {
  return {m.data + first * m.row_stride, count, m.columns, m.row_stride, m.column_stride};
}

/// A matrix in padded rows, the right operand of products.
template <class A>
class Rows {
 public:
  Rows(int64_t rows, int64_t columns)
      : rows_(rows),
        columns_(columns),
        stride_(PINMEM_CALL(padded_columns<A>)(columns)),
        data_(rows * stride_) {}

  template <class T>
  explicit Rows(const Matrix<T>& from) : Rows(from.rows, from.columns) {
    PINMEM_CALL(pack_rows<A, T>)(from, data());
  }

  A* data() const { return data_.data(); }
  int64_t stride() const { return stride_; }
  Matrix<A> matrix() const { return {data(), rows_, columns_, stride_, 1}; }

 private:
  int64_t rows_, columns_, stride_;
  Buffer<A> data_;
};

/// Packs a matrix [rows, steps] into panels, by pack(first panel, last panel), in parallel.
template <class Pack>
void for_panels(int64_t panels, int64_t steps, const Pack& pack) {
  const int64_t block = std::max<int64_t>(1, (1 << 14) / (steps * PINMEM_CALL(panel_rows)()));
  for_blocks(panels, block, [&](int64_t, int64_t begin, int64_t end) { pack(begin, end); });
}

/// A matrix in panels, the left operand of products.
template <class A>
Buffer<A> panels_of(const Matrix<A>& from) {
  const int64_t height = PINMEM_CALL(panel_rows)();
  const int64_t count = num_blocks(from.rows, height);
  Buffer<A> panels(count * height * from.columns);
  for_panels(count, from.columns, [&](int64_t begin, int64_t end) {
    PINMEM_CALL(pack_panels<A>)(from, begin, end, panels.data());
  });
  return panels;
}

/// The same in pairs of bfloat16 along the rows.
inline Buffer<uint32_t> pair_panels_of(const Matrix<float>& from) {
  const int64_t height = PINMEM_CALL(panel_rows)();
  const int64_t count = num_blocks(from.rows, height);
  Buffer<uint32_t> panels(count * height * num_blocks(from.columns, 2));
  for_panels(count, from.columns, [&](int64_t begin, int64_t end) {
    PINMEM_CALL(pack_pair_panels)(from, begin, end, panels.data());
  });
  return panels;
}

/// to += left right.
template <class A>
void add_product(const Matrix<A>& left, const Matrix<A>& right, const Rows<A>& to,
                 bool add = true) {
  PINMEM_CALL(multiply<A>)(left.rows, to.stride(), left.columns, panels_of(left).data(),
                           Rows<A>(right).data(), to.data(), add);
}

template <class A>
Rows<A> product(const Matrix<A>& left, const Matrix<A>& right) {
  Rows<A> to(left.rows, right.columns);
  add_product(left, right, to, false);
  return to;
}

/// A parameter, of the type of the map or float32, in the accumulation type.
template <class A>
class Parameter {
 public:
  Parameter(const char* name, const Tensor& tensor) {
    check_contiguous(name, tensor);
    STD_TORCH_CHECK(tensor.dim() == 2, name, ": expected a matrix");
    const int64_t rows = tensor.size(0), columns = tensor.size(1);
    // For a map of double the parameter is double or float, for others bfloat16 or float.
    using Own = std::conditional_t<std::is_same_v<A, double>, double, bfloat16>;
    dispatch_parameter<Own>(name, tensor, [&](auto type) {
      using T = typename decltype(type)::type;
      const Matrix<T> given{read<T>(tensor), rows, columns, columns, 1};
      if constexpr (std::is_same_v<T, A>) {
        matrix_ = given;
      } else {
        matrix_ = copy_.emplace(given).matrix();
      }
    });
  }
  const Matrix<A>& matrix() const { return matrix_; }

 private:
  std::optional<Rows<A>> copy_;
  Matrix<A> matrix_;
};

/// Rounds a matrix into some columns of a result, from `column` on.
template <class A>
void round_into(const Matrix<A>& from, const Tensor& to, int64_t column = 0) {
  using Own = std::conditional_t<std::is_same_v<A, double>, double, bfloat16>;
  dispatch_parameter<Own>("result", to, [&](auto type) {
    using T = typename decltype(type)::type;
    PINMEM_CALL(unpack_rows<A, T>)(from, write<T>(to) + column, to.size(1));
  });
}

/// A result of the type and shape of a parameter.
template <class A>
Tensor rounded(const Matrix<A>& from, const Tensor& parameter) {
  const Tensor to = empty({from.rows, from.columns}, parameter.scalar_type());
  round_into(from, to);
  return to;
}

}  // namespace pinmem
