// What memory_read_project needs beside the passes over pixels: the projected memory, the weight's
// gradient, and the gradients that follow from the projected memory's.
#pragma once

#include "reading_tiles.h"

namespace pinmem {

class Stream;

/// projected [rows, columns] = left right^T + moved_left moved_right^T, over `depth`; either may be
/// absent. Lines of `stride` elements, with zeros behind the columns.
struct ProjectSlots {
  Matrix left, right, moved_left, moved_right;
  int rows, columns, depth;
  void* projected;
  Element type;
  int64_t stride;
};

/// Shares of the sums over pixels of D^T (x times a factor a pixel), [outputs, channels].
template <class T>
struct WeightShares {
  Runs runs;
  MapPart<const T> cotangent;    // D
  MapPart<const T> features[2];  // the first absent in first order
  const accumulator_t<T>* factors[2];
  int outputs, channels;
  int64_t chunks_each, count;
  accumulator_t<T>* shares;
};
inline constexpr int kWeightChunk = 256;  // pixels

/// grad_memory [slots, channels] = sums + values W_c + still Y_c;
/// grad_weight [outputs, 2 channels] = [the sum of the weight's shares, values^T M + still^T V].
template <class A>
struct FinishGradients {
  int slots, channels, outputs;
  const A* sums;
  const A* values;                    // the cotangent of the projected memory, or how it moves
  const A* still;                     // that cotangent itself, null in first order
  Matrix memory, weight;              // M and W_c
  Matrix moved_memory, moved_weight;  // V and Y_c, or absent
  const A* weight_shares;
  int64_t weight_count;
  void* grad_memory;  // null: not needed
  void* grad_weight;
  Element memory_type, weight_type;
};

template <class A>
void run(const Stream& stream, const ProjectSlots& task);
template <class T>
void run(const Stream& stream, const WeightShares<T>& task);
template <class A>
void run(const Stream& stream, const FinishGradients<A>& task);

}  // namespace pinmem
