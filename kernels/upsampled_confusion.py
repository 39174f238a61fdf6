"""Triton kernels for :func:`pinmem.ops.upsampled_confusion` (docs/math.md 5).

A program owns a tile of at most 32x32 output pixels, a lane a column, and walks down its rows.
Labels and predictions mostly stay the same from a pixel to the next, so a lane counts the pixels of
a run and adds the run where it ends: few atomic additions, of integers, in which order does not
matter.
They go to several copies of the counts, which keeps programs out of each other's way.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pinmem.kernels.bilinear import (
    as_index,
    cell_of,
    columns_of,
    corner_steps,
    load_corners,
    load_labels,
    multiply_add,
    plan,
    spread,
    start_of,
    upsamplings,
    weight_of,
)
from pinmem.kernels.launch import CompileCase, launch, recording
from pinmem.kernels.maps import accumulator, padded
from torch import Tensor

from pinmem.ops._maps import format_of

# Copies of the counts, at most, and their elements together.
_COPIES = 64
_ELEMENTS = 1 << 20


@triton.jit
def _count(
    logits,
    labels,
    copies,
    h,
    w,
    high,
    wide,
    tiles_y,
    tiles_x,
    window_x,
    copy_count,
    ignore_index,
    K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    h, w = as_index(h, INDEX), as_index(w, INDEX)
    high, wide = as_index(high, INDEX), as_index(wide, INDEX)
    program = tl.program_id(0)
    first_column = as_index(program % tiles_x * TILE_X, INDEX)
    first_row = as_index(program // tiles_x % tiles_y * TILE_Y, INDEX)
    end_row = tl.minimum(first_row + TILE_Y, high)
    image = (program // tiles_x // tiles_y).to(tl.int64)
    logits += image * K * h * w
    labels += image * high * wide
    copies += (program % copy_count).to(tl.int64) * (K * K)

    k = tl.arange(0, BLOCK_K)[:, None]
    step_k, step_x = corner_steps(h, w, K, CHANNELS_LAST)
    columns = columns_of(first_column, w, wide, 1.0, ACC, TILE_X, LANES)
    inside = columns[0]
    column = first_column + tl.arange(0, LANES)
    first_y, last_y = cell_of(first_row, h, high), cell_of(end_row - 1, h, high)

    # Labels are read a row ahead: they come from memory, all else from caches.
    ahead = load_labels(labels, first_row.to(tl.int64) * wide + column, inside, ignore_index, K)
    top = load_corners(logits, first_y, columns, step_k, step_x, w, window_x, K, BLOCK_K)
    pair, length = tl.full([LANES], -1, tl.int32), tl.zeros([LANES], tl.int64)
    first_of_cell = first_row
    for turn_y in range(last_y - first_y + 1):
        y = first_y + turn_y
        below = tl.minimum(y + 1, h - 1)
        bottom = load_corners(logits, below, columns, step_k, step_x, w, window_x, K, BLOCK_K)
        next_cell = tl.minimum(start_of(y + 1, h, high), end_row)
        for turn in range(next_cell - first_of_cell):
            row = first_of_cell + turn
            label = ahead
            place = tl.minimum(row + 1, end_row - 1).to(tl.int64) * wide + column
            ahead = load_labels(labels, place, inside, ignore_index, K)
            down = tl.zeros([LANES], ACC) + weight_of(row, y, h, high, ACC)
            z = multiply_add(top, 1.0 - down, bottom * down[None, :])
            z = tl.where(k < K, z, float("-inf"))
            best = tl.min(tl.where(z == tl.max(z, 0)[None, :], k, K - 1), 0)
            this = tl.where(label >= 0, label * K + best, -1)
            ended = (this != pair) & (pair >= 0)
            tl.atomic_add(copies + pair, length, mask=ended, sem="relaxed")
            length = tl.where(this == pair, length, 0) + 1
            pair = this
        first_of_cell = next_cell
        top = bottom
    tl.atomic_add(copies + pair, length, mask=pair >= 0, sem="relaxed")


def upsampled_confusion(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Count: zeroing, one visit to every pixel, and the sum of the copies."""
    batch, num_classes, h, w = logits.shape
    double = logits.dtype == torch.float64
    block_k = padded(num_classes)
    lanes, warps = spread(block_k, 16 if double else 32)
    cut = plan(logits, target, lanes)
    programs = batch * cut.tiles
    numel = num_classes * num_classes
    copies = max(1, min(_COPIES, _ELEMENTS // numel, programs))
    counts = torch.zeros((copies, numel), dtype=torch.int64, device=logits.device)
    launch(
        _count,
        programs,
        logits,
        target,
        counts,
        h,
        w,
        *target.shape[1:],
        cut.y.tiles,
        cut.x.tiles,
        cut.x.window,
        copies,
        ignore_index,
        K=num_classes,
        CHANNELS_LAST=format_of(logits) == torch.channels_last,
        INDEX=cut.index,
        ACC=accumulator(logits.dtype),
        TILE_Y=cut.y.tile,
        TILE_X=cut.x.tile,
        LANES=lanes,
        BLOCK_K=block_k,
        num_warps=warps,
    )
    return counts.sum(0).view(num_classes, num_classes)


def compile_cases() -> Iterator[CompileCase]:
    """Every kernel in every configuration that ``auto`` can choose."""
    for label, typical, logits, target, _ in upsamplings():
        with recording(label, typical) as cases:
            upsampled_confusion(logits, target, 255)
        yield from cases
