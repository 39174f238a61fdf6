"""The forward pass of memory_read: scores at the first look at the query, the readout at a second.

Bytes per pixel, for elements of ``e`` bytes: reads ``C e`` and writes ``(2C + K) e``; the second
look finds the query in the cache. One launch.
"""

from __future__ import annotations

import functools

import triton.language as tl
from torch import Tensor

from pinmem.kernels.launch import Plan
from pinmem.kernels.maps import (
    Layout,
    as_type,
    cast,
    dot,
    inverse_norm,
    jit,
    layout_of,
    load_channels,
    load_rows,
    padded,
    pixel_block,
    plan_of,
    products_of,
    run_offsets,
    softmax,
    store_channels,
)


@jit
def _forward(
    query, memory, gumbel, readout, scores,
    C, pixels, blocks, total,
    K: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = query.dtype.element_ty
    image, first, inside = pixel_block(tl.program_id(0), blocks, total, pixels, BLOCK_N)
    at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
    at_2c, _ = run_offsets(image, first, 2 * C, pixels, CHANNELS_LAST, BLOCK_N)
    at_k, _ = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)

    # Adding up over channels last spares a sum across threads in every step.
    squares = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    s = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for c in range(0, C, BLOCK_C):
        x = load_channels(query, at, step, inside, c, C, BLOCK_C)  # [N, C]
        m = load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C)  # [K, C]
        s = dot(x, tl.trans(m), s, PRECISION)
        squares += x.to(tl.float32) * x.to(tl.float32)
    r, _ = inverse_norm(tl.sum(squares, 1))
    s *= r[:, None]
    store_channels(scores, at_k, step, inside, 0, K, s)
    a = cast(softmax(s, gumbel, at_k, step, inside, K), T)  # [N, K]

    for c in range(0, C, BLOCK_C):
        x = load_channels(query, at, step, inside, c, C, BLOCK_C)
        store_channels(readout, at_2c, step, inside, c, C, x.to(tl.float32) * r[:, None])
        m = load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C)
        context = dot(a, m, tl.zeros([BLOCK_N, BLOCK_C], tl.float32), PRECISION)
        store_channels(readout, at_2c, step, inside, C + c, 2 * C, context)


# bytes per element: up to 32 slots, and more: pixels, channels, warps, stages. A matrix instruction
# of Hopper's takes 64 rows from 4 warps; with 8, each would hold the same scores twice.
_BLOCKS = {2: [(64, 64, 4, 3)], 4: [(64, 32, 4, 3)]}


@functools.lru_cache(256)
def _plan(layout: Layout, slots: int, products: str) -> Plan:
    block_n, block_c, warps, stages = layout.of(_BLOCKS, slots)
    sizes = layout.sizes(block_n)
    return plan_of(
        _forward, layout, slots, sizes[2], (layout.shape[1], *sizes),
        block_n, warps, stages, products, BLOCK_C=min(block_c, padded(layout.shape[1])),
    )  # fmt: skip


def memory_read(query: Tensor, memory: Tensor, gumbel: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forward: readout and scores."""
    memory = as_type(memory, query)
    slots, channels = memory.shape
    layout = layout_of(query)
    readout, scores = layout.new_map(2 * channels, query), layout.new_map(slots, query)
    plan = _plan(layout, slots, products_of(query))
    plan(query, memory, gumbel, readout, scores)
    return readout, scores
