"""Second-order pass of :func:`pinmem.ops.memory_read_project` as Triton kernels (docs/math.md 1).

The derivative of the forward and the backward pass along ``(v, V, Y)`` = (gg_query, gg_memory,
gg_weight), with the cotangents of the forward held still; a name with _1 is such a derivative.
Per pixel, for elements of ``e`` bytes: reads ``(2C + O + K) e`` and writes ``(C + O + K) e``.
Launches: P and its derivative, the pixels, the sum of the shares, and from dP to dM and dW_c: 4.
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
from pinmem.kernels.memory_read_double_backward import memory_read_double_backward
from pinmem.kernels.partials import add_share
from pinmem.kernels.projection import finish_gradients, project_slots
from pinmem.kernels.reading_config import config_of, roles_of
from pinmem.kernels.weight_shares import add_blocks, chunked_shares, tile_config
from torch import Tensor

from pinmem.ops._maps import empty_map


@triton.jit
def _second(
    gg_query,
    gg_memory,
    gg_weight,
    grad_projected,
    grad_scores,
    query,
    memory,
    weight,
    gumbel,
    slots,
    slots_1,
    gg_projected,
    gg_scores,
    grad_query,
    shares,
    weight_shares,
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
    ROLES: tl.constexpr,
    PARTS: tl.constexpr,
    TILE_O: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """What is given is filled: the forward's derivative, the query's gradient, shares of the sums.

    The sums are dM, dP_1, dP and, with pixels in chunks as in the first order, dW. No program has
    room for it all: two ``ROLES`` side by side are the forward's derivative with dW, and the rest,
    which three share once more, the gradient and the other sums.
    """
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    TILES_O: tl.constexpr = (OUT + BLOCK_O - 1) // BLOCK_O
    T: tl.constexpr = query.dtype.element_ty
    role, program = tl.program_id(0) % ROLES, tl.program_id(0) // ROLES
    if shares is not None:
        share_m = shares + program.to(tl.int64) * (K * (C + 2 * OUT))
        share_p_1 = share_m + K * C
        share_p = share_p_1 + K * OUT
    chunk, part = program // PARTS, program % PARTS
    for turn in tl.range(steps, disable_licm=True):
        index = (chunk * steps + turn) * PARTS + part
        image, first, inside = pixel_block(index, blocks, total, pixels, BLOCK_N)
        at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
        at_k, step_k = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)
        at_o, step_o = run_offsets(image, first, OUT, pixels, CHANNELS_LAST, BLOCK_N)

        x_x, x_v, s, v_m, q_vm = look_along(
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
        r, curved = inverse_norm(x_x)
        bend = tl.where(curved, x_v * r, 0.0)
        s *= r[:, None]
        s_1 = r[:, None] * (v_m - bend[:, None] * s + q_vm)
        a = attention_of(s, gumbel, at_k, step_k, inside, K)
        a_1 = a * (s_1 - tl.sum(a * s_1, 1)[:, None])

        # Two ifs: the first is the compiler's, the second the program's.
        if gg_projected is not None:  # noqa: SIM102
            if role == 0:
                # q_1 W_q^T + q Y_q^T + a_1 P + a P_1
                store_channels(gg_scores, at_k, step_k, inside, 0, K, s_1)
                for tile in tl.range(TILES_O, disable_licm=True):
                    o = tile * BLOCK_O
                    p = cast(load_rows(slots, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O), T)
                    y = dot(cast(a_1, T), p, tl.zeros([BLOCK_N, BLOCK_O], ACC))
                    if slots_1 is not None:
                        p_1 = cast(load_rows(slots_1, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O), T)
                        y = dot(cast(a, T), p_1, y)
                    for inner in tl.range(TILES_C, disable_licm=True):
                        c = inner * BLOCK_C
                        x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                        q, q_1 = normalised_along(x, gg_query, at, step, inside, c, C, r, bend)
                        w = cast(load_rows(weight, o, OUT, c, C, 2 * C, BLOCK_O, BLOCK_C), T)
                        y = dot(cast(q_1, T), tl.trans(w), y)
                        if gg_weight is not None:
                            gg_w = cast(
                                load_rows(gg_weight, o, OUT, c, C, 2 * C, BLOCK_O, BLOCK_C), T
                            )
                            y = dot(cast(q, T), tl.trans(gg_w), y)
                    store_channels(gg_projected, at_o, step_o, inside, o, OUT, y)

        if weight_shares is not None:  # noqa: SIM102
            if role == 0:
                add_blocks(
                    weight_shares, grad_projected, query, gg_query, chunk, part, turn, steps,
                    pixels, blocks, total,
                    C, OUT, CHANNELS_LAST, ACC, BLOCK_N, PARTS, TILE_O, TILE_C,
                )  # fmt: skip

        if grad_projected is not None:  # noqa: SIM102
            if role > 0:
                da = tl.zeros([BLOCK_N, BLOCK_K], ACC)
                da_1 = tl.zeros([BLOCK_N, BLOCK_K], ACC)
                for tile in tl.range(TILES_O, disable_licm=True):
                    o = tile * BLOCK_O
                    d = load_channels(grad_projected, at_o, step_o, inside, o, OUT, BLOCK_O)
                    p = cast(load_rows(slots, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O), T)
                    da = dot(d, tl.trans(p), da)
                    if slots_1 is not None:
                        p_1 = cast(load_rows(slots_1, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O), T)
                        da_1 = dot(d, tl.trans(p_1), da_1)
                    if role == ROLES - 1:
                        dp = dot(tl.trans(cast(a, T)), d, tl.zeros([BLOCK_K, BLOCK_O], ACC))
                        add_share(share_p, dp, 0, o, K, OUT, turn)
                        dp_1 = dot(tl.trans(cast(a_1, T)), d, tl.zeros([BLOCK_K, BLOCK_O], ACC))
                        add_share(share_p_1, dp_1, 0, o, K, OUT, turn)
                ds, ds_1 = score_gradients(a, a_1, da, da_1)
                if grad_scores is not None:
                    ds += load_channels(grad_scores, at_k, step_k, inside, 0, K, BLOCK_K).to(ACC)

                if role == ROLES - 1:
                    for tile in tl.range(TILES_C, disable_licm=True):
                        c = tile * BLOCK_C
                        x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                        q, q_1 = normalised_along(x, gg_query, at, step, inside, c, C, r, bend)
                        dm = dot(
                            tl.trans(cast(ds_1, T)), cast(q, T), tl.zeros([BLOCK_K, BLOCK_C], ACC)
                        )
                        dm = dot(tl.trans(cast(ds, T)), cast(q_1, T), dm)
                        add_share(share_m, dm, 0, c, K, C, turn)

                if role == 1:
                    # With e = d0 + ds M and its derivative e_1: q.e and (q.e)_1 need all channels,
                    # so the gradient first keeps e_1 - (q.v) r e, and loses the rest after.
                    q_e = tl.sum(ds * s, 1)
                    q_e_1 = tl.sum(ds * s_1 + ds_1 * s, 1)
                    for tile in tl.range(TILES_C, disable_licm=True):
                        c = tile * BLOCK_C
                        e = tl.zeros([BLOCK_N, BLOCK_C], ACC)
                        e_1 = tl.zeros([BLOCK_N, BLOCK_C], ACC)
                        for inner in tl.range(TILES_O, disable_licm=True):
                            o = inner * BLOCK_O
                            d = load_channels(grad_projected, at_o, step_o, inside, o, OUT, BLOCK_O)
                            w = cast(load_rows(weight, o, OUT, c, C, 2 * C, BLOCK_O, BLOCK_C), T)
                            e = dot(d, w, e)
                            if gg_weight is not None:
                                gg_w = cast(
                                    load_rows(gg_weight, o, OUT, c, C, 2 * C, BLOCK_O, BLOCK_C), T
                                )
                                e_1 = dot(d, gg_w, e_1)
                        x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                        q, q_1 = normalised_along(x, gg_query, at, step, inside, c, C, r, bend)
                        q_e += tl.sum(q * e, 1)
                        q_e_1 += tl.sum(q_1 * e + q * e_1, 1)
                        m = cast(load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
                        e = dot(cast(ds, T), m, e)
                        e_1 = dot(cast(ds_1, T), m, e_1)
                        if gg_memory is not None:
                            vm = cast(load_rows(gg_memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
                            e_1 = dot(cast(ds, T), vm, e_1)
                        store_channels(
                            grad_query, at, step, inside, c, C, e_1 - (bend * r)[:, None] * e
                        )
                    q_e, q_e_1 = tl.where(curved, q_e, 0.0), tl.where(curved, q_e_1, 0.0)
                    tl.debug_barrier()
                    for tile in tl.range(TILES_C, disable_licm=True):
                        c = tile * BLOCK_C
                        x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                        q, q_1 = normalised_along(x, gg_query, at, step, inside, c, C, r, bend)
                        z = load_channels(grad_query, at, step, inside, c, C, BLOCK_C).to(ACC)
                        z -= q_1 * q_e[:, None] + q * (q_e_1 - bend * r * q_e)[:, None]
                        store_channels(grad_query, at, step, inside, c, C, r[:, None] * z)


def memory_read_project_double_backward(
    gg_query: Tensor | None,
    gg_memory: Tensor | None,
    gg_weight: Tensor | None,
    grad_projected: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    weight: Tensor,
    gumbel: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Second-order pass: derivatives along (gg_query, gg_memory, gg_weight)."""
    (slots, channels), outputs = memory.shape, weight.shape[0]
    config = config_of("project second", query, memory, weight)
    sizes = runs_of(query).split(config["BLOCK_N"])
    gg_projected, gg_scores = empty_map(query, outputs), empty_map(query, slots)
    small = project_slots(query, memory, weight, gg_memory, gg_weight)
    inputs = (gg_query, gg_memory, gg_weight, grad_projected, grad_scores)
    inputs += (query, memory, weight, gumbel, *small)
    forward = (gg_projected, gg_scores)
    if grad_projected is None:
        # Nothing came through the projection: what is left is reading the scores.
        results = (*forward, None, None, None)
        tile = tile_config(query)
        launch(_second, sizes[2], *inputs, *results, *sizes, 1, **config, **tile, ROLES=1)
        _, _, grad_query, grad_memory = memory_read_double_backward(
            gg_query, gg_memory, None, grad_scores, query, memory, gumbel
        )
        return *forward, grad_query, grad_memory, torch.zeros_like(weight)

    grad_query, grad_memory = torch.empty_like(query), torch.empty_like(memory)
    # Along the memory and the weight alone q stands still: the query's half of dW gets nothing.
    moving = None if gg_query is None else weight
    grad_weight = torch.zeros_like(weight) if moving is None else torch.empty_like(weight)
    tile, numel = tile_config(query, moving), slots * (channels + 2 * outputs)
    steps, programs, shares, weight_share = chunked_shares(sizes[2], numel, tile, query, moving)
    results, roles = (
        (*forward, grad_query, shares, weight_share),
        roles_of("project second", query, memory),
    )
    launch(
        _second, programs * roles, *inputs, *results, *sizes, steps, **config, **tile, ROLES=roles
    )
    finish_gradients(
        shares, weight_share, memory, weight, grad_memory, grad_weight, gg_memory, gg_weight
    )
    return *forward, grad_query, grad_memory, grad_weight
