"""The walk over the pixels behind :mod:`pinmem.kernels.memory_read_project_double_backward`.

It is compiled for each role on its own: what a role does not do takes none of its registers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pinmem.kernels.attention import (
    attention_of,
    look_along,
    normalised_along,
    score_gradients,
)
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
    rolled,
    run_offsets,
    store_channels,
)
from pinmem.kernels.partials import add_share
from pinmem.kernels.weight_shares import add_blocks


@triton.jit
def read_project_along(
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
    program,
    C: tl.constexpr,
    K: tl.constexpr,
    OUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    FORWARD: tl.constexpr,
    QUERY: tl.constexpr,
    MEMORY: tl.constexpr,
    SLOTS: tl.constexpr,
    PARTS: tl.constexpr,
    TILE_O: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """Blocks of pixels of one ``program``: fills what it is given of what it is asked for.

    With ``FORWARD`` the forward's derivative and, with pixels in chunks as in the first order,
    shares of dW; with ``QUERY`` the query's gradient; with ``MEMORY`` shares of dM,
    with ``SLOTS`` of dP_1 and dP.
    """
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    TILES_O: tl.constexpr = (OUT + BLOCK_O - 1) // BLOCK_O
    T: tl.constexpr = query.dtype.element_ty
    SCARCE: tl.constexpr = BLOCK_K > 32 or T.primitive_bitwidth > 16
    ROLLED: tl.constexpr = BLOCK_K > 128 and T.primitive_bitwidth == 16
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
        r, curved = inverse_norm(x_x)
        bend = tl.where(curved, x_v * r, 0.0)
        s *= r[:, None]
        s_1 = r[:, None] * (s_1 - bend[:, None] * s)
        a = attention_of(s, gumbel, at_k, step_k, inside, K)
        a_1 = a * (s_1 - tl.sum(a * s_1, 1)[:, None])

        if FORWARD and gg_projected is not None:
            # q_1 W_q^T + q Y_q^T + a_1 P + a P_1
            store_channels(gg_scores, at_k, step_k, inside, 0, K, s_1)
            for tile in tl.range(rolled(TILES_O, ROLLED), disable_licm=True):
                o = afresh(tile * BLOCK_O, SCARCE, BLOCK_O)
                p = cast(load_rows(slots, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O), T)
                y = dot_slots(cast(a_1, T), p, tl.zeros([BLOCK_N, BLOCK_O], ACC))
                if slots_1 is not None and apart(SCARCE):
                    p_1 = cast(load_rows(slots_1, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O), T)
                    y = dot_slots(cast(a, T), p_1, y)
                for inner in tl.range(rolled(TILES_C, ROLLED), disable_licm=True):
                    c = afresh(inner * BLOCK_C, SCARCE, BLOCK_C)
                    x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                    q, q_1 = normalised_along(x, gg_query, at, step, inside, c, C, r, bend)
                    w = cast(load_rows(weight, o, OUT, c, C, 2 * C, BLOCK_O, BLOCK_C), T)
                    y = dot(cast(q_1, T), tl.trans(w), y)
                    if gg_weight is not None and apart(SCARCE):
                        gg_w = cast(load_rows(gg_weight, o, OUT, c, C, 2 * C, BLOCK_O, BLOCK_C), T)
                        y = dot(cast(q, T), tl.trans(gg_w), y)
                store_channels(gg_projected, at_o, step_o, inside, o, OUT, y)

        if FORWARD and weight_shares is not None and apart(True):
            add_blocks(
                weight_shares, grad_projected, query, gg_query, chunk, part, turn, steps,
                pixels, blocks, total,
                C, OUT, CHANNELS_LAST, ACC, BLOCK_N, PARTS, TILE_O, TILE_C,
            )  # fmt: skip

        if (QUERY or MEMORY or SLOTS) and grad_projected is not None:
            da = tl.zeros([BLOCK_N, BLOCK_K], ACC)
            da_1 = tl.zeros([BLOCK_N, BLOCK_K], ACC)
            for tile in tl.range(rolled(TILES_O, ROLLED), disable_licm=True):
                o = afresh(tile * BLOCK_O, SCARCE, BLOCK_O)
                d = load_channels(grad_projected, at_o, step_o, inside, o, OUT, BLOCK_O)
                p = cast(load_rows(slots, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O), T)
                da = dot(d, tl.trans(p), da)
                if slots_1 is not None and apart(SCARCE):
                    p_1 = cast(load_rows(slots_1, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O), T)
                    da_1 = dot(d, tl.trans(p_1), da_1)
                if SLOTS and apart(True):  # or all of a would be held for the loop
                    dp = dot(tl.trans(cast(a, T)), d, tl.zeros([BLOCK_K, BLOCK_O], ACC))
                    add_share(share_p, dp, 0, o, K, OUT, turn)
                    dp_1 = dot(tl.trans(cast(a_1, T)), d, tl.zeros([BLOCK_K, BLOCK_O], ACC))
                    add_share(share_p_1, dp_1, 0, o, K, OUT, turn)
            ds, ds_1 = score_gradients(a, a_1, da, da_1)
            if grad_scores is not None:
                ds += load_channels(grad_scores, at_k, step_k, inside, 0, K, BLOCK_K).to(ACC)

            if MEMORY:
                for tile in tl.range(rolled(TILES_C, ROLLED), disable_licm=True):
                    c = afresh(tile * BLOCK_C, SCARCE, BLOCK_C)
                    x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                    q, q_1 = normalised_along(x, gg_query, at, step, inside, c, C, r, bend)
                    dm = dot(tl.trans(cast(ds_1, T)), cast(q, T), tl.zeros([BLOCK_K, BLOCK_C], ACC))
                    dm = dot(tl.trans(cast(ds, T)), cast(q_1, T), dm)
                    add_share(share_m, dm, 0, c, K, C, turn)

            if QUERY:
                # With e = d0 + ds M and its derivative e_1: q.e and (q.e)_1 need all channels,
                # so the gradient first keeps e_1 - (q.v) r e, and loses the rest after.
                q_e = tl.zeros([BLOCK_N], ACC)
                q_e_1 = tl.zeros([BLOCK_N], ACC)
                for tile in tl.range(rolled(TILES_C, ROLLED), disable_licm=True):
                    c = afresh(tile * BLOCK_C, SCARCE, BLOCK_C)
                    e = tl.zeros([BLOCK_N, BLOCK_C], ACC)
                    e_1 = tl.zeros([BLOCK_N, BLOCK_C], ACC)
                    for inner in tl.range(rolled(TILES_O, ROLLED), disable_licm=True):
                        o = afresh(inner * BLOCK_O, SCARCE, BLOCK_O)
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
                    m = cast(load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
                    e = dot_slots(cast(ds, T), m, e)
                    e_1 = dot_slots(cast(ds_1, T), m, e_1)
                    if gg_memory is not None:
                        vm = cast(load_rows(gg_memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
                        e_1 = dot_slots(cast(ds, T), vm, e_1)
                    q_e += tl.sum(q * e, 1)
                    q_e_1 += tl.sum(q_1 * e + q * e_1, 1)
                    store_channels(
                        grad_query, at, step, inside, c, C, e_1 - (bend * r)[:, None] * e
                    )
                q_e, q_e_1 = tl.where(curved, q_e, 0.0), tl.where(curved, q_e_1, 0.0)
                tl.debug_barrier()
                for tile in tl.range(rolled(TILES_C, ROLLED), disable_licm=True):
                    c = afresh(tile * BLOCK_C, SCARCE, BLOCK_C)
                    x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                    q, q_1 = normalised_along(x, gg_query, at, step, inside, c, C, r, bend)
                    z = load_channels(grad_query, at, step, inside, c, C, BLOCK_C).to(ACC)
                    z -= q_1 * q_e[:, None] + q * (q_e_1 - bend * r * q_e)[:, None]
                    store_channels(grad_query, at, step, inside, c, C, r[:, None] * z)
