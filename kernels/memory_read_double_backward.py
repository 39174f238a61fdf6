"""The second-order pass of :func:`pinmem.ops.memory_read` as Triton kernels (docs/math.md 1).

The derivative of the forward and the backward pass along ``(v, V)`` = (gg_query, gg_memory), with
the cotangents of the forward held still. Per pixel, elements of ``e`` bytes: reads
``(4C + K) e`` and writes ``(3C + K) e``; noise is another ``K e``. Launches: 2, with more than
128 slots in float32 4.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from pinmem.kernels.attention import (
    attention_of,
    look_along,
    normalised_along,
    score_gradients,
)
from pinmem.kernels.launch import launch
from pinmem.kernels.maps import (
    afresh,
    apart,
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
from pinmem.kernels.partials import add_share, add_shares, new_shares
from pinmem.kernels.reading_config import config_of, launches_of
from torch import Tensor

from pinmem.ops._maps import empty_map


@triton.jit
def _read_along(
    gg_query,
    gg_memory,
    grad_readout,
    grad_scores,
    query,
    memory,
    gumbel,
    gg_readout,
    gg_scores,
    grad_query,
    shares,
    pixels,
    blocks,
    total,
    program,
    steps,
    C: tl.constexpr,
    K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FORWARD: tl.constexpr,
    QUERY: tl.constexpr,
    MEMORY: tl.constexpr,
):
    """Blocks of pixels of one ``program``: fills what it is asked for.

    With ``FORWARD`` the forward's derivative, with ``QUERY`` the query's gradient, with ``MEMORY``
    a share of dM. Compiled for each role on its own, it holds what that needs alone.
    """
    TILES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    T: tl.constexpr = query.dtype.element_ty
    SCARCE: tl.constexpr = BLOCK_K > 32 or T.primitive_bitwidth > 16
    share = shares + program.to(tl.int64) * (K * C)
    for turn in tl.range(steps, disable_licm=True):
        index = program * steps + turn
        image, first, inside = pixel_block(index, blocks, total, pixels, BLOCK_N)
        at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
        at_2c, step_2c = run_offsets(image, first, 2 * C, pixels, CHANNELS_LAST, BLOCK_N)

        x_x, x_v, s, s_1 = look_along(
            query,
            gg_query,
            memory,
            gg_memory,
            at,
            step,
            inside,
            C,
            K,
            ACC,
            BLOCK_N,
            BLOCK_C,
            BLOCK_K,
        )
        # The name with _1 is the derivative along (v, V).
        r, curved = inverse_norm(x_x)
        bend = tl.where(curved, x_v * r, 0.0)
        s *= r[:, None]
        s_1 = r[:, None] * (s_1 - bend[:, None] * s)

        x_d0 = tl.zeros([BLOCK_N], ACC)
        v_d0 = tl.zeros([BLOCK_N], ACC)
        da = tl.zeros([BLOCK_N, BLOCK_K], ACC)
        da_1 = tl.zeros([BLOCK_N, BLOCK_K], ACC)
        if grad_readout is not None and (QUERY or MEMORY):
            for tile in tl.range(TILES, disable_licm=True):
                c = afresh(tile * BLOCK_C, SCARCE, BLOCK_C)
                m = cast(load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
                dc = load_channels(grad_readout, at_2c, step_2c, inside, C + c, 2 * C, BLOCK_C)
                da = dot(dc, tl.trans(m), da)
                if gg_memory is not None and apart(SCARCE):
                    vm = cast(load_rows(gg_memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
                    da_1 = dot(dc, tl.trans(vm), da_1)
                d0 = load_channels(grad_readout, at_2c, step_2c, inside, c, C, BLOCK_C).to(ACC)
                x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                x_d0 += tl.sum(x.to(ACC) * d0, 1)
                if gg_query is not None:
                    v = load_channels(gg_query, at, step, inside, c, C, BLOCK_C)
                    v_d0 += tl.sum(v.to(ACC) * d0, 1)

        at_k, step_k = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)
        if FORWARD:
            store_channels(gg_scores, at_k, step_k, inside, 0, K, s_1)
        a = attention_of(s, gumbel, at_k, step_k, inside, K)
        a_1 = a * (s_1 - tl.sum(a * s_1, 1)[:, None])
        ds, ds_1 = score_gradients(a, a_1, da, da_1)
        if grad_scores is not None:
            ds += load_channels(grad_scores, at_k, step_k, inside, 0, K, BLOCK_K).to(ACC)
        q_e = x_d0 * r + tl.sum(ds * s, 1)
        q_e_1 = r * (v_d0 - bend * x_d0 * r) + tl.sum(ds * s_1 + ds_1 * s, 1)
        q_e, q_e_1 = tl.where(curved, q_e, 0.0), tl.where(curved, q_e_1, 0.0)

        for tile in tl.range(TILES, disable_licm=True):
            c = afresh(tile * BLOCK_C, SCARCE, BLOCK_C)
            m = cast(load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
            if FORWARD or MEMORY:
                x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                q, q_1 = normalised_along(x, gg_query, at, step, inside, c, C, r, bend)
            if FORWARD:
                store_channels(gg_readout, at_2c, step_2c, inside, c, C, q_1)
                c_1 = dot_slots(cast(a_1, T), m, tl.zeros([BLOCK_N, BLOCK_C], ACC))
                if gg_memory is not None and apart(SCARCE):
                    vm = cast(load_rows(gg_memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
                    c_1 = dot_slots(cast(a, T), vm, c_1)
                store_channels(gg_readout, at_2c, step_2c, inside, C + c, 2 * C, c_1)
            if QUERY:
                e = dot_slots(cast(ds, T), m, tl.zeros([BLOCK_N, BLOCK_C], ACC))
                e_1 = tl.zeros([BLOCK_N, BLOCK_C], ACC)
                if apart(SCARCE):
                    e_1 = dot_slots(cast(ds_1, T), m, e_1)
                if gg_memory is not None and apart(SCARCE):
                    vm = cast(load_rows(gg_memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
                    e_1 = dot_slots(cast(ds, T), vm, e_1)
                if grad_readout is not None:
                    d0 = load_channels(grad_readout, at_2c, step_2c, inside, c, C, BLOCK_C)
                    e += d0.to(ACC)
                if not FORWARD:
                    # Late: its registers are those of the products' operands.
                    x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                    q, q_1 = normalised_along(x, gg_query, at, step, inside, c, C, r, bend)
                e -= q * q_e[:, None]
                e_1 -= q_1 * q_e[:, None] + q * q_e_1[:, None]
                dx = r[:, None] * (e_1 - (bend * r)[:, None] * e)
                store_channels(grad_query, at, step, inside, c, C, dx)
            if MEMORY:
                dm = dot(tl.trans(cast(ds_1, T)), cast(q, T), tl.zeros([BLOCK_K, BLOCK_C], ACC))
                dm = dot(tl.trans(cast(ds, T)), cast(q_1, T), dm)
                if grad_readout is not None:
                    dc = load_channels(grad_readout, at_2c, step_2c, inside, C + c, 2 * C, BLOCK_C)
                    dm = dot(tl.trans(cast(a_1, T)), dc, dm)
                add_share(share, dm, 0, c, K, C, turn)


@triton.jit
def _double_backward(
    gg_query,
    gg_memory,
    grad_readout,
    grad_scores,
    query,
    memory,
    gumbel,
    gg_readout,
    gg_scores,
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
    ROLES: tl.constexpr,
    ROLE: tl.constexpr,
):
    """All of :func:`_read_along` in one program, where it has room for a, a_1, ds and ds_1.

    Else three ``ROLES`` do one each: side by side, so that what one fetches the others find in the
    L2, or this launch does ``ROLE`` alone.
    """
    role = tl.program_id(0) % ROLES if ROLE is None else ROLE
    program = tl.program_id(0) // ROLES if ROLE is None else tl.program_id(0)
    for one in tl.static_range(ROLES):
        if role == one:
            _read_along(
                gg_query, gg_memory, grad_readout, grad_scores, query, memory, gumbel,
                gg_readout, gg_scores, grad_query, shares, pixels, blocks, total, program, steps,
                C, K, CHANNELS_LAST, ACC, BLOCK_N, BLOCK_C, BLOCK_K,
                FORWARD=one == 0, QUERY=one == ROLES // 2, MEMORY=one == ROLES - 1,
            )  # fmt: skip


def memory_read_double_backward(
    gg_query: Tensor | None,
    gg_memory: Tensor | None,
    grad_readout: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    gumbel: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Second-order pass: derivatives along (gg_query, gg_memory)."""
    slots, channels = memory.shape
    config = config_of("second", query, memory)
    pixels, blocks, total = runs_of(query).split(config["BLOCK_N"])
    gg_readout, gg_scores = empty_map(query, 2 * channels), empty_map(query, slots)
    grad_query, grad_memory = torch.empty_like(query), torch.empty_like(memory)
    steps, programs, shares = new_shares(total, memory.numel(), query)
    inputs = (gg_query, gg_memory, grad_readout, grad_scores, query, memory, gumbel)
    sizes = (pixels, blocks, total, steps)
    outputs = (gg_readout, gg_scores, grad_query, shares)
    for side, roles in launches_of("second", query, memory):
        launch(_double_backward, programs * side, *inputs, *outputs, *sizes, **config, **roles)
    add_shares(shares, grad_memory)
    return gg_readout, gg_scores, grad_query, grad_memory
