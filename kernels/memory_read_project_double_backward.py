"""Second-order pass of :func:`pinmem.ops.memory_read_project` as Triton kernels (docs/math.md 1).

The derivative of the forward and the backward pass along ``(v, V, Y)`` = (gg_query, gg_memory,
gg_weight), with the cotangents of the forward held still; a name with _1 is such a derivative.
Per pixel, for elements of ``e`` bytes: reads ``(2C + O + K) e`` and writes ``(C + O + K) e``.
Launches: P and its derivative, the pixels, the sum of the shares, and from dP to dM and dW_c: 4,
with more than 128 slots in float32 7.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from pinmem.kernels.launch import launch
from pinmem.kernels.maps import runs_of
from pinmem.kernels.memory_read_double_backward import memory_read_double_backward
from pinmem.kernels.memory_read_project_along import read_project_along
from pinmem.kernels.projection import finish_gradients, project_slots
from pinmem.kernels.reading_config import config_of, launches_of
from pinmem.kernels.weight_shares import chunked_shares, tile_config
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
    ROLE: tl.constexpr,
    PARTS: tl.constexpr,
    TILE_O: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """The walk over the pixels, by ``ROLES`` side by side: no program has room for it all.

    Of two the first has the forward's derivative with dW, the other the rest. Of three the last has
    the sums (dM, dP and its derivative), of four the third dP and the fourth dM. What one of them
    fetches the others find in the L2. Or this launch does ``ROLE`` alone.
    """
    role = tl.program_id(0) % ROLES if ROLE is None else ROLE
    program = tl.program_id(0) // ROLES if ROLE is None else tl.program_id(0)
    for one in tl.static_range(ROLES):
        if role == one:
            read_project_along(
                gg_query, gg_memory, gg_weight, grad_projected, grad_scores,
                query, memory, weight, gumbel, slots, slots_1,
                gg_projected, gg_scores, grad_query, shares, weight_shares,
                pixels, blocks, total, steps, program,
                C, K, OUT, CHANNELS_LAST, ACC, BLOCK_N, BLOCK_C, BLOCK_K, BLOCK_O,
                FORWARD=one == 0, QUERY=one == 1, MEMORY=one == ROLES - 1 and one > 0,
                SLOTS=one == min(ROLES - 1, 2) and one > 0,
                PARTS=PARTS, TILE_O=TILE_O, TILE_C=TILE_C,
            )  # fmt: skip


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
        config |= {**tile, "ROLES": 1, "ROLE": 0}
        launch(_second, sizes[2], *inputs, *results, *sizes, 1, **config)
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
    results = (*forward, grad_query, shares, weight_share)
    for side, roles in launches_of("project second", query, memory):
        launch(
            _second, programs * side, *inputs, *results, *sizes, steps,
            **config, **tile, **roles,
        )  # fmt: skip
    finish_gradients(
        shares, weight_share, memory, weight, grad_memory, grad_weight, gg_memory, gg_weight
    )
    return *forward, grad_query, grad_memory, grad_weight
