// What the library needs of a driver, and what there is: its kernels run where the driver is of the
// same major CUDA release, or a later one.
#include <cuda_runtime_api.h>

#define PINMEM_EXPORT extern "C" __attribute__((visibility("default")))

/// 1000 major + 10 minor, as CUDA writes its releases.
PINMEM_EXPORT int pinmem_built_with_cuda() { return CUDART_VERSION; }

/// The newest release that the driver knows; 0 without a driver.
PINMEM_EXPORT int pinmem_driver_knows_cuda() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}
