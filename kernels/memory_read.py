"""Triton kernels for :func:`pinmem.ops.memory_read` (docs/math.md 1).

Bytes per pixel, for elements of ``e`` bytes: forward reads ``C e`` and writes ``(2C + K) e``;
backward reads ``(3C + K) e`` and writes ``C e``; what a tile loop reads twice, the second read
finds in a cache. Launches: forward 1, backward 2 (1 without a memory gradient), second order 2.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pinmem.kernels.attention import attention_of
from pinmem.kernels.launch import CompileCase, launch, recording
from pinmem.kernels.maps import (
    afresh,
    cast,
    dot,
    dot_slots,
    inverse_norm,
    load_channels,
    load_rows,
    pixel_block,
    run_offsets,
    runs_of,
    store_channels,
)
from pinmem.kernels.memory_read_double_backward import memory_read_double_backward
from pinmem.kernels.partials import add_share, add_shares, new_shares
from pinmem.kernels.reading_cases import readings
from pinmem.kernels.reading_config import config_of
from torch import Tensor

from pinmem.ops._maps import empty_map

__all__ = [
    "compile_cases",
    "memory_read",
    "memory_read_backward",
    "memory_read_double_backward",
]


@triton.jit
def _forward(
    query,
    memory,
    gumbel,
    readout,
    scores,
    pixels,
    blocks,
    total,
    C: tl.constexpr,
    K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    TILES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    T: tl.constexpr = query.dtype.element_ty
    image, first, inside = pixel_block(tl.program_id(0), blocks, total, pixels, BLOCK_N)
    at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
    at_k, step_k = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)
    at_2c, step_2c = run_offsets(image, first, 2 * C, pixels, CHANNELS_LAST, BLOCK_N)

    # A single tile of all channels stays on the chip; of several, the second look finds a cache.
    x = load_channels(query, at, step, inside, 0, C, BLOCK_C)
    m = cast(load_rows(memory, 0, K, 0, C, C, BLOCK_K, BLOCK_C), T)
    square = tl.sum(x.to(ACC) * x.to(ACC), 1)
    s = dot(x, tl.trans(m), tl.zeros([BLOCK_N, BLOCK_K], ACC))
    for tile in range(1, TILES):
        x = load_channels(query, at, step, inside, tile * BLOCK_C, C, BLOCK_C)
        m = cast(load_rows(memory, 0, K, tile * BLOCK_C, C, C, BLOCK_K, BLOCK_C), T)
        square += tl.sum(x.to(ACC) * x.to(ACC), 1)
        s = dot(x, tl.trans(m), s)
    r, _ = inverse_norm(square)
    s *= r[:, None]
    store_channels(scores, at_k, step_k, inside, 0, K, s)
    a = attention_of(s, gumbel, at_k, step_k, inside, K)

    for tile in range(TILES):
        start = afresh(tile * BLOCK_C, BLOCK_K > 32, BLOCK_C)
        if TILES > 1:
            x = load_channels(query, at, step, inside, start, C, BLOCK_C)
            m = cast(load_rows(memory, 0, K, start, C, C, BLOCK_K, BLOCK_C), T)
        c = dot_slots(cast(a, T), m, tl.zeros([BLOCK_N, BLOCK_C], ACC))
        store_channels(readout, at_2c, step_2c, inside, start, C, x.to(ACC) * r[:, None])
        store_channels(readout, at_2c, step_2c, inside, C + start, 2 * C, c)


@triton.jit
def _backward(
    grad_readout,
    grad_scores,
    query,
    memory,
    gumbel,
    grad_query,
    shares,
    pixels,
    blocks,
    total,
    steps,
    C: tl.constexpr,
    K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    TILES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    T: tl.constexpr = query.dtype.element_ty
    if shares is not None:
        share = shares + tl.program_id(0).to(tl.int64) * (K * C)
        all_dm = tl.zeros([BLOCK_K, BLOCK_C], ACC)
    for turn in tl.range(steps, disable_licm=True):
        index = tl.program_id(0) * steps + turn
        image, first, inside = pixel_block(index, blocks, total, pixels, BLOCK_N)
        at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
        at_k, step_k = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)
        at_2c, step_2c = run_offsets(image, first, 2 * C, pixels, CHANNELS_LAST, BLOCK_N)

        # As in forward, a single tile of all channels is read once.
        x = load_channels(query, at, step, inside, 0, C, BLOCK_C)
        m = cast(load_rows(memory, 0, K, 0, C, C, BLOCK_K, BLOCK_C), T)
        square = tl.sum(x.to(ACC) * x.to(ACC), 1)
        s = dot(x, tl.trans(m), tl.zeros([BLOCK_N, BLOCK_K], ACC))
        x_d0 = tl.zeros([BLOCK_N], ACC)
        da = tl.zeros([BLOCK_N, BLOCK_K], ACC)
        if grad_readout is not None:
            d0 = load_channels(grad_readout, at_2c, step_2c, inside, 0, C, BLOCK_C)
            dc = load_channels(grad_readout, at_2c, step_2c, inside, C, 2 * C, BLOCK_C)
            x_d0 += tl.sum(x.to(ACC) * d0.to(ACC), 1)
            da = dot(dc, tl.trans(m), da)
        for tile in range(1, TILES):
            start = afresh(tile * BLOCK_C, BLOCK_K > 32, BLOCK_C)
            x = load_channels(query, at, step, inside, start, C, BLOCK_C)
            m = cast(load_rows(memory, 0, K, start, C, C, BLOCK_K, BLOCK_C), T)
            square += tl.sum(x.to(ACC) * x.to(ACC), 1)
            s = dot(x, tl.trans(m), s)
            if grad_readout is not None:
                d0 = load_channels(grad_readout, at_2c, step_2c, inside, start, C, BLOCK_C)
                dc = load_channels(grad_readout, at_2c, step_2c, inside, C + start, 2 * C, BLOCK_C)
                x_d0 += tl.sum(x.to(ACC) * d0.to(ACC), 1)
                da = dot(dc, tl.trans(m), da)
        r, curved = inverse_norm(square)
        s *= r[:, None]
        a = attention_of(s, gumbel, at_k, step_k, inside, K)
        ds = a * (da - tl.sum(a * da, 1)[:, None])
        if grad_scores is not None:
            ds += load_channels(grad_scores, at_k, step_k, inside, 0, K, BLOCK_K).to(ACC)
        # q . (d0 + ds M) without another look at the channels, as q M^T = s.
        q_e = tl.where(curved, x_d0 * r + tl.sum(ds * s, 1), 0.0)

        for tile in range(TILES):
            start = afresh(tile * BLOCK_C, BLOCK_K > 32, BLOCK_C)
            if TILES > 1:
                x = load_channels(query, at, step, inside, start, C, BLOCK_C)
                m = cast(load_rows(memory, 0, K, start, C, C, BLOCK_K, BLOCK_C), T)
                if grad_readout is not None:
                    d0 = load_channels(grad_readout, at_2c, step_2c, inside, start, C, BLOCK_C)
                    dc = load_channels(
                        grad_readout, at_2c, step_2c, inside, C + start, 2 * C, BLOCK_C
                    )
            q = x.to(ACC) * r[:, None]
            if grad_query is not None:
                e = dot_slots(cast(ds, T), m, tl.zeros([BLOCK_N, BLOCK_C], ACC))
                if grad_readout is not None:
                    e += d0.to(ACC)
                dx = r[:, None] * (e - q * q_e[:, None])
                store_channels(grad_query, at, step, inside, start, C, dx)
            if shares is not None:
                dm = all_dm if TILES == 1 else tl.zeros([BLOCK_K, BLOCK_C], ACC)
                dm = dot(tl.trans(cast(ds, T)), cast(q, T), dm)
                if grad_readout is not None:
                    dm = dot(tl.trans(cast(a, T)), dc, dm)
                if TILES == 1:
                    all_dm = dm
                else:
                    add_share(share, dm, 0, start, K, C, turn)
    if shares is not None and TILES == 1:
        add_share(share, all_dm, 0, 0, K, C, 0)


def memory_read(query: Tensor, memory: Tensor, gumbel: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forward."""
    slots, channels = memory.shape
    readout, scores = empty_map(query, 2 * channels), empty_map(query, slots)
    config = config_of("forward", query, memory)
    pixels, blocks, total = runs_of(query).split(config["BLOCK_N"])
    inputs = (query, memory, gumbel)
    launch(_forward, total, *inputs, readout, scores, pixels, blocks, total, **config)
    return readout, scores


