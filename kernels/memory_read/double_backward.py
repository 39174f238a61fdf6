"""The second-order pass of memory_read: the derivative of forward and backward along (v, V).

As the backward pass: sums over channels at the first look, results at the second, and dM_dot in
each program's partial sum. A dot after a name marks a derivative along (v, V), as in docs/math.md:
``q_dot``. ``q_v`` is ``q.v``, zero where the norm is so short that the normalisation is linear.

Bytes per pixel, for elements of ``e`` bytes: reads ``(4C + K) e`` and writes ``(3C + K) e``; the
second look finds its maps in the cache. Two launches.
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


@triton.jit
def _query_along(query, query_tangent, at, step, inside, c, C, r, q_v, BLOCK_C: tl.constexpr):
    """Channels of q and q_dot, float32."""
    q = load_channels(query, at, step, inside, c, C, BLOCK_C).to(tl.float32) * r[:, None]
    q_dot = -q * (q_v * r)[:, None]
    if query_tangent is not None:
        v = load_channels(query_tangent, at, step, inside, c, C, BLOCK_C)
        q_dot += v.to(tl.float32) * r[:, None]
    return q, q_dot


@triton.jit
def _add_memory_dot(
    partials, grad_readout, at_2c, step, inside, q, q_dot, a_dot, ds, ds_dot, c, C, more,
    K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Channels of dM_dot, added to the program's partial sum."""
    T: tl.constexpr = ds.dtype
    zeros = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    dm_dot = dot(tl.trans(ds_dot), cast(q, T), zeros, PRECISION)
    dm_dot = dot(tl.trans(ds), cast(q_dot, T), dm_dot, PRECISION)
    if grad_readout is not None:
        dc = load_channels(grad_readout, at_2c, step, inside, C + c, 2 * C, BLOCK_C)
        dm_dot = dot(tl.trans(a_dot), dc, dm_dot, PRECISION)
    add_rows(partials, dm_dot, 0, K, c, C, C, more)


@jit
def _double_backward(
    query, memory, gumbel, grad_readout, grad_scores, query_tangent, memory_tangent,
    readout_dot, scores_dot, grad_query_dot, partials,
    C, pixels, blocks, total, steps,
    K: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = query.dtype.element_ty
    program = tl.program_id(0)
    partials += program.to(tl.int64) * (K * C)
    for index in range(steps):
        image, first, inside = pixel_block(program * steps + index, blocks, total, pixels, BLOCK_N)
        at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
        at_2c, _ = run_offsets(image, first, 2 * C, pixels, CHANNELS_LAST, BLOCK_N)
        at_k, _ = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)

        x_x = tl.zeros([BLOCK_N], tl.float32)
        x_v = tl.zeros([BLOCK_N], tl.float32)
        x_dq = tl.zeros([BLOCK_N], tl.float32)
        v_dq = tl.zeros([BLOCK_N], tl.float32)
        s = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        s_dot = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        da = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        da_dot = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for c in range(0, C, BLOCK_C):
            x = load_channels(query, at, step, inside, c, C, BLOCK_C)  # [N, C]
            m = load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C)  # [K, C]
            x_x += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
            s = dot(x, tl.trans(m), s, PRECISION)
            if query_tangent is not None:
                v = load_channels(query_tangent, at, step, inside, c, C, BLOCK_C)
                x_v += tl.sum(x.to(tl.float32) * v.to(tl.float32), 1)
                s_dot = dot(v, tl.trans(m), s_dot, PRECISION)
            if memory_tangent is not None:
                m_dot = load_rows(memory_tangent, 0, K, c, C, C, BLOCK_K, BLOCK_C)
                s_dot = dot(x, tl.trans(m_dot), s_dot, PRECISION)
            if grad_readout is not None:
                dq = load_channels(grad_readout, at_2c, step, inside, c, C, BLOCK_C)
                x_dq += tl.sum(x.to(tl.float32) * dq.to(tl.float32), 1)
                if query_tangent is not None:
                    v_dq += tl.sum(v.to(tl.float32) * dq.to(tl.float32), 1)
                dc = load_channels(grad_readout, at_2c, step, inside, C + c, 2 * C, BLOCK_C)
                da = dot(dc, tl.trans(m), da, PRECISION)
                if memory_tangent is not None:
                    da_dot = dot(dc, tl.trans(m_dot), da_dot, PRECISION)
        r, curved = inverse_norm(x_x)
        q_v = tl.where(curved, x_v * r, 0.0)
        s *= r[:, None]
        s_dot = r[:, None] * (s_dot - q_v[:, None] * s)
        store_channels(scores_dot, at_k, step, inside, 0, K, s_dot)
        a = softmax(s, gumbel, at_k, step, inside, K)
        a_dot = a * (s_dot - tl.sum(a * s_dot, 1)[:, None])
        t = tl.sum(a * da, 1)
        t_dot = tl.sum(a_dot * da + a * da_dot, 1)
        ds = a * (da - t[:, None])
        ds_dot = a_dot * (da - t[:, None]) + a * (da_dot - t_dot[:, None])
        if grad_scores is not None:
            ds += load_channels(grad_scores, at_k, step, inside, 0, K, BLOCK_K).to(tl.float32)
        q_e = tl.where(curved, x_dq * r + tl.sum(ds * s, 1), 0.0)
        q_e_dot = r * (v_dq - q_v * x_dq * r) + tl.sum(ds * s_dot + ds_dot * s, 1)
        q_e_dot = tl.where(curved, q_e_dot, 0.0)
        a, a_dot, ds, ds_dot = cast(a, T), cast(a_dot, T), cast(ds, T), cast(ds_dot, T)

        for c in range(0, C, BLOCK_C):
            q, q_dot = _query_along(query, query_tangent, at, step, inside, c, C, r, q_v, BLOCK_C)
            if not APART:
                _add_memory_dot(
                    partials, grad_readout, at_2c, step, inside, q, q_dot, a_dot, ds, ds_dot,
                    c, C, index > 0, K, BLOCK_K, BLOCK_C, PRECISION,
                )  # fmt: skip
            store_channels(readout_dot, at_2c, step, inside, c, C, q_dot)
            zeros = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
            m = load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C)
            context_dot = dot(a_dot, m, zeros, PRECISION)
            e = dot(ds, m, zeros, PRECISION)
            e_dot = dot(ds_dot, m, zeros, PRECISION)
            if memory_tangent is not None:
                m_dot = load_rows(memory_tangent, 0, K, c, C, C, BLOCK_K, BLOCK_C)
                context_dot = dot(a, m_dot, context_dot, PRECISION)
                e_dot = dot(ds, m_dot, e_dot, PRECISION)
            store_channels(readout_dot, at_2c, step, inside, C + c, 2 * C, context_dot)
            if grad_readout is not None:
                dq = load_channels(grad_readout, at_2c, step, inside, c, C, BLOCK_C)
                e += dq.to(tl.float32)
            e -= q * q_e[:, None]
            e_dot -= q_dot * q_e[:, None] + q * q_e_dot[:, None]
            dx_dot = r[:, None] * (e_dot - (q_v * r)[:, None] * e)
            store_channels(grad_query_dot, at, step, inside, c, C, dx_dot)
        if APART:
            for c in range(0, C, BLOCK_C):
                q, q_dot = _query_along(
                    query, query_tangent, at, step, inside, c, C, r, q_v, BLOCK_C
                )
                _add_memory_dot(
                    partials, grad_readout, at_2c, step, inside, q, q_dot, a_dot, ds, ds_dot,
                    c, C, index > 0, K, BLOCK_K, BLOCK_C, PRECISION,
                )  # fmt: skip


