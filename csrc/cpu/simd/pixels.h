// The pixels of the maps of one call, and the tiles that kernels work on them in.
#pragma once

#include <cstdint>

namespace pinmem {

/// Pixels to a tile.
inline constexpr int kTilePixels = 64;

/// How the pixels of [B,C,h,w] maps lie: `images` runs of `pixels`, and in each either the channels
/// of a pixel together (channels_last; one run over the whole batch) or the pixels of a channel.
struct Pixels {
  int64_t images, pixels;
  bool channels_last;
};

}  // namespace pinmem
