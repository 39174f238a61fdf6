"""The memory's gradient of memory_read, ``ds^T q + a^T dc`` [K,C]: products summed over pixels.

A program takes several blocks of pixels, one after the other, and keeps its sum [C,K] of them in
registers; a second launch adds the programs' sums. Bytes per pixel: reads ``(2C + 2K) e``.
"""

from __future__ import annotations

import functools

import torch
import triton.language as tl
from torch import Tensor

from pinmem.kernels.launch import Plan
from pinmem.kernels.maps import (
    Layout,
    add_rows,
    cast,
    dot,
    jit,
    layout_of,
    load_channels,
    padded,
    pixel_block,
    plan_of,
    products_of,
    run_offsets,
)
from pinmem.kernels.partials import Split, add_partials


@jit
def _memory_gradient(
    query, grad_readout, attention, slot_grads, inverse, partials,
    C, pixels, blocks, total, steps,
    K: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = query.dtype.element_ty
    tiles = tl.cdiv(C, BLOCK_C)
    c = tl.program_id(0) % tiles * BLOCK_C
    program = tl.program_id(0) // tiles
    dm = tl.zeros([BLOCK_C, BLOCK_K], tl.float32)
    for index in range(steps):
        image, first, inside = pixel_block(program * steps + index, blocks, total, pixels, BLOCK_N)
        at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
        at_2c, _ = run_offsets(image, first, 2 * C, pixels, CHANNELS_LAST, BLOCK_N)
        at_k, _ = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)
        pixel = image.to(tl.int64) * pixels + first + tl.arange(0, BLOCK_N)
        x = load_channels(query, at, step, inside, c, C, BLOCK_C)  # [N, C]
        ds = load_channels(slot_grads, at_k, step, inside, 0, K, BLOCK_K)  # [N, K]
        r = tl.load(inverse + pixel, mask=inside, other=0.0)
        if tl.float16 == T:
            # There 1 / |x| may be out of range, which |x| times it is not.
            x = cast(x.to(tl.float32) * r[:, None], T)
        else:
            ds = cast(ds.to(tl.float32) * r[:, None], T)
        dm = dot(tl.trans(x), ds, dm, PRECISION)
        if grad_readout is not None:
            dc = load_channels(grad_readout, at_2c, step, inside, C + c, 2 * C, BLOCK_C)
            a = load_channels(attention, at_k, step, inside, 0, K, BLOCK_K)
            dm = dot(tl.trans(dc), a, dm, PRECISION)
    partials += program.to(tl.int64) * (K * C)
    add_rows(partials, tl.trans(dm), 0, K, c, C, C, False)


# bytes per element: up to 32 slots, and more: pixels, channels, warps, stages
_BLOCKS = {2: [(64, 64, 4, 4)], 4: [(64, 64, 4, 3), (32, 64, 4, 3)]}
# By bytes per element: four and two for each of an H200's 132 multiprocessors.
_PROGRAMS = {2: 528, 4: 264}


@functools.lru_cache(256)
def _plan(layout: Layout, slots: int, products: str) -> tuple[Plan, Split]:
    block_n, block_c, warps, stages = layout.of(_BLOCKS, slots)
    channels = layout.shape[1]
    block_c = min(block_c, padded(channels))
    tiles = -(-channels // block_c)
    *sizes, total = layout.sizes(block_n)
    split = Split.of(total, slots * channels, max(1, _PROGRAMS[layout.dtype.itemsize] // tiles))
    plan = plan_of(
        _memory_gradient, layout, slots, split.programs * tiles,
        (channels, *sizes, total, split.steps), block_n, warps, stages, products, BLOCK_C=block_c,
    )  # fmt: skip
    return plan, split


def memory_gradient(
    query: Tensor,
    grad_readout: Tensor | None,
    attention: Tensor,
    slot_grads: Tensor,
    inverse: Tensor,
    memory: Tensor,
) -> Tensor:
    """``dM``, of the memory's type."""
    grad_memory = torch.empty_like(memory)
    plan, split = _plan(layout_of(query), memory.shape[0], products_of(query))
    partials = split.new_partials(query)
    plan(query, grad_readout, attention, slot_grads, inverse, partials)
    add_partials(partials, grad_memory)
    return grad_memory
