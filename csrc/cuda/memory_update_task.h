// What the phases of memory_update work on, and what they hand on.
#pragma once

#include "device.h"

namespace pinmem {
namespace memory_update_op {

enum class Pass { forward, backward, second };
enum Phase { kUnit, kPairs, kRows, kElements, kSlots };

/// Threads of a block: as many as there may be, unless they need the registers of two.
constexpr int threads_of(Pass pass) { return pass == Pass::second ? 512 : 1024; }

/// One tensor for each argument of the op; null where absent.
template <class Pointer>
struct Five {
  Pointer memory, sums, mass, weight, bias;
};

/// A tensor's element, 0 where the tensor is absent.
template <class T>
__device__ __forceinline__ accumulator_t<T> load(const T* from, int64_t i) {
  return from == nullptr ? accumulator_t<T>(0) : widen(from[i]);
}

template <class T>
struct Update {
  using A = accumulator_t<T>;
  int slots, channels;
  A momentum;
  int first_phase, last_phase;
  Five<const T*> in, tangent;
  const T *grad_memory, *grad_divergence, *grad_classification;
  T *new_memory, *divergence, *classification;
  Five<T*> gradient;
  A* results;  // what the phases hand on; null: in shared memory

  __host__ __device__ int64_t elements() const { return static_cast<int64_t>(slots) * channels; }
  __host__ __device__ int64_t pairs() const { return static_cast<int64_t>(slots) * slots; }
  __host__ __device__ int64_t results_size(Pass pass) const {
    const int matrices = pass == Pass::forward ? 1 : pass == Pass::backward ? 2 : 4;
    return matrices * elements() + (pass == Pass::second ? 4 : 2) * pairs() + 4 * slots;
  }
};

/// What the phases hand on. A name with _dot is a derivative along the tangent.
template <class T, Pass kPass>
struct Results {
  using A = accumulator_t<T>;
  A *unit, *grad_unit, *unit_dot, *grad_unit_dot;            // [K,C]
  A *pairs, *logits, *pairs_dot, *logits_dot;                // [K,K]
  A *inverse, *along, *row_divergence, *row_classification;  // [K]

  __device__ explicit Results(const Update<T>& task) {
    A* place = task.results != nullptr ? task.results : dynamic_shared<A>();
    const auto next = [&](bool needed, int64_t count) {
      A* here = place;
      if (needed) place += count;
      return here;
    };
    constexpr bool kSecond = kPass == Pass::second;
    unit = next(true, task.elements());
    grad_unit = next(kPass != Pass::forward, task.elements());
    unit_dot = next(kSecond, task.elements());
    grad_unit_dot = next(kSecond, task.elements());
    pairs = next(true, task.pairs());
    logits = next(true, task.pairs());
    pairs_dot = next(kSecond, task.pairs());
    logits_dot = next(kSecond, task.pairs());
    inverse = next(true, task.slots);
    along = next(true, task.slots);
    row_divergence = next(true, task.slots);
    row_classification = next(true, task.slots);
  }
};

/// u = keep * memory + add * sums for one slot, and its derivative along the tangent.
template <class T>
struct Slot {
  using A = accumulator_t<T>;
  const Update<T>& task;
  int64_t row;
  bool present;
  A keep, add, add_dot;

  __device__ Slot(const Update<T>& update, int k)
      : task(update), row(static_cast<int64_t>(k) * update.channels) {
    const A mass = load(task.in.mass, k);
    present = mass > 0;
    keep = present ? task.momentum : A(1);
    add = present ? (1 - task.momentum) / mass : A(0);
    add_dot = present ? -add / mass * load(task.tangent.mass, k) : A(0);
  }
  __device__ A sums(int c) const { return present ? load(task.in.sums, row + c) : A(0); }
  __device__ A sums_dot(int c) const { return present ? load(task.tangent.sums, row + c) : A(0); }
  __device__ A updated(int c) const { return keep * load(task.in.memory, row + c) + add * sums(c); }
  __device__ A updated_dot(int c) const {
    return keep * load(task.tangent.memory, row + c) + add * sums_dot(c) + add_dot * sums(c);
  }
};

/// Work of a phase for warps, or for threads, over all blocks of the launch.
struct Worker {
  int lane, warp, warps, thread, threads;
  __device__ Worker()
      : lane(static_cast<int>(threadIdx.x % kWarp)),
        warp(static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / kWarp)),
        warps(static_cast<int>(gridDim.x * blockDim.x / kWarp)),
        thread(static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x)),
        threads(static_cast<int>(gridDim.x * blockDim.x)) {}
};

}  // namespace memory_update_op
}  // namespace pinmem
