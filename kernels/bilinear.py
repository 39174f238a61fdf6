"""Bilinear upsampling (align_corners=True) inside a kernel, one tile of output pixels at a time.

Along an axis, ``low`` corners lie on ``high`` pixels; between two neighbouring corners is a cell.
Pixel ``p`` is in cell ``p (low - 1) // (high - 1)``, the last pixel in the last cell: all of it
integers, so the weights are exact to a rounding. A tile of pixels meets a *window* of consecutive
corners, which begins at the cell of the tile's first pixel. A program holds a tile's columns in
its lanes, classes in registers, and walks down the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Output pixels of a tile along an axis, at most.
_TILE = 32
# Warps of a program, at most: they leave 255 registers a thread.
_WARPS = 8


class Axis(NamedTuple):
    """How one axis is cut into tiles."""

    tile: int  # pixels of a tile
    tiles: int
    window: int  # corners that a tile can meet
    span: int  # tiles that can meet one corner
    steps: int  # 2**steps pixels are as many as a cell has in a tile


def axis(low: int, high: int, lanes: int) -> Axis:
    """Cut ``high`` pixels over ``low`` corners into tiles whose window fits the lanes."""
    last_pixel, last_corner = max(high - 1, 1), low - 1
    tile = min(lanes, _TILE)
    while tile > 1 and (tile - 1) * last_corner // last_pixel + 3 > lanes:
        tile //= 2
    cells = max(last_corner, 1) if high > 1 else 1
    window = min((tile - 1) * last_corner // last_pixel + 3, cells + 1)
    widest = last_pixel // max(last_corner, 1) + 1
    tiles = triton.cdiv(high, tile)
    span = min((2 * widest - 1) // tile + 2, tiles)
    return Axis(tile, tiles, window, span, (min(widest, tile) - 1).bit_length())


class Plan(NamedTuple):
    """The tiles of both axes, and the integers that hold the products of their coordinates."""

    y: Axis
    x: Axis
    index: Any
    upsamples: bool

    @property
    def tiles(self) -> int:
        """Tiles of one image."""
        return self.y.tiles * self.x.tiles


def index_of(logits: Tensor, target: Tensor) -> Any:
    """The integers that hold the products of coordinates."""
    (h, w), (high, wide) = logits.shape[2:], target.shape[1:]
    largest = max((h + _TILE) * (high + _TILE), (w + _TILE) * (wide + _TILE))
    return tl.int32 if largest < 2**31 else tl.int64


def plan(logits: Tensor, target: Tensor, lanes: int) -> Plan:
    """Cut the pixels of ``target`` [B,H,W] over the corners of ``logits`` [B,K,h,w].

    A lane holds a column of a tile, and a corner of its window.
    """
    (h, w), (high, wide) = logits.shape[2:], target.shape[1:]
    # Rows cost no lanes; the bound keeps the shares of tiles small where an axis shrinks.
    y, x = axis(h, high, 2 * _TILE), axis(w, wide, lanes)
    return Plan(y, x, index_of(logits, target), h <= high and w <= wide)


def spread(block_k: int, classes: int) -> tuple[int, int]:
    """Lanes and warps that give every thread ``classes`` classes of a column, of ``block_k``."""
    warps = max(1, min(block_k // classes, _WARPS))
    return min(32, 32 * warps * classes // block_k), warps


@triton.jit
def as_index(value, INDEX: tl.constexpr):
    """An integer argument in the type of coordinates (Triton makes a constant of an argument 1)."""
    return tl.zeros((), INDEX) + value


@triton.jit
def cells_of(low, high):
    """How many cells an axis has; a single one where it has one corner or one pixel."""
    return tl.where(high > 1, tl.maximum(low - 1, 1), 1)


@triton.jit
def cell_of(pixel, low, high):
    """The cell that a pixel is in."""
    return tl.minimum(pixel * (low - 1) // tl.maximum(high - 1, 1), cells_of(low, high) - 1)


@triton.jit
def start_of(cell, low, high):
    """The first pixel of a cell; the number of pixels behind the last cell."""
    steps = tl.maximum(low - 1, 1)
    first = (tl.maximum(cell, 0) * (high - 1) + steps - 1) // steps
    return tl.where(cell >= cells_of(low, high), high, first)


@triton.jit
def weight_of(pixel, cell, low, high, ACC: tl.constexpr):
    """The weight of the cell's second corner at a pixel, in [0,1], exact at both corners."""
    steps = tl.maximum(high - 1, 1)
    left = pixel * (low - 1) - cell * (high - 1)
    return tl.where(left == steps, 1.0, left.to(ACC) * (1.0 / steps.to(ACC)))