# bytes per element: up to 32 slots, and more: pixels, channels, warps, stages
_BLOCKS = {2: [(32, 16, 4, 2)], 4: [(16, 16, 8, 1)]}


@functools.lru_cache(256)
def _plan(layout: Layout, slots: int, products: str) -> tuple[Plan, Split]:
    block_n, block_c, warps, stages = layout.of(_BLOCKS, slots)
    # Float32 with many slots has no room for dM_dot beside the rest: a third look makes it. Three
    # of bfloat16 would take one and a half times the registers: products are of ordinary units.
    apart = layout.dtype == torch.float32 and slots > 32
    products = "ieee" if apart and products == "bf16x6" else products
    channels = layout.shape[1]
    *sizes, total = layout.sizes(block_n)
    split = Split.of(total, slots * channels)
    plan = plan_of(
        _double_backward, layout, slots, split.programs, (channels, *sizes, total, split.steps),
        block_n, warps, stages, products,
        BLOCK_C=min(block_c, padded(channels)), APART=apart,
    )  # fmt: skip
    return plan, split


def memory_read_double_backward(
    query_tangent: Tensor | None,
    memory_tangent: Tensor | None,
    grad_readout: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    gumbel: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Second-order pass along the tangents: of readout, scores and both gradients."""
    slots, channels = memory.shape
    layout = layout_of(query)
    readout_dot, scores_dot = layout.new_map(2 * channels, query), layout.new_map(slots, query)
    grad_query_dot, grad_memory_dot = torch.empty_like(query), torch.empty_like(memory)
    plan, split = _plan(layout, slots, products_of(query))
    partials = split.new_partials(query)
    v_memory = None if memory_tangent is None else as_type(memory_tangent, query)
    plan(
        query, as_type(memory, query), gumbel, grad_readout, grad_scores, query_tangent, v_memory,
        readout_dot, scores_dot, grad_query_dot, partials,
    )  # fmt: skip
    add_partials(partials, grad_memory_dot)
    return readout_dot, scores_dot, grad_query_dot, grad_memory_dot
