// Enough of CUDA C++ to run the kernels of this library on a CPU, one block after the other, every
// thread a fiber. For tests only: build with -DPINMEM_HOST_EMULATION and an ordinary C++ compiler.
//
// Stricter than a GPU in what it can see: a barrier that not all threads reach aborts, shared
// memory starts as NaN, and PINMEM_EMULATION_ORDER=reverse runs the threads last to first, so that
// a missing barrier gives other values in one of the two orders. With "none" nothing runs: what is
// left is the host's work.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static

using std::exp2;
using std::log2;
using std::sqrt;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace cuda_on_cpu {

template <class To, class From>
To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated kernel: %s\n", what);
  std::abort();
}

constexpr unsigned kLanes = 32;
constexpr size_t kStack = 128 * 1024;

/// Threads that wait for each other.
inline bool order_is(const char* name) {
  const char* order = std::getenv("PINMEM_EMULATION_ORDER");
  return order != nullptr && std::strcmp(order, name) == 0;
}

struct Barrier {
  unsigned expected = 0, arrived = 0, generation = 0;
};

/// What the lanes of a warp show each other.
struct Warp {
  Barrier barrier;
  alignas(16) unsigned char slot[kLanes][64];
};

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf here;
  bool started = false, done = false;
};

class Block {
 public:
  static Block& current() {
    static Block block;
    return block;
  }

  void run(unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
    if (threads == 0 || threads % kLanes != 0 || threads > 1024) fail("threads of a block");
    while (fibers_.size() < threads) fibers_.emplace_back(new Fiber);
    warps_.assign(threads / kLanes, Warp{});
    for (Warp& warp : warps_) warp.barrier.expected = kLanes;
    all_ = Barrier{threads, 0, 0};
    // Exactly as much as was asked for, so that an address sanitizer sees more; NaN in any type.
    shared_.reset(new unsigned char[shared_bytes + 1]);
    std::memset(shared_.get(), 0xff, shared_bytes);
    kernel_ = &kernel;
    threads_ = threads;
    for (unsigned i = 0; i < threads; ++i) fibers_[i]->started = fibers_[i]->done = false;
    reverse_ = order_is("reverse");
    for (running_ = threads; running_ > 0;) {
      progress_ = false;
      for (next_ = 0; next_ < threads_; ++next_) resume();
      if (!progress_) fail("some threads wait at a barrier that others never reach");
    }
  }

  void wait(Barrier& barrier) {
    const unsigned generation = barrier.generation;
    progress_ = true;
    if (++barrier.arrived == barrier.expected) {
      barrier.arrived = 0;
      ++barrier.generation;
      return;
    }
    while (barrier.generation == generation) yield();
  }

  Barrier& all() { return all_; }
  Warp& warp() { return warps_[thread_ / kLanes]; }
  unsigned thread() const { return thread_; }
  unsigned lane() const { return thread_ % kLanes; }
  unsigned threads() const { return threads_; }
  void* shared() const { return shared_.get(); }

 private:
  static void enter() {
    Block& block = current();
    (*block.kernel_)();
    block.fibers_[block.thread_]->done = true;
    block.progress_ = true;
    --block.running_;
    _longjmp(block.scheduler_, 1);
  }

  __attribute__((noinline)) void resume() {
    thread_ = reverse_ ? threads_ - 1 - next_ : next_;
    Fiber& fiber = *fibers_[thread_];
    if (fiber.done) return;
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, &Block::enter, 0);
    setcontext(&fiber.start);
  }

  __attribute__((noinline)) void yield() {
    if (_setjmp(fibers_[thread_]->here) == 0) _longjmp(scheduler_, 1);
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Warp> warps_;
  std::unique_ptr<unsigned char[]> shared_;
  const std::function<void()>* kernel_ = nullptr;
  Barrier all_;
  jmp_buf scheduler_;
  unsigned threads_ = 0, thread_ = 0, next_ = 0, running_ = 0;
  bool progress_ = false, reverse_ = false;
};

/// threadIdx and blockDim: one-dimensional.
struct ThreadIndex {
  struct X {
    operator unsigned() const { return Block::current().thread(); }
  } x;
};
struct BlockSize {
  struct X {
    operator unsigned() const { return Block::current().threads(); }
  } x;
};

inline dim3 block_index, grid_size;

inline void* dynamic_shared() { return Block::current().shared(); }

template <class Kernel>
void launch(dim3 grid, unsigned threads, size_t shared_bytes, const Kernel& kernel) {
  if (order_is("none")) return;
  grid_size = grid;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3{x, y, z};
        Block::current().run(threads, shared_bytes, kernel);
      }
    }
  }
}

/// Every lane shows `mine`; `look(slots)` sees those of all.
template <class T, class Look>
auto exchange(const T& mine, const Look& look) {
  static_assert(sizeof(T) <= sizeof(Warp::slot[0]));
  Block& block = Block::current();
  Warp& warp = block.warp();
  std::memcpy(warp.slot[block.lane()], &mine, sizeof(T));
  block.wait(warp.barrier);
  const auto get = [&](unsigned lane) {
    T value;
    std::memcpy(&value, warp.slot[lane % kLanes], sizeof(T));
    return value;
  };
  const auto result = look(get);
  block.wait(warp.barrier);
  return result;
}

inline void whole_warp(unsigned mask) {
  if (mask != 0xffffffffu) fail("only whole warps are emulated");
}

}  // namespace cuda_on_cpu

inline cuda_on_cpu::ThreadIndex threadIdx;
inline cuda_on_cpu::BlockSize blockDim;
#define blockIdx cuda_on_cpu::block_index
#define gridDim cuda_on_cpu::grid_size

inline void __syncthreads() {
  auto& block = cuda_on_cpu::Block::current();
  block.wait(block.all());
}

inline void __syncwarp() {
  auto& block = cuda_on_cpu::Block::current();
  block.wait(block.warp().barrier);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  cuda_on_cpu::whole_warp(mask);
  return cuda_on_cpu::exchange(value,
                               [&](const auto& get) { return get(static_cast<unsigned>(source)); });
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  cuda_on_cpu::whole_warp(mask);
  const unsigned lane = cuda_on_cpu::Block::current().lane();
  return cuda_on_cpu::exchange(
      value, [&](const auto& get) { return get(lane ^ static_cast<unsigned>(lanes)); });
}

inline unsigned __ballot_sync(unsigned mask, bool set) {
  cuda_on_cpu::whole_warp(mask);
  return cuda_on_cpu::exchange(set, [&](const auto& get) {
    unsigned bits = 0;
    for (unsigned lane = 0; lane < cuda_on_cpu::kLanes; ++lane) bits |= unsigned{get(lane)} << lane;
    return bits;
  });
}

inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline bool __any_sync(unsigned mask, bool set) { return __ballot_sync(mask, set) != 0; }

template <class T>
T atomicAdd(T* place, T value) {
  const T before = *place;
  *place = before + value;
  return before;
}
