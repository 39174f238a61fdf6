// The instructions that the products of the reading ops are made of: asynchronous copies to shared
// memory, fragments of matrices, and tensor cores; and what stands for them on a CPU.
//
// A fragment is how the lanes of a warp share a matrix of 16-bit elements, two neighbouring ones a
// register. In an 8x8 matrix lane l holds row l/4, columns 2(l%4) and 2(l%4)+1.
#pragma once

#include "device.h"

#ifdef PINMEM_HOST_EMULATION
#include <deque>
#endif

namespace pinmem {

#ifdef PINMEM_HOST_EMULATION

/// Copies happen as late as they may: when a thread waits for them.
class LateCopies {
 public:
  static LateCopies& mine() {
    static std::vector<LateCopies> all(1024);
    return all[cuda_on_cpu::Block::current().thread()];
  }
  void add(void* to, const void* from, bool valid) { open_.push_back({to, from, valid}); }
  void commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }
  void wait(size_t but) {
    for (; groups_.size() > but; groups_.pop_front()) {
      for (const Copy& copy : groups_.front()) {
        std::memset(copy.to, 0, 16);
        if (copy.valid) std::memcpy(copy.to, copy.from, 16);
      }
    }
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    bool valid;
  };
  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;
};

template <class I>
I opaque(I value) {
  return value;
}

inline void copy_async(void* to, const void* from, bool valid) {
  LateCopies::mine().add(to, from, valid);
}
inline void commit_copies() { LateCopies::mine().commit(); }
inline void wait_for_copies() { LateCopies::mine().wait(0); }

using FragmentRow = const unsigned char*;
inline FragmentRow fragment_row(const void* row) { return static_cast<FragmentRow>(row); }

inline void load_fragments(FragmentRow row, bool transposed, uint32_t (&to)[4]) {
  struct Four {
    uint32_t at[4];
  };
  const unsigned lane = cuda_on_cpu::Block::current().lane();
  const Four loaded = cuda_on_cpu::exchange(row, [&](const auto& get) {
    Four four{};
    for (unsigned m = 0; m < 4; ++m) {
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned along = 2 * (lane % 4) + half, across = lane / 4;
        const auto* elements =
            reinterpret_cast<const uint16_t*>(get(8 * m + (transposed ? along : across)));
        four.at[m] |= uint32_t{elements[transposed ? across : along]} << (16 * half);
      }
    }
    return four;
  });
  for (int m = 0; m < 4; ++m) to[m] = loaded.at[m];
}

template <class T>
void multiply_fragments(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Shown {
    uint32_t a[4], b[2];
  };
  struct Four {
    float at[4];
  };
  const unsigned lane = cuda_on_cpu::Block::current().lane();
  const auto half_of = [](uint32_t pair, unsigned half) {
    return widen(T{static_cast<uint16_t>(pair >> (16 * half))});
  };
  const Four added =
      cuda_on_cpu::exchange(Shown{{a[0], a[1], a[2], a[3]}, {b0, b1}}, [&](const auto& get) {
        Four four{};
        for (unsigned k = 0; k < 16; ++k) {
          float left[2], right[2];
          for (unsigned i = 0; i < 2; ++i) {
            left[i] = half_of(get(lane / 4 * 4 + k % 8 / 2).a[i + k / 8 * 2], k % 2);
            right[i] = half_of(get((lane % 4 * 2 + i) * 4 + k % 8 / 2).b[k / 8], k % 2);
          }
          for (unsigned i = 0; i < 4; ++i) four.at[i] += left[i / 2] * right[i % 2];
        }
        return four;
      });
  for (int i = 0; i < 4; ++i) sum[i] += added.at[i];
}

#else

/// The same value, of which the compiler knows nothing: what follows from it is computed where it
/// is used, not before a loop and kept in registers meanwhile.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
__device__ __forceinline__ int64_t opaque(int64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

__device__ __forceinline__ unsigned shared_address(const void* place) {
  return static_cast<unsigned>(__cvta_generic_to_shared(place));
}

/// Starts to copy 16 bytes to shared memory; where not `valid`, zeros, and nothing is read.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits for the thread's own copies.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
}

/// A place in shared memory, in bytes.
using FragmentRow = unsigned;
__device__ __forceinline__ FragmentRow fragment_row(const void* row) { return shared_address(row); }

/// Four 8x8 matrices: lane l says where row l%8 of matrix l/8 lies (16 bytes).
__device__ __forceinline__ void load_fragments(FragmentRow row, bool transposed,
                                               uint32_t (&to)[4]) {
  if (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
  }
}

/// sum [16,8] += a [16,16] b [16,8]. The quarters of a: rows 0-7 and 8-15 of the columns 0-7, then
/// of 8-15; b comes transposed: its rows 0-7, then 8-15. The halves of sum: rows 0-7, then 8-15.
template <class T>
__device__ __forceinline__ void multiply_fragments(float (&sum)[4], const uint32_t (&a)[4],
                                                   uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

#endif

}  // namespace pinmem
