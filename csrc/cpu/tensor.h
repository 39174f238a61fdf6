// What the glue of every op needs of tensors, over LibTorch's stable ABI. For glue only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "dtypes.h"

namespace pinmem {

using Tensor = torch::stable::Tensor;
using ScalarType = torch::headeronly::ScalarType;
using MaybeTensor = std::optional<Tensor>;

// --- Element types -------------------------------------------------------------------------------

template <class T>
struct Type {
  using type = T;
};

template <class T>
constexpr ScalarType scalar_type();
template <>
constexpr ScalarType scalar_type<double>() {
  return ScalarType::Double;
}
template <>
constexpr ScalarType scalar_type<float>() {
  return ScalarType::Float;
}
template <>
constexpr ScalarType scalar_type<bfloat16>() {
  return ScalarType::BFloat16;
}
template <>
constexpr ScalarType scalar_type<int64_t>() {
  return ScalarType::Long;
}
template <>
constexpr ScalarType scalar_type<uint8_t>() {
  return ScalarType::Byte;
}

// Calls body(Type<T>{}) with the element type T of a float tensor: double, float or bfloat16.
template <class Body>
auto dispatch_floats(const char* name, const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return body(Type<double>{});
    case ScalarType::Float: return body(Type<float>{});
    default:
      STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::BFloat16, name,
                      ": expected float64, float32 or bfloat16");
      return body(Type<bfloat16>{});
  }
}

// The same for a parameter of a map of T: it has the map's own type or float32.
template <class T, class Body>
auto dispatch_parameter(const char* name, const Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == scalar_type<T>()) return body(Type<T>{});
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, name,
                  ": expected the type of the map or float32");
  return body(Type<float>{});
}

// The same for labels: uint8_t or int64_t.
template <class Body>
auto dispatch_labels(const char* name, const Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == ScalarType::Byte) return body(Type<uint8_t>{});
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long, name, ": expected uint8 or int64");
  return body(Type<int64_t>{});
}

// --- Data ----------------------------------------------------------------------------------------

template <class T>
const T* read(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.scalar_type() == scalar_type<T>(),
                  "a tensor of another type was expected");
  return static_cast<const T*>(tensor.const_data_ptr());
}

// Null where the tensor is absent.
template <class T>
const T* read(const MaybeTensor& tensor) {
  return tensor ? read<T>(*tensor) : nullptr;
}

template <class T>
T* write(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.scalar_type() == scalar_type<T>(),
                  "a tensor of another type was expected");
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline void check_contiguous(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
}

// An uninitialised contiguous tensor on the CPU; {0} is the placeholder of a result not asked for.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::empty({sizes.begin(), sizes.size()}, dtype, std::nullopt,
                              torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

// --- Maps ----------------------------------------------------------------------------------------

// Where the elements of a map [B,C,h,w] lie, NCHW-contiguous or channels_last.
struct Map {
  int64_t batch, channels, height, width;
  bool channels_last;
  int64_t pixels() const { return height * width; }
};

inline Map map_of(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 4, name, ": expected [B,C,h,w]");
  Map map{tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3), false};
  if (tensor.is_contiguous()) return map;
  map.channels_last = true;
  // A stride where the size is 1 means nothing.
  const int64_t expected[] = {map.channels * map.pixels(), 1, map.channels * map.width,
                              map.channels};
  for (int i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(tensor.size(i) == 1 || tensor.stride(i) == expected[i], name,
                    ": expected a contiguous or channels_last map");
  }
  return map;
}

// Checks that a map lies as `like` does, with this many channels (a map may be both at once, as
// with one channel: then it lies as either).
inline void check_map(const char* name, const Tensor& tensor, const Map& like, int64_t channels) {
  const Map map = map_of(name, tensor);
  STD_TORCH_CHECK(map.batch == like.batch && map.channels == channels &&
                      map.height == like.height && map.width == like.width,
                  name, ": expected [", like.batch, ",", channels, ",", like.height, ",",
                  like.width, "]");
  const bool either = channels == 1 || map.pixels() == 1;
  STD_TORCH_CHECK(either || map.batch == 0 || map.channels_last == like.channels_last, name,
                  ": expected the memory format of the first map");
}

// An uninitialised map that lies as `like` does, with this many channels.
inline Tensor empty_map(const Map& like, int64_t channels, ScalarType dtype) {
  using torch::headeronly::MemoryFormat;
  const int64_t sizes[] = {like.batch, channels, like.height, like.width};
  return torch::stable::empty(
      {sizes, 4}, dtype, std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CPU),
      std::nullopt, like.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace pinmem
