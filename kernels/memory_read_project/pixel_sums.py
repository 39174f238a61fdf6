"""What the backward pass of memory_read_project sums over pixels, each a product of two maps.

``D^T q`` [O,C], ``ds^T q`` [K,C] and ``a^T D`` [K,O], in tiles; the pixels are split into chunks, a
program has one tile of one chunk in registers, and two launches add the chunks in a fixed order.
Through the L2 each map passes once per tile of the other.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from pinmem.kernels.launch import Plan
from pinmem.kernels.maps import (
    Layout,
    add_rows,
    both_products,
    cast,
    dot,
    jit,
    layout_of,
    load_channels,
    padded,
    pixel_block,
    plan_of,
    run_offsets,
)
from pinmem.kernels.partials import Split, add_partials


@triton.jit
def _add_tile(
    left, right, inverse, partial, row, column,
    chunk, pixels, blocks, total, steps,
    ROWS, COLUMNS, CHANNELS_LAST: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of ``left^T right`` over a chunk's pixels; ``inverse``: of right's norm, or None."""
    T: tl.constexpr = right.dtype.element_ty
    added = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for turn in range(steps):
        image, first, inside = pixel_block(chunk * steps + turn, blocks, total, pixels, BLOCK_N)
        at_l, step = run_offsets(image, first, ROWS, pixels, CHANNELS_LAST, BLOCK_N)
        at_r, _ = run_offsets(image, first, COLUMNS, pixels, CHANNELS_LAST, BLOCK_N)
        x = load_channels(left, at_l, step, inside, row, ROWS, BLOCK_ROWS)  # [N, ROWS]
        y = load_channels(right, at_r, step, inside, column, COLUMNS, BLOCK_COLUMNS)
        if inverse is not None:
            at = image.to(tl.int64) * pixels + first + tl.arange(0, BLOCK_N)
            r = tl.load(inverse + at, mask=inside, other=0.0)
            y = cast(y.to(tl.float32) * r[:, None], T)
        added = dot(tl.trans(x), y, added, PRECISION)
    add_rows(partial, added, row, ROWS, column, COLUMNS, COLUMNS, False)


@jit
def _add_chunk(
    query, grad_projected, attention, slot_grads, inverse, partials,
    C, OUT, pixels, blocks, total, steps,
    K: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
    WEIGHT: tl.constexpr, MEMORY: tl.constexpr,
):  # fmt: skip
    tiles_c, tiles_o = tl.cdiv(C, BLOCK_C), tl.cdiv(OUT, BLOCK_O)
    of_weight = tiles_o * tiles_c if WEIGHT else 0
    of_memory = tiles_c if MEMORY else 0
    tiles = of_weight + of_memory + tiles_o
    # A chunk's sums: [O,C] of the weight, [K,C] of the memory, [K,O].
    before = OUT * C if WEIGHT else 0
    last = before + (K * C if MEMORY else 0)
    tile, chunk = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    partials += chunk.to(tl.int64) * (last + K * OUT)
    if tile < of_weight:
        _add_tile(
            grad_projected, query, inverse, partials,
            tile // tiles_c * BLOCK_O, tile % tiles_c * BLOCK_C,
            chunk, pixels, blocks, total, steps, OUT, C, CHANNELS_LAST,
            BLOCK_N, BLOCK_O, BLOCK_C, WIDE,
        )  # fmt: skip
    elif tile < of_weight + of_memory:
        _add_tile(
            slot_grads, query, inverse, partials + before, 0, (tile - of_weight) * BLOCK_C,
            chunk, pixels, blocks, total, steps, K, C, CHANNELS_LAST,
            BLOCK_N, BLOCK_K, BLOCK_C, PRECISION,
        )  # fmt: skip
    else:
        _add_tile(
            attention, grad_projected, None, partials + last,
            0, (tile - of_weight - of_memory) * BLOCK_O,
            chunk, pixels, blocks, total, steps, K, OUT, CHANNELS_LAST,
            BLOCK_N, BLOCK_K, BLOCK_O, WIDE,
        )  # fmt: skip


# bytes per element: up to 32 slots, and more: pixels, side of a tile, warps, stages
_BLOCKS = {2: [(64, 128, 4, 3)], 4: [(32, 128, 4, 2), (32, 64, 4, 2)]}
# Two for each of an H200's 132 multiprocessors.
_PROGRAMS = 264


@functools.lru_cache(256)
def _plan(
    layout: Layout,
    slots: int,
    outputs: int,
    weight: bool,
    memory: bool,
    products: tuple[str, str],
) -> tuple[Plan, Split]:
    block_n, side, warps, stages = layout.of(_BLOCKS, slots, products[1])
    channels = layout.shape[1]
    block_c, block_o = min(side, padded(channels)), min(side, padded(outputs))
    tiles_c, tiles_o = -(-channels // block_c), -(-outputs // block_o)
    tiles = (tiles_o * tiles_c if weight else 0) + (tiles_c if memory else 0) + tiles_o
    numel = (outputs * channels if weight else 0) + (slots * channels if memory else 0)
    *sizes, total = layout.sizes(block_n)
    split = Split.of(total, numel + slots * outputs, max(1, _PROGRAMS // tiles))
    plan = plan_of(
        _add_chunk, layout, slots, split.programs * tiles,
        (channels, outputs, *sizes, total, split.steps), block_n, warps, stages, products[0],
        WIDE=products[1],
        BLOCK_C=block_c, BLOCK_O=block_o, WEIGHT=weight, MEMORY=memory,
    )  # fmt: skip
    return plan, split


def pixel_sums(
    query: Tensor,
    grad_projected: Tensor,
    attention: Tensor,
    slot_grads: Tensor,
    inverse: Tensor,
    grad_weight: Tensor | None,
    need_memory: bool,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor]:
    """Fill the first C columns of ``grad_weight`` [O,2C] with ``D^T q``, if there is one.

    Returns of ``dtype``: ``ds^T q`` [K,C] where the memory's gradient is needed; ``a^T D`` [K,O].
    """
    slots, channels, outputs = attention.shape[1], query.shape[1], grad_projected.shape[1]
    wanted = (grad_weight is not None, need_memory)
    plan, split = _plan(layout_of(query), slots, outputs, *wanted, both_products(query))
    partials = split.new_partials(query)
    plan(query, grad_projected, attention, slot_grads, inverse, partials)
    if grad_weight is not None:
        add_partials(partials[:, : outputs * channels], grad_weight[:, :channels])
        partials = partials[:, outputs * channels :]
    sums = query.new_empty((1, partials.shape[1]), dtype=dtype)
    add_partials(partials, sums)
    projected_grad = sums[0, -slots * outputs :].view(slots, outputs)
    return sums[0, : -slots * outputs].view(slots, -1) if need_memory else None, projected_grad
