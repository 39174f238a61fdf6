// What the library needs of a driver and a GPU, and what there is: its kernels run where the driver
// is of the same major CUDA release or a later one, and on GPUs that it has code for.
#ifndef PINMEM_HOST_EMULATION
#include <cuda_runtime_api.h>

#define PINMEM_EXPORT extern "C" __attribute__((visibility("default")))

/// 1000 major + 10 minor, as CUDA writes its releases.
PINMEM_EXPORT int pinmem_built_with_cuda() { return CUDART_VERSION; }

/// The newest release that the driver knows; 0 without a driver.
PINMEM_EXPORT int pinmem_driver_knows_cuda() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

namespace {
__global__ void empty_kernel() {}
}  // namespace

/// Whether a GPU runs the library's kernels: there is code for it, or PTX that its driver compiles.
PINMEM_EXPORT int pinmem_runs_on(int device) {
  cudaFuncAttributes found{};
  const bool runs = cudaSetDevice(device) == cudaSuccess &&
                    cudaFuncGetAttributes(&found, empty_kernel) == cudaSuccess;
  cudaGetLastError();  // leaves none behind for the next launch
  return runs ? 1 : 0;
}
#endif
