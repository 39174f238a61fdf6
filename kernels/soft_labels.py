"""Labels seen from a feature map: bilinear (align_corners=True), four labels a feature pixel.

Integer coordinates as in :mod:`pinmem.kernels.bilinear`, with the labels as the corners. An ignored
label keeps its share of a pixel's weight and gives it to nobody.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pinmem.kernels.bilinear import as_index, load_labels, weight_of


@triton.jit
def soft_labels(
    labels,
    image,
    pixel,
    inside,
    h,
    w,
    high,
    wide,
    ignore_index,
    K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """The four labels around each pixel of a run, -1 for none, and their weights."""
    h, w = as_index(h, INDEX), as_index(w, INDEX)
    high, wide = as_index(high, INDEX), as_index(wide, INDEX)
    if CHANNELS_LAST:
        # The run is the whole batch.
        image = pixel // (h.to(tl.int64) * w)
        pixel = pixel - image * h * w
    i, j = (pixel // w).to(INDEX), (pixel % w).to(INDEX)
    # Along either axis features are the pixels, and labels the corners.
    y = i * (high - 1) // tl.maximum(h - 1, 1)
    x = j * (wide - 1) // tl.maximum(w - 1, 1)
    down, right = weight_of(i, y, high, h, ACC), weight_of(j, x, wide, w, ACC)
    up, left = 1.0 - down, 1.0 - right
    top = (image.to(tl.int64) * high + y) * wide
    bottom = (image.to(tl.int64) * high + tl.minimum(y + 1, high - 1)) * wide
    x_after = tl.minimum(x + 1, wide - 1)
    return (
        load_labels(labels, top + x, inside, ignore_index, K),
        load_labels(labels, top + x_after, inside, ignore_index, K),
        load_labels(labels, bottom + x, inside, ignore_index, K),
        load_labels(labels, bottom + x_after, inside, ignore_index, K),
    ), (up * left, up * right, down * left, down * right)


@triton.jit
def one_hot(label, weight, ACC: tl.constexpr, BLOCK_K: tl.constexpr):
    """The soft one-hot vectors as columns, [classes, pixels]."""
    k = tl.arange(0, BLOCK_K)[:, None]
    soft = tl.where(k == label[0][None, :], weight[0][None, :], 0.0)
    for corner in tl.static_range(1, 4):
        soft += tl.where(k == label[corner][None, :], weight[corner][None, :], 0.0)
    return soft


@triton.jit
def gather_rows(rows, label, weight, first, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The soft one-hot vectors times a matrix [K,C], channels ``first`` on: [pixels, BLOCK_C]."""
    channel = first + tl.arange(0, BLOCK_C)
    gathered = tl.zeros([label[0].shape[0], BLOCK_C], weight[0].dtype)
    for corner in tl.static_range(4):
        place = label[corner].to(tl.int64)[:, None] * C + channel[None, :]
        mask = (label[corner] >= 0)[:, None] & (channel < C)[None, :]
        row = tl.load(rows + place, mask=mask, other=0.0)
        gathered += weight[corner][:, None] * row.to(gathered.dtype)
    return gathered