@triton.jit
def tiles_of(corner, low, high, TILE: tl.constexpr):
    """The first and the last tile with pixels in the two cells around a corner."""
    cells = cells_of(low, high)
    first = start_of(tl.minimum(corner - 1, cells), low, high) // TILE
    last = (start_of(tl.minimum(corner, cells - 1) + 1, low, high) - 1) // TILE
    return first, last


@triton.jit
def complete_corners(first, end, low, high):
    """The first and last corner whose pixels all lie in [first, end); no cell may be empty."""
    first_cell, last_cell = cell_of(first, low, high), cell_of(end - 1, low, high)
    from_corner = first_cell + tl.where(start_of(first_cell, low, high) < first, 2, 1)
    to_corner = last_cell - tl.where(start_of(last_cell + 1, low, high) > end, 1, 0)
    return tl.where(first == 0, 0, from_corner), tl.where(end == high, last_cell + 1, to_corner)


@triton.jit
def columns_of(
    first_column,
    w,
    wide,
    TEMPERATURE: tl.constexpr,
    ACC: tl.constexpr,
    TILE: tl.constexpr,
    LANES_X: tl.constexpr,
):
    """The columns of a tile, a lane each, as :func:`load_corners` takes them.

    Returns which lanes hold a column, the window's first corner, each column's position in the
    window, and the weights of its two corners, over the temperature.
    """
    lane = tl.arange(0, LANES_X)
    column = first_column + lane
    inside = (lane < TILE) & (column < wide)
    cell = cell_of(column, w, wide)
    first_x = cell_of(first_column, w, wide)
    right = weight_of(column, cell, w, wide, ACC)
    position = tl.where(inside, cell - first_x, 0).to(tl.int32)
    left = (1.0 - right) * (1.0 / TEMPERATURE)
    return inside, first_x, position, left, right * (1.0 / TEMPERATURE)


