"""The backward pass of memory_read.

A program takes several blocks of pixels, one after the other. At the first look it has what sums
over all channels (scores, ``da``, ``|x|``, ``x.dq``), at the second it writes dx and adds to its
partial sum of dM, which stays in the L2.

Bytes per pixel, for elements of ``e`` bytes: reads ``(3C + K) e`` and writes ``C e``; the second
look finds its maps in the cache. Two launches: the pixels, and the sum of the partial sums.
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
from pinmem.kernels.partials import Split, add_partials


@jit
def _backward(
    query, memory, gumbel, grad_readout, grad_scores, grad_query, partials,
    C, pixels, blocks, total, steps,
    K: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = query.dtype.element_ty
    program = tl.program_id(0)
    if partials is not None:
        partials += program.to(tl.int64) * (K * C)
    for turn in range(steps):
        image, first, inside = pixel_block(program * steps + turn, blocks, total, pixels, BLOCK_N)
        at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
        at_2c, _ = run_offsets(image, first, 2 * C, pixels, CHANNELS_LAST, BLOCK_N)
        at_k, _ = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)

        x_x = tl.zeros([BLOCK_N], tl.float32)
        x_dq = tl.zeros([BLOCK_N], tl.float32)
        s = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        da = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for c in range(0, C, BLOCK_C):
            x = load_channels(query, at, step, inside, c, C, BLOCK_C)  # [N, C]
            m = load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C)  # [K, C]
            s = dot(x, tl.trans(m), s, PRECISION)
            x_x += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
            if grad_readout is not None:
                dc = load_channels(grad_readout, at_2c, step, inside, C + c, 2 * C, BLOCK_C)
                da = dot(dc, tl.trans(m), da, PRECISION)
                dq = load_channels(grad_readout, at_2c, step, inside, c, C, BLOCK_C)
                x_dq += tl.sum(x.to(tl.float32) * dq.to(tl.float32), 1)
        r, curved = inverse_norm(x_x)
        s *= r[:, None]
        a = softmax(s, gumbel, at_k, step, inside, K)  # [N, K]
        ds = a * (da - tl.sum(a * da, 1)[:, None])
        if grad_scores is not None:
            ds += load_channels(grad_scores, at_k, step, inside, 0, K, BLOCK_K).to(tl.float32)
        q_e = tl.where(curved, x_dq * r + tl.sum(ds * s, 1), 0.0)
        a, ds = cast(a, T), cast(ds, T)

        for c in range(0, C, BLOCK_C):
            x = load_channels(query, at, step, inside, c, C, BLOCK_C)
            q = x.to(tl.float32) * r[:, None]
            if partials is not None:
                zeros = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
                dm = dot(tl.trans(ds), cast(q, T), zeros, PRECISION)  # [K, C]
                if grad_readout is not None:
                    dc = load_channels(grad_readout, at_2c, step, inside, C + c, 2 * C, BLOCK_C)
                    dm = dot(tl.trans(a), dc, dm, PRECISION)
                add_rows(partials, dm, 0, K, c, C, C, turn > 0)
            if grad_query is not None:
                m = load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C)
                e = dot(ds, m, tl.zeros([BLOCK_N, BLOCK_C], tl.float32), PRECISION)
                if grad_readout is not None:
                    dq = load_channels(grad_readout, at_2c, step, inside, c, C, BLOCK_C)
                    e += dq.to(tl.float32)
                dx = r[:, None] * (e - q * q_e[:, None])
                store_channels(grad_query, at, step, inside, c, C, dx)


# bytes per element: up to 32 slots, and more: pixels, channels, warps, stages
_BLOCKS = {2: [(64, 32, 8, 2)], 4: [(32, 16, 8, 2), (16, 32, 8, 2)]}


@functools.lru_cache(256)
def _plan(layout: Layout, slots: int, products: str) -> tuple[Plan, Split]:
    block_n, block_c, warps, stages = layout.of(_BLOCKS, slots)
    channels = layout.shape[1]
    *sizes, total = layout.sizes(block_n)
    split = Split.of(total, slots * channels)
    plan = plan_of(
        _backward, layout, slots, split.programs, (channels, *sizes, total, split.steps),
        block_n, warps, stages, products, BLOCK_C=min(block_c, padded(channels)),
    )  # fmt: skip
    return plan, split


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
    grad_query = torch.empty_like(query) if need_query else query.new_empty(0)
    grad_memory = torch.empty_like(memory) if need_memory else memory.new_empty(0)
    plan, split = _plan(layout_of(query), memory.shape[0], products_of(query))
    partials = split.new_partials(query) if need_memory else None
    plan(
        query, as_type(memory, query), gumbel, grad_readout, grad_scores,
        grad_query if need_query else None, partials,
    )  # fmt: skip
    if partials is not None:
        add_partials(partials, grad_memory)
    return grad_query, grad_memory