def memory_read_backward(
    grad_readout: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    gumbel: Tensor | None,
    need_query: bool,
    need_memory: bool,
) -> tuple[Tensor, Tensor]:
    """First-order gradients; those not needed come back empty."""
    config = config_of("backward", query, memory)
    pixels, blocks, total = runs_of(query).split(config["BLOCK_N"])
    grad_query = torch.empty_like(query) if need_query else None
    grad_memory = torch.empty_like(memory) if need_memory else memory.new_empty(0)
    steps, programs, shares = 1, total, None
    if need_memory:
        steps, programs, shares = new_shares(total, memory.numel(), query)
    inputs = (grad_readout, grad_scores, query, memory, gumbel, grad_query, shares)
    launch(_backward, programs, *inputs, pixels, blocks, total, steps, **config)
    if shares is not None:
        add_shares(shares, grad_memory)
    return query.new_empty(0) if grad_query is None else grad_query, grad_memory


def compile_cases() -> Iterator[CompileCase]:
    """Every kernel in every configuration that ``auto`` can choose."""
    for label, typical, query, memory, _, readout, scores, _ in readings():
        with recording(label, typical) as cases:
            memory_read(query, memory, scores)
            memory_read_backward(readout, scores, query, memory, scores, True, True)
            memory_read_double_backward(query, memory, readout, scores, query, memory, scores)
        yield from cases
        if typical:
            with recording(f"{label} in part", typical) as cases:
                memory_read(query, memory, None)
                memory_read_backward(readout, scores, query, memory, None, True, False)
                memory_read_backward(readout, None, query, memory, None, False, True)
                memory_read_double_backward(query, None, readout, scores, query, memory, None)
                memory_read_double_backward(None, memory, readout, None, query, memory, None)
            yield from cases
