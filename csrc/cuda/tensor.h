// What the glue of every op needs: tensors over LibTorch's stable ABI, and launches of kernels.
#pragma once

#include "../cpu/tensor.h"
#include "device.h"

#ifdef PINMEM_HOST_EMULATION
#define PINMEM_CUDA_KEY CPU
using cudaStream_t = void*;
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

#include <mutex>
#define PINMEM_CUDA_KEY CUDA
#endif

namespace pinmem {

// --- Tensors -------------------------------------------------------------------------------------

template <>
constexpr ScalarType scalar_type<float16>() {
  return ScalarType::Half;
}

inline Element element_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return Element::f64;
    case ScalarType::Float: return Element::f32;
    case ScalarType::BFloat16: return Element::bf16;
    default:
      STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Half, name,
                      ": expected float64, float32, bfloat16 or float16");
      return Element::f16;
  }
}

/// Calls body(Type<A>{}) with the type that sums are formed in.
template <class Body>
auto dispatch_accumulator(const Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == ScalarType::Double) return body(Type<double>{});
  return body(Type<float>{});
}

/// Calls body(Type<T>{}) with the element type T of a float tensor.
template <class Body>
auto dispatch_elements(const char* name, const Tensor& tensor, const Body& body) {
  switch (element_of(name, tensor)) {
    case Element::f64: return body(Type<double>{});
    case Element::f32: return body(Type<float>{});
    case Element::bf16: return body(Type<bfloat16>{});
    default: return body(Type<float16>{});
  }
}

/// Uninitialised, contiguous, on the device of `like`, by torch's allocator.
inline Tensor empty_beside(const Tensor& like, std::initializer_list<int64_t> sizes,
                           ScalarType dtype) {
  return torch::stable::empty({sizes.begin(), sizes.size()}, dtype, std::nullopt, like.device());
}

/// An uninitialised map that lies as `map` does, with this many channels.
inline Tensor empty_map_beside(const Tensor& like, const Map& map, int64_t channels,
                               ScalarType dtype) {
  using torch::headeronly::MemoryFormat;
  const int64_t sizes[] = {map.batch, channels, map.height, map.width};
  return torch::stable::empty(
      {sizes, 4}, dtype, std::nullopt, like.device(), std::nullopt,
      map.channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline Labels labels_of(const char* name, const Tensor& labels, int64_t batch, int64_t num_classes,
                        int64_t ignore_index) {
  STD_TORCH_CHECK(
      labels.dim() == 3 && labels.size(0) == batch && labels.size(1) > 0 && labels.size(2) > 0,
      name, ": expected [", batch, ",H,W]");
  check_contiguous(name, labels);
  const bool wide = labels.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(wide || labels.scalar_type() == ScalarType::Byte, name,
                  ": expected uint8 or int64");
  return {labels.const_data_ptr(), wide, static_cast<int>(num_classes), ignore_index};
}

inline bool aligned16(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

/// Scratch memory in one allocation: `take` before `allocate`, `at` after it.
class Scratch {
 public:
  template <class T>
  int64_t take(int64_t count) {
    const int64_t place = bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return place;
  }
  void allocate(const Tensor& like) { memory_ = empty_beside(like, {bytes_}, ScalarType::Byte); }
  template <class T>
  T* at(int64_t place) const {
    return reinterpret_cast<T*>(static_cast<char*>(memory_.mutable_data_ptr()) + place);
  }

 private:
  int64_t bytes_ = 0;
  Tensor memory_;
};

// --- Launches ------------------------------------------------------------------------------------

/// The device of a tensor made current, and its current stream.
class Stream {
#ifdef PINMEM_HOST_EMULATION
 public:
  explicit Stream(const Tensor&) {}

  void zero(void* data, int64_t bytes) const { std::memset(data, 0, static_cast<size_t>(bytes)); }

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
              const Arguments&... arguments) const {
    STD_TORCH_CHECK(shared_bytes <= kMostShared, "too much shared memory");
    if (blocks == 0) return;
    cuda_on_cpu::launch(dim3{static_cast<unsigned>(blocks)}, static_cast<unsigned>(threads),
                        static_cast<size_t>(shared_bytes), [&] { kernel(arguments...); });
  }
#else
 public:
  explicit Stream(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    // Not STABLE_TORCH_ERROR_CODE_CHECK, which says more: torch 2.10 and 2.11 do not have it.
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    // The library's own copy of the CUDA runtime keeps its own current device.
    STD_CUDA_CHECK(cudaSetDevice(tensor.get_device_index()));
  }

  void zero(void* data, int64_t bytes) const {
    if (bytes == 0) return;
    STD_CUDA_CHECK(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream_));
  }

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
              const Arguments&... arguments) const {
    if (blocks == 0) return;
    STD_TORCH_CHECK(blocks <= INT32_MAX, "too many blocks: ", blocks);
    // From 48 KB on, of which a kernel's static arrays take some.
    // The attribute is the kernel's on this device: another thread's stays away until the launch.
    static std::mutex attribute;
    std::unique_lock<std::mutex> held(attribute, std::defer_lock);
    if (shared_bytes > 28 * 1024) {
      held.lock();
      const cudaError_t set = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
      if (set != cudaSuccess) cudaGetLastError();  // or the next launch would report it again
      STD_CUDA_CHECK(set);
    }
    kernel<<<static_cast<unsigned>(blocks), threads, static_cast<size_t>(shared_bytes), stream_>>>(
        arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
#endif

 public:
  /// Dynamic shared memory that every GPU from compute capability 8.0 on gives to a block.
  static constexpr int64_t kMostShared = 99 * 1024;
};

inline int64_t ceil_div(int64_t count, int64_t part) { return (count + part - 1) / part; }

}  // namespace pinmem
