"""What the kernels of the two reading ops share: the attention and its derivatives."""

from __future__ import annotations

import triton
import triton.language as tl
from pinmem.kernels.maps import (
    afresh,
    apart,
    cast,
    dot,
    load_channels,
    load_rows,
    rolled,
    softmax_rows,
)


@triton.jit
def attention_of(scores, gumbel, at, step, inside, K: tl.constexpr):
    """``softmax(scores + gumbel)`` over the first ``K`` of the columns."""
    slot = tl.arange(0, scores.shape[1])
    if gumbel is not None:
        noise = load_channels(gumbel, at, step, inside, 0, K, scores.shape[1])
        scores += noise.to(scores.dtype)
    return softmax_rows(tl.where((slot < K)[None, :], scores, float("-inf")))


@triton.jit
def look_along(
    query,
    gg_query,
    memory,
    gg_memory,
    at,
    step,
    inside,
    C: tl.constexpr,
    K: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sums over channels that reading along ``(v, V)`` = (gg_query, gg_memory) needs.

    Returns ``x.x``, ``x.v`` and the rows ``x M^T`` and ``v M^T + x V^T``.
    """
    T: tl.constexpr = query.dtype.element_ty
    SCARCE: tl.constexpr = BLOCK_K > 32 or T.primitive_bitwidth > 16
    ROLLED: tl.constexpr = BLOCK_K > 128 and T.primitive_bitwidth == 16
    x_x = tl.zeros([BLOCK_N], ACC)
    x_v = tl.zeros([BLOCK_N], ACC)
    x_m = tl.zeros([BLOCK_N, BLOCK_K], ACC)
    x_m_1 = tl.zeros([BLOCK_N, BLOCK_K], ACC)
    for tile in tl.range(rolled((C + BLOCK_C - 1) // BLOCK_C, ROLLED), disable_licm=True):
        c = afresh(tile * BLOCK_C, SCARCE, BLOCK_C)
        x = load_channels(query, at, step, inside, c, C, BLOCK_C)
        m = cast(load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
        x_x += tl.sum(x.to(ACC) * x.to(ACC), 1)
        x_m = dot(x, tl.trans(m), x_m)
        if gg_query is not None and apart(SCARCE):
            v = load_channels(gg_query, at, step, inside, c, C, BLOCK_C)
            x_v += tl.sum(x.to(ACC) * v.to(ACC), 1)
            x_m_1 = dot(v, tl.trans(m), x_m_1)
        if gg_memory is not None and apart(SCARCE):
            vm = cast(load_rows(gg_memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
            x_m_1 = dot(x, tl.trans(vm), x_m_1)
    return x_x, x_v, x_m, x_m_1


@triton.jit
def normalised_along(x, gg_query, at, step, inside, c, C: tl.constexpr, r, bend):
    """A tile of ``q`` and of its derivative along ``v``, ``r (v - q (q.v))``."""
    q = x.to(r.dtype) * r[:, None]
    q_1 = q * (-bend * r)[:, None]
    if gg_query is not None:
        v = load_channels(gg_query, at, step, inside, c, C, x.shape[1])
        q_1 += v.to(r.dtype) * r[:, None]
    return q, q_1


@triton.jit
def score_gradients(a, a_1, da, da_1):
    """``ds = a (da - a.da)`` and its derivative, from the attention's and ``da``'s."""
    centred = da - tl.sum(a * da, 1)[:, None]
    mean_1 = tl.sum(a_1 * da + a * da_1, 1)
    return a * centred, a_1 * centred + a * (da_1 - mean_1[:, None])