@triton.jit
def corner_steps(h, w, K: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """The steps from class to class and from pixel to pixel in one image [K,h,w], 64-bit."""
    if CHANNELS_LAST:
        # A 1 that the compiler cannot see: it would spread the classes over lanes to coalesce.
        return tl.minimum(h, 1).to(tl.int64), tl.full((), K, tl.int64)
    else:
        return h.to(tl.int64) * w, tl.full((), 1, tl.int64)


@triton.jit
def take_columns(tile, lane):
    """The columns at ``lane`` of a tile [classes, columns], from the nearest lane there is."""
    lane = tl.minimum(tl.maximum(lane, 0), tile.shape[1] - 1)
    return tl.gather(tile, tl.broadcast_to(lane[None, :], tile.shape), 1)


@triton.jit
def multiply_add(tile, columns, other):
    """``tile * columns + other`` in one instruction, ``columns`` the same for every class."""
    return tl.fma(tile, tl.broadcast_to(columns[None, :], tile.shape), other)


@triton.jit
def load_corners(
    ptr,
    y,
    columns,
    step_k,
    step_x,
    w,
    window_x,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Row ``y`` of one image at the columns of a tile: [BLOCK_K, columns], zero from class K on.

    The window's corners are read once, a lane a corner; every column takes two from their lanes.
    """
    _, first_x, position, left, right = columns
    k = tl.arange(0, BLOCK_K).to(tl.int64)[:, None]
    slot = tl.arange(0, position.shape[0])
    # Classes are added last: everything before is one pointer a lane.
    place = ptr + (y.to(tl.int64) * w + tl.minimum(first_x + slot, w - 1)) * step_x
    mask = (k < K) & (slot < window_x)[None, :]
    corner = tl.load(place[None, :] + k * step_k, mask=mask, other=0.0).to(left.dtype)
    second = take_columns(corner, position + 1) * right[None, :]
    return multiply_add(take_columns(corner, position), left, second)


@triton.jit
def load_labels(ptr, at, inside, ignore_index, K: tl.constexpr):
    """Labels as int32, everything that is no class (or not ``inside``) as -1."""
    label = tl.load(ptr + at, mask=inside, other=0)
    if label.dtype == tl.uint8:
        label = label.to(tl.int32)
    counted = inside & (label >= 0) & (label < K) & (label != ignore_index)
    return tl.where(counted, label, -1).to(tl.int32)


@triton.jit
def fold_plan(first_column, columns, low, high, TILE: tl.constexpr):
    """What :func:`fold` needs to know of a tile's columns, the same in every row."""
    _, first_x, position, left, _ = columns
    lane = tl.arange(0, position.shape[0])
    # As a column: the lane behind its cell.
    behind = tl.minimum(start_of(first_x + position + 1, low, high) - first_column, TILE)
    # As a corner: the first column of the cell on either side, and whether there is one.
    corner = first_x + lane
    before = tl.maximum(start_of(corner - 1, low, high) - first_column, 0)
    here = start_of(corner, low, high) - first_column
    after = tl.minimum(start_of(corner + 1, low, high) - first_column, TILE)
    has_before = ((before < tl.minimum(here, TILE)) & (lane > 0)).to(left.dtype)
    here = tl.maximum(here, 0)
    has_here = ((here < after) & (corner < cells_of(low, high))).to(left.dtype)
    return behind, before, has_before, here, has_here


@triton.jit
def fold(tile, columns, plan, STEPS: tl.constexpr):
    """The transpose of interpolation: columns [classes, columns] added up to the window's corners.

    Every cell is summed into its first column in ``STEPS`` doublings, a fixed order; then corners
    take the sums of the cells on either side from there. Over the temperature, as the weights.
    """
    _, _, position, left, right = columns
    behind, before, has_before, here, has_here = plan
    lane = tl.arange(0, position.shape[0])
    to_left, to_right = tile * left[None, :], tile * right[None, :]
    for turn in tl.static_range(STEPS):
        other = lane + 2**turn
        # A product with 0 or 1 and the sum are one instruction; a choice and the sum are two.
        same_cell = (other < behind).to(tile.dtype)
        to_left = multiply_add(take_columns(to_left, other), same_cell, to_left)
        to_right = multiply_add(take_columns(to_right, other), same_cell, to_right)
    from_before = take_columns(to_right, before) * has_before[None, :]
    return multiply_add(take_columns(to_left, here), has_here, from_before)


def upsamplings() -> Iterator[tuple[str, bool, Tensor, Tensor, Tensor | None]]:
    """Logits, labels and class weights (meta tensors) of every configuration there is to compile.

    With each a label, and whether it is a typical one.
    """
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    # What training meets: logits, the scores of the memory, the auxiliary head.
    typical = [(half, 19, 192, 768), (half, 19, 48, 768), (half, 19, 48, 48)]
    shapes = [*typical, (torch.float16, 19, 192, 768), (single, 19, 192, 768)]
    shapes += [(double, 19, 192, 768)]
    # Every block of classes at its fullest and part empty; an axis that shrinks; coordinates of
    # 64 bits.
    full = (16, 32, 64, 128, 256)
    shapes += [(dtype, k, 192, 768) for dtype in (single, double) for k in full]
    shapes += [(half, 256, 192, 768), *((dtype, 150, 48, 768) for dtype in (half, single))]
    shapes += [(single, 65, 192, 768), (double, 65, 192, 768)]
    shapes += [(single, 19, 64, 32), (single, 19, 1 << 16, 1 << 16)]
    for shape in shapes:
        dtype, num_classes, low, high = shape
        for memory_format in (torch.contiguous_format, torch.channels_last):
            last = memory_format == torch.channels_last
            if last and num_classes in full:
                continue
            logits = torch.empty((2, num_classes, low, low), dtype=dtype, device="meta")
            labels = torch.int64 if dtype == torch.float64 else torch.uint8
            target = torch.empty((2, high, high), dtype=labels, device="meta")
            name = f"{str(dtype).removeprefix('torch.')} K={num_classes} {low}->{high}"
            yield (
                f"{name} channels_last" if last else name,
                shape in typical,
                logits.contiguous(memory_format=memory_format),
                target,
                None if last else logits.new_empty(num_classes),
            )
