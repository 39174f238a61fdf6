"""The forward pass of memory_read_project: one matrix product ``x W_q^T`` with the reading in it.

The scores and the norm are summed along the way, and ``r`` and ``a P`` are applied at its end.
Bytes per pixel, for elements of ``e`` bytes: reads ``C e`` and writes ``(O + K) e``. Two launches:
P, by PyTorch's own product, and the pixels.
"""

from __future__ import annotations

import functools

import torch
import triton.language as tl
from torch import Tensor

from pinmem.kernels.launch import Plan
from pinmem.kernels.maps import (
    Layout,
    as_type,
    both_products,
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
    run_offsets,
    softmax,
    store_channels,
    sum_squares,
)


@jit
def _forward(
    query, memory, weight, projected_memory, gumbel, projected, scores,
    C, OUT, pixels, blocks, total,
    K: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = query.dtype.element_ty
    tiles = tl.cdiv(OUT, BLOCK_O)
    o = tl.program_id(0) % tiles * BLOCK_O
    image, first, inside = pixel_block(tl.program_id(0) // tiles, blocks, total, pixels, BLOCK_N)
    at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
    at_k, _ = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)
    at_o, _ = run_offsets(image, first, OUT, pixels, CHANNELS_LAST, BLOCK_N)

    x_x = tl.zeros([BLOCK_N], tl.float32)
    s = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    y = tl.zeros([BLOCK_N, BLOCK_O], tl.float32)
    for c in range(0, C, BLOCK_C):
        x = load_channels(query, at, step, inside, c, C, BLOCK_C)  # [N, C]
        m = load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C)  # [K, C]
        w = load_rows(weight, o, OUT, c, C, 2 * C, BLOCK_O, BLOCK_C)  # [O, C]
        y = dot(x, tl.trans(w), y, WIDE)
        s = dot(x, tl.trans(m), s, PRECISION)
        x_x += sum_squares(x)
    r, _ = inverse_norm(x_x)
    s *= r[:, None]
    if o == 0:
        store_channels(scores, at_k, step, inside, 0, K, s)
    a = cast(softmax(s, gumbel, at_k, step, inside, K), T)
    p = load_rows(projected_memory, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O)  # [K, O]
    y = dot(a, p, y * r[:, None], WIDE)
    store_channels(projected, at_o, step, inside, o, OUT, y)


# bytes per element: up to 32 slots, and more: pixels, channels, outputs, warps, stages
_BLOCKS = {
    2: [(64, 64, 256, 4, 2), (64, 64, 128, 4, 2)],
    4: [(64, 32, 128, 4, 3), (64, 32, 64, 4, 3)],
}


@functools.lru_cache(256)
def _plan(layout: Layout, slots: int, outputs: int, products: tuple[str, str]) -> Plan:
    block_n, block_c, block_o, warps, stages = layout.of(_BLOCKS, slots, products[1])
    block_o = min(block_o, padded(outputs))
    sizes = layout.sizes(block_n)
    return plan_of(
        _forward, layout, slots, sizes[2] * -(-outputs // block_o),
        (layout.shape[1], outputs, *sizes), block_n, warps, stages, products[0],
        WIDE=products[1],
        BLOCK_C=min(block_c, padded(layout.shape[1])), BLOCK_O=block_o,
    )  # fmt: skip


def memory_read_project(
    query: Tensor, memory: Tensor, weight: Tensor, gumbel: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Forward: the projected readout, and scores."""
    memory, weight = as_type(memory, query), as_type(weight, query)
    slots, channels = memory.shape
    outputs = weight.shape[0]
    layout = layout_of(query)
    projected, scores = layout.new_map(outputs, query), layout.new_map(slots, query)
    projected_memory = memory.new_empty(slots, outputs)
    torch.mm(memory, weight[:, channels:].T, out=projected_memory)  # autocast leaves `out` alone
    plan = _plan(layout, slots, outputs, both_products(query))
    plan(query, memory, weight, projected_memory, gumbel, projected, scores)
    return projected, scores
