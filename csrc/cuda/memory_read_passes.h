// The passes over pixels of memory_read and memory_read_project: the second is the first with a
// weight, where values and contexts are projected ones.
#pragma once

#include "reading_block.h"

namespace pinmem {

class Stream;

template <class T>
struct ReadForward {
  Reading<T> read;
  MapPart<T> normalized;  // without a weight
  MapPart<T> context;     // with a weight: projected
  T* scores;
};

/// Cotangents may be absent, and what is not needed is null. The shares of a block of tiles are
/// sums over its pixels: ds^T q [slots, channels], to which a^T D is added where there is no
/// weight, then with a weight a^T D [slots, outputs].
template <class T>
struct ReadBackward {
  Reading<T> read;
  MapPart<const T> grad_normalized;  // without a weight
  MapPart<const T> grad_context;     // D; with a weight that of the projected map
  const T* grad_scores;
  int tiles_each;
  MapPart<T> grad_query;
  accumulator_t<T>* shares;
  int64_t share_size;
  accumulator_t<T>* inverse_norms;  // of all pixels
};

/// The derivative of both other passes along directions of their inputs, which may be absent. The
/// shares: (ds^T q)' [slots, channels], with (a^T D)' where there is no weight; then with a weight
/// a^T D and (a^T D)' [slots, outputs].
template <class T>
struct ReadSecond {
  ReadBackward<T> first;
  MapPart<const T> direction;
  Matrix memory, values, weight;  // directions: of the memory, the values and W_q
  MapPart<T> normalized, context;
  T* scores;
  accumulator_t<T>* turns;  // of all pixels: minus q.v / |x|^2, what D^T x is multiplied with
};

template <class T>
void run(const Stream& stream, const ReadForward<T>& pass);
template <class T>
void run(const Stream& stream, const ReadBackward<T>& pass);
template <class T>
void run(const Stream& stream, const ReadSecond<T>& pass);

}  // namespace pinmem
