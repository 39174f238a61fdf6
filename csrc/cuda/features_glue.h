// Glue of the ops on feature maps.
#pragma once

#include "features.h"
#include "tensor.h"

namespace pinmem {

/// Where both memory formats are the same bytes, as one run.
inline Runs runs_of(const Map& map) {
  if (map.channels_last || map.pixels() == 1) return {1, map.batch * map.pixels(), true};
  return {map.batch, map.pixels(), false};
}

/// Whether all vectors of 16 bytes of a map with this many channels are aligned, if its first is.
template <class T>
bool vectors_fit(const Runs& runs, int64_t channels) {
  return (runs.channels_last ? channels : runs.pixels) % Vector16<T>::size == 0;
}

}  // namespace pinmem
