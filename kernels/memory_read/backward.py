"""The backward pass of memory_read.

One kernel has for every pixel, at its first look, what sums over all channels (scores, ``da``,
``|x|``, ``x.dq``); at the second it writes dx. What the memory's gradient needs of it, ``r`` [N],
``a`` and ``ds`` [N,K], it leaves to a second one that sums over pixels.

Bytes per pixel, for elements of ``e`` bytes: reads ``(3C + K) e``, writes ``C e``, and the second
kernel reads ``2C e``; the second look finds its maps in the cache. Three launches.
"""

from __future__ import annotations

import functools

import torch
import triton.language as tl
from torch import Tensor

from pinmem.kernels.launch import Plan
from pinmem.kernels.maps import (
    Layout,
    add_products,
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
from pinmem.kernels.memory_read.memory_gradient import memory_gradient


@jit
def _backward(
    query, memory, gumbel, grad_readout, grad_scores, grad_query, attention, slot_grads, inverse,
    C, pixels, blocks, total,
    K: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = query.dtype.element_ty
    image, first, inside = pixel_block(tl.program_id(0), blocks, total, pixels, BLOCK_N)
    at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
    at_2c, _ = run_offsets(image, first, 2 * C, pixels, CHANNELS_LAST, BLOCK_N)
    at_k, _ = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)

    # Adding up over channels last spares sums across threads in every step, where there is room.
    x_x = tl.zeros([BLOCK_N, BLOCK_C if LATE else 1], tl.float32)
    x_dq = tl.zeros([BLOCK_N, BLOCK_C if LATE else 1], tl.float32)
    s = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    da = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for c in range(0, C, BLOCK_C):
        x = load_channels(query, at, step, inside, c, C, BLOCK_C)  # [N, C]
        m = load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C)  # [K, C]
        s = dot(x, tl.trans(m), s, PRECISION)
        x_x = add_products(x_x, x, x)
        if grad_readout is not None:
            dc = load_channels(grad_readout, at_2c, step, inside, C + c, 2 * C, BLOCK_C)
            da = dot(dc, tl.trans(m), da, PRECISION)
            dq = load_channels(grad_readout, at_2c, step, inside, c, C, BLOCK_C)
            x_dq = add_products(x_dq, x, dq)
    r, curved = inverse_norm(tl.sum(x_x, 1))
    s *= r[:, None]
    a = softmax(s, gumbel, at_k, step, inside, K)  # [N, K]
    ds = a * (da - tl.sum(a * da, 1)[:, None])
    if grad_scores is not None:
        ds += load_channels(grad_scores, at_k, step, inside, 0, K, BLOCK_K).to(tl.float32)
    if attention is not None:
        store_channels(attention, at_k, step, inside, 0, K, a)
        store_channels(slot_grads, at_k, step, inside, 0, K, ds)
        tl.store(inverse + image.to(tl.int64) * pixels + first + tl.arange(0, BLOCK_N), r, inside)
    if grad_query is not None:
        q_e = tl.where(curved, tl.sum(x_dq, 1) * r + tl.sum(ds * s, 1), 0.0)
        ds = cast(ds, T)
        bend = (q_e * r)[:, None]
        for c in range(0, C, BLOCK_D):
            m = load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_D)
            e = dot(ds, m, tl.zeros([BLOCK_N, BLOCK_D], tl.float32), PRECISION)
            x = load_channels(query, at, step, inside, c, C, BLOCK_D)
            if grad_readout is not None:
                dq = load_channels(grad_readout, at_2c, step, inside, c, C, BLOCK_D)
                e += dq.to(tl.float32)
            dx = r[:, None] * (e - x.to(tl.float32) * bend)
            store_channels(grad_query, at, step, inside, c, C, dx)


# bytes per element: up to 32 slots, and more: pixels, channels at the first look and at the second,
# warps, stages
_BLOCKS = {2: [(64, 32, 64, 4, 3)], 4: [(64, 32, 32, 4, 3), (64, 16, 32, 4, 3)]}


@functools.lru_cache(256)
def _plan(layout: Layout, slots: int, products: str) -> Plan:
    block_n, block_c, block_d, warps, stages = layout.of(_BLOCKS, slots)
    sizes, wide = layout.sizes(block_n), padded(layout.shape[1])
    return plan_of(
        _backward, layout, slots, sizes[2], (layout.shape[1], *sizes),
        block_n, warps, stages, products,
        BLOCK_C=min(block_c, wide), BLOCK_D=min(block_d, wide), LATE=layout.dtype.itemsize == 2,
    )  # fmt: skip


def memory_read_backward(
    grad_readout: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    gumbel: Tensor | None,
    need_query: bool,
    need_memory: bool,
) -> tuple[Tensor, Tensor]:
    """First-order pass: gradients of the query and the memory, empty where not needed."""
    layout, slots = layout_of(query), memory.shape[0]
    grad_query = torch.empty_like(query) if need_query else query.new_empty(0)
    attention = slot_grads = inverse = None
    if need_memory:
        attention, slot_grads = layout.new_map(slots, query), layout.new_map(slots, query)
        inverse = query.new_empty(query.numel() // query.shape[1], dtype=torch.float32)
    plan = _plan(layout, slots, products_of(query))
    plan(
        query, as_type(memory, query), gumbel, grad_readout, grad_scores,
        grad_query if need_query else None, attention, slot_grads, inverse,
    )  # fmt: skip
    if attention is None or slot_grads is None or inverse is None:
        return grad_query, memory.new_empty(0)
    grads = memory_gradient(query, grad_readout, attention, slot_grads, inverse, memory)
    return grad_query, grads
