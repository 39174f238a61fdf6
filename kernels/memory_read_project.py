"""Triton kernels for :func:`pinmem.ops.memory_read_project` (docs/math.md 1).

With ``P = M W_c^T`` the readout is never formed: ``projected = r (x W_q^T) + a P``. Bytes per
pixel, for elements of ``e`` bytes: forward reads ``C e`` and writes ``(O + K) e``; backward reads
``(2C + 2O + K) e`` and writes ``C e``, the second ``C + O`` for the weight's gradient, which is
a matrix product over all pixels of its own. Launches: forward 2; backward 5 (without a weight
gradient 4): P, the pixels, the weight's gradient, the sum of the shares, and from dP to dM, dW_c.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pinmem.kernels.attention import attention_of
from pinmem.kernels.launch import CompileCase, launch, recording
from pinmem.kernels.maps import (
    cast,
    dot,
    inverse_norm,
    load_channels,
    load_rows,
    pixel_block,
    run_offsets,
    runs_of,
    store_channels,
)
from pinmem.kernels.memory_read import memory_read_backward
from pinmem.kernels.memory_read_project_double_backward import memory_read_project_double_backward
from pinmem.kernels.partials import add_share, new_shares
from pinmem.kernels.projection import finish_gradients, project_slots
from pinmem.kernels.reading_cases import readings
from pinmem.kernels.reading_config import config_of
from pinmem.kernels.weight_shares import weight_shares
from torch import Tensor

from pinmem.ops._maps import empty_map

__all__ = [
    "compile_cases",
    "memory_read_project",
    "memory_read_project_backward",
    "memory_read_project_double_backward",
]


@triton.jit
def _forward(
    query,
    memory,
    weight,
    gumbel,
    slots,
    projected,
    scores,
    pixels,
    blocks,
    total,
    C: tl.constexpr,
    K: tl.constexpr,
    OUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    TILES_O: tl.constexpr = (OUT + BLOCK_O - 1) // BLOCK_O
    T: tl.constexpr = query.dtype.element_ty
    o = tl.program_id(0) % TILES_O * BLOCK_O
    index = tl.program_id(0) // TILES_O
    image, first, inside = pixel_block(index, blocks, total, pixels, BLOCK_N)
    at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
    at_k, step_k = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)
    at_o, step_o = run_offsets(image, first, OUT, pixels, CHANNELS_LAST, BLOCK_N)

    square = tl.zeros([BLOCK_N], ACC)
    s = tl.zeros([BLOCK_N, BLOCK_K], ACC)
    y = tl.zeros([BLOCK_N, BLOCK_O], ACC)
    for tile in range(TILES_C):
        c = tile * BLOCK_C
        x = load_channels(query, at, step, inside, c, C, BLOCK_C)
        m = cast(load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
        w = cast(load_rows(weight, o, OUT, c, C, 2 * C, BLOCK_O, BLOCK_C), T)
        square += tl.sum(x.to(ACC) * x.to(ACC), 1)
        s = dot(x, tl.trans(m), s)
        y = dot(x, tl.trans(w), y)
    r, _ = inverse_norm(square)
    s *= r[:, None]
    if TILES_O == 1 or o == 0:
        store_channels(scores, at_k, step_k, inside, 0, K, s)
    a = attention_of(s, gumbel, at_k, step_k, inside, K)
    p = cast(load_rows(slots, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O), T)
    y = dot(cast(a, T), p, y * r[:, None])
    store_channels(projected, at_o, step_o, inside, o, OUT, y)


@triton.jit
def _backward(
    grad_projected,
    grad_scores,
    query,
    memory,
    weight,
    gumbel,
    slots,
    grad_query,
    scale,
    shares,
    pixels,
    blocks,
    total,
    steps,
    C: tl.constexpr,
    K: tl.constexpr,
    OUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """dx, the programs' shares of dM (without P's part) and of dP, and the norms' inverses."""
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    TILES_O: tl.constexpr = (OUT + BLOCK_O - 1) // BLOCK_O
    T: tl.constexpr = query.dtype.element_ty
    if shares is not None:
        share_m = shares + tl.program_id(0).to(tl.int64) * (K * (C + OUT))
        share_p = share_m + K * C
    for turn in range(steps):
        index = tl.program_id(0) * steps + turn
        image, first, inside = pixel_block(index, blocks, total, pixels, BLOCK_N)
        at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
        at_k, step_k = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)
        at_o, step_o = run_offsets(image, first, OUT, pixels, CHANNELS_LAST, BLOCK_N)
        at_1, _ = run_offsets(image, first, 1, pixels, CHANNELS_LAST, BLOCK_N)

        square = tl.zeros([BLOCK_N], ACC)
        s = tl.zeros([BLOCK_N, BLOCK_K], ACC)
        for tile in range(TILES_C):
            x = load_channels(query, at, step, inside, tile * BLOCK_C, C, BLOCK_C)
            m = cast(load_rows(memory, 0, K, tile * BLOCK_C, C, C, BLOCK_K, BLOCK_C), T)
            square += tl.sum(x.to(ACC) * x.to(ACC), 1)
            s = dot(x, tl.trans(m), s)
        r, curved = inverse_norm(square)
        if scale is not None:
            tl.store(scale + at_1, r, mask=inside)
        s *= r[:, None]
        a = attention_of(s, gumbel, at_k, step_k, inside, K)

        da = tl.zeros([BLOCK_N, BLOCK_K], ACC)
        for tile in range(TILES_O):
            o = tile * BLOCK_O
            d = load_channels(grad_projected, at_o, step_o, inside, o, OUT, BLOCK_O)
            p = cast(load_rows(slots, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O), T)
            da = dot(d, tl.trans(p), da)
            if shares is not None:
                dp = dot(tl.trans(cast(a, T)), d, tl.zeros([BLOCK_K, BLOCK_O], ACC))
                add_share(share_p, dp, 0, o, K, OUT, turn)
        ds = a * (da - tl.sum(a * da, 1)[:, None])
        if grad_scores is not None:
            ds += load_channels(grad_scores, at_k, step_k, inside, 0, K, BLOCK_K).to(ACC)

        q_e = tl.sum(ds * s, 1)
        e = tl.zeros([BLOCK_N, BLOCK_C], ACC)
        for tile in range(TILES_C):
            c = tile * BLOCK_C
            x = load_channels(query, at, step, inside, c, C, BLOCK_C)
            if shares is not None:
                q = x.to(ACC) * r[:, None]
                dm = dot(tl.trans(cast(ds, T)), cast(q, T), tl.zeros([BLOCK_K, BLOCK_C], ACC))
                add_share(share_m, dm, 0, c, K, C, turn)
            if grad_query is not None:
                e = tl.zeros([BLOCK_N, BLOCK_C], ACC)
                for inner in range(TILES_O):
                    o = inner * BLOCK_O
                    d = load_channels(grad_projected, at_o, step_o, inside, o, OUT, BLOCK_O)
                    w = cast(load_rows(weight, o, OUT, c, C, 2 * C, BLOCK_O, BLOCK_C), T)
                    e = dot(d, w, e)
                q_e += tl.sum(e * x.to(ACC), 1) * r
                m = cast(load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
                e = dot(cast(ds, T), m, e)
                if TILES_C > 1:
                    # q . e needs all channels first: the gradient keeps e meanwhile.
                    store_channels(grad_query, at, step, inside, c, C, e)
        if grad_query is not None:
            q_e = tl.where(curved, q_e, 0.0)
            if TILES_C > 1:
                tl.debug_barrier()
            for tile in range(TILES_C):
                c = tile * BLOCK_C
                x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                if TILES_C > 1:
                    e = load_channels(grad_query, at, step, inside, c, C, BLOCK_C).to(ACC)
                dx = r[:, None] * (e - x.to(ACC) * (r * q_e)[:, None])
                store_channels(grad_query, at, step, inside, c, C, dx)


def memory_read_project(
    query: Tensor, memory: Tensor, weight: Tensor, gumbel: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Forward."""
    outputs = weight.shape[0]
    config = config_of("project", query, memory, weight)
    pixels, blocks, total = runs_of(query).split(config["BLOCK_N"])
    projected, scores = empty_map(query, outputs), empty_map(query, memory.shape[0])
    slots, _ = project_slots(query, memory, weight)
    programs = total * triton.cdiv(outputs, config["BLOCK_O"])
    inputs = (query, memory, weight, gumbel, slots)
    launch(_forward, programs, *inputs, projected, scores, pixels, blocks, total, **config)
    return projected, scores


def memory_read_project_backward(
    grad_projected: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    weight: Tensor,
    gumbel: Tensor | None,
    need_query: bool,
    need_memory: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """First-order gradients; those not needed come back empty."""
    if grad_projected is None:
        # Nothing came through the projection: what is left is reading the scores.
        grad_query, grad_memory = memory_read_backward(
            None, grad_scores, query, memory, gumbel, need_query, need_memory
        )
        grad_weight = torch.zeros_like(weight) if need_weight else weight.new_empty(0)
        return grad_query, grad_memory, grad_weight
    config = config_of("project backward", query, memory, weight)
    pixels, blocks, total = runs_of(query).split(config["BLOCK_N"])
    slots, _ = project_slots(query, memory, weight)
    grad_query = torch.empty_like(query) if need_query else None
    grad_memory = torch.empty_like(memory) if need_memory else None
    grad_weight = torch.empty_like(weight) if need_weight else None
    steps, programs, shares, scale = 1, total, None, None
    if need_memory or need_weight:
        numel = memory.shape[0] * (memory.shape[1] + weight.shape[0])
        steps, programs, shares = new_shares(total, numel, query)
    if need_weight:
        scale = shares.new_empty(query.numel() // query.shape[1])
    inputs = (grad_projected, grad_scores, query, memory, weight, gumbel, slots)
    outputs = (grad_query, scale, shares)
    launch(_backward, programs, *inputs, *outputs, pixels, blocks, total, steps, **config)
    if shares is not None:
        more = None if scale is None else weight_shares(grad_projected, query, scale)
        finish_gradients(shares, more, memory, weight, grad_memory, grad_weight)
    return (
        query.new_empty(0) if grad_query is None else grad_query,
        memory.new_empty(0) if grad_memory is None else grad_memory,
        weight.new_empty(0) if grad_weight is None else grad_weight,
    )


def compile_cases() -> Iterator[CompileCase]:
    """Every kernel in every configuration that ``auto`` can choose."""
    for label, typical, query, memory, weight, _, scores, projected in readings():
        read = (query, memory, weight, scores)
        grads = (projected, scores)
        with recording(label, typical) as cases:
            memory_read_project(*read)
            memory_read_project_backward(*grads, *read, True, True, True)
            memory_read_project_double_backward(query, memory, weight, *grads, *read)
        yield from cases
