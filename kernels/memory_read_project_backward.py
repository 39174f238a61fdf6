"""First-order pass of :func:`pinmem.ops.memory_read_project` as Triton kernels (docs/math.md 1).

Bytes per pixel, for elements of ``e`` bytes: reads ``(C + O + K) e`` and writes ``C e``. Launches:
P, the pixels, the sum of the shares, and from dP to dM and dW_c: 4, and 2 without the gradients of
memory and weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from pinmem.kernels.attention import attention_of
from pinmem.kernels.launch import launch
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
from pinmem.kernels.memory_read import memory_read_backward
from pinmem.kernels.partials import add_share
from pinmem.kernels.projection import finish_gradients, project_slots
from pinmem.kernels.reading_config import config_of, roles_of
from pinmem.kernels.weight_shares import add_blocks, chunked_shares, tile_config
from torch import Tensor


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
    """dx, and shares of dM (without P's part), of dP and of the query's half of dW.

    ``PARTS`` programs go through a chunk of the pixels side by side. In a turn each has a block of
    its own, and of them all a tile of dW: whatever one reads, the others just did. Where a program
    has no room for it all, there are two ``ROLES`` side by side: the sums, and dx.
    """
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    TILES_O: tl.constexpr = (OUT + BLOCK_O - 1) // BLOCK_O
    T: tl.constexpr = query.dtype.element_ty
    role, program = tl.program_id(0) % ROLES, tl.program_id(0) // ROLES
    if shares is not None:
        share_m = shares + program.to(tl.int64) * (K * (C + OUT))
        share_p = share_m + K * C
    chunk, part = program // PARTS, program % PARTS
    for turn in tl.range(steps, disable_licm=True):
        index = (chunk * steps + turn) * PARTS + part
        image, first, inside = pixel_block(index, blocks, total, pixels, BLOCK_N)
        at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
        at_k, step_k = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)
        at_o, step_o = run_offsets(image, first, OUT, pixels, CHANNELS_LAST, BLOCK_N)

        square = tl.zeros([BLOCK_N], ACC)
        s = tl.zeros([BLOCK_N, BLOCK_K], ACC)
        for tile in tl.range(TILES_C, disable_licm=True):
            c = afresh(tile * BLOCK_C, BLOCK_K > 32, BLOCK_C)
            x = load_channels(query, at, step, inside, c, C, BLOCK_C)
            m = cast(load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
            square += tl.sum(x.to(ACC) * x.to(ACC), 1)
            s = dot(x, tl.trans(m), s)
        r, curved = inverse_norm(square)
        s *= r[:, None]
        a = attention_of(s, gumbel, at_k, step_k, inside, K)

        # Of two ifs the first is the compiler's, the second the program's.
        da = tl.zeros([BLOCK_N, BLOCK_K], ACC)
        for tile in tl.range(TILES_O, disable_licm=True):
            o = afresh(tile * BLOCK_O, BLOCK_K > 32, BLOCK_O)
            d = load_channels(grad_projected, at_o, step_o, inside, o, OUT, BLOCK_O)
            p = cast(load_rows(slots, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O), T)
            da = dot(d, tl.trans(p), da)
            if shares is not None:  # noqa: SIM102
                if role == 0:
                    dp = dot(tl.trans(cast(a, T)), d, tl.zeros([BLOCK_K, BLOCK_O], ACC))
                    add_share(share_p, dp, 0, o, K, OUT, turn)
        ds = a * (da - tl.sum(a * da, 1)[:, None])
        if grad_scores is not None:
            ds += load_channels(grad_scores, at_k, step_k, inside, 0, K, BLOCK_K).to(ACC)

        if shares is not None:  # noqa: SIM102
            if role == 0:
                for tile in tl.range(TILES_C, disable_licm=True):
                    c = afresh(tile * BLOCK_C, BLOCK_K > 32, BLOCK_C)
                    x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                    q = x.to(ACC) * r[:, None]
                    dm = dot(tl.trans(cast(ds, T)), cast(q, T), tl.zeros([BLOCK_K, BLOCK_C], ACC))
                    add_share(share_m, dm, 0, c, K, C, turn)

        if grad_query is not None:  # noqa: SIM102
            if role == ROLES - 1:
                # q . e needs all channels of e = d0 + ds M: the gradient keeps e meanwhile.
                q_e = tl.sum(ds * s, 1)
                for tile in tl.range(TILES_C, disable_licm=True):
                    c = afresh(tile * BLOCK_C, BLOCK_K > 32, BLOCK_C)
                    e = tl.zeros([BLOCK_N, BLOCK_C], ACC)
                    for inner in tl.range(TILES_O, disable_licm=True):
                        o = afresh(inner * BLOCK_O, BLOCK_K > 32, BLOCK_O)
                        d = load_channels(grad_projected, at_o, step_o, inside, o, OUT, BLOCK_O)
                        w = cast(load_rows(weight, o, OUT, c, C, 2 * C, BLOCK_O, BLOCK_C), T)
                        e = dot(d, w, e)
                    x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                    q_e += tl.sum(e * x.to(ACC), 1) * r
                    m = cast(load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C), T)
                    e = dot_slots(cast(ds, T), m, e)
                    store_channels(grad_query, at, step, inside, c, C, e)
                q_e = tl.where(curved, q_e, 0.0)
                tl.debug_barrier()
                for tile in tl.range(TILES_C, disable_licm=True):
                    c = afresh(tile * BLOCK_C, BLOCK_K > 32, BLOCK_C)
                    x = load_channels(query, at, step, inside, c, C, BLOCK_C)
                    e = load_channels(grad_query, at, step, inside, c, C, BLOCK_C).to(ACC)
                    dx = r[:, None] * (e - x.to(ACC) * (r * q_e)[:, None])
                    store_channels(grad_query, at, step, inside, c, C, dx)

        if weight_shares is not None:  # noqa: SIM102
            if role == 0:
                add_blocks(
                    weight_shares, grad_projected, query, None, chunk, part, turn, steps,
                    pixels, blocks, total,
                    C, OUT, CHANNELS_LAST, ACC, BLOCK_N, PARTS, TILE_O, TILE_C,
                )  # fmt: skip


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
    sizes = runs_of(query).split(config["BLOCK_N"])
    slots, _ = project_slots(query, memory, weight)
    grad_query = torch.empty_like(query) if need_query else None
    grad_memory = torch.empty_like(memory) if need_memory else None
    grad_weight = torch.empty_like(weight) if need_weight else None
    tile = tile_config(query, weight if need_weight else None)
    numel = memory.shape[0] * (memory.shape[1] + weight.shape[0])
    steps, programs, shares, weight_share = chunked_shares(
        sizes[2], numel, tile, query, weight if need_weight else None
    )
    if not (need_memory or need_weight):
        steps, programs, shares = 1, sizes[2], None
    inputs = (grad_projected, grad_scores, query, memory, weight, gumbel, slots)
    roles = roles_of("project backward", query, memory)
    if grad_query is None or shares is None:
        roles = 1
    outputs = (grad_query, shares, weight_share)
    launch(
        _backward, programs * roles, *inputs, *outputs, *sizes, steps,
        **config, **tile, ROLES=roles,
    )  # fmt: skip
    if shares is not None:
        finish_gradients(shares, weight_share, memory, weight, grad_memory, grad_weight)
    return (
        query.new_empty(0) if grad_query is None else grad_query,
        memory.new_empty(0) if grad_memory is None else grad_memory,
        weight.new_empty(0) if grad_weight is None else grad_weight,
    )
