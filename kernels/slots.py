"""What the kernels of :func:`pinmem.ops.memory_update` share: moving the slots, block sizes.

A program holds rows of ``[slots i, slots j]``. Everything is done in the accumulation type:
the matrices are small, and the pairs of slots are compared exactly.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from pinmem.kernels.maps import (
    accumulator,
    afresh,
    dot_exact,
    inverse_norm,
    load_rows,
    padded,
    reciprocal,
    store_rows,
)
from torch import Tensor

from pinmem.ops._maps import accumulator as accumulator_type


@triton.jit
def load_vector(ptr, first, end, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """``BLOCK`` elements from ``first`` on, zero from ``end`` on."""
    i = first + tl.arange(0, BLOCK)
    return tl.load(ptr + i, mask=i < end, other=0.0).to(ACC)


@triton.jit
def hold(tile, held, plane, first, K: tl.constexpr, ROWS: tl.constexpr, BLOCK_J: tl.constexpr):
    """Put a tile, or a row, of columns from ``first`` on where :func:`taken_up` finds it.

    Where one block has all slots j the tile just stays in registers.
    """
    if BLOCK_J < K:
        store_rows(held + plane * (ROWS * K), tile, 0, ROWS, first, K, K)


@triton.jit
def taken_up(tile, held, plane, first, K: tl.constexpr, ROWS: tl.constexpr, BLOCK_J: tl.constexpr):
    """What was held of ``BLOCK_J`` columns from ``first`` on; ``tile`` where that is all."""
    if BLOCK_J < K:
        tile = load_rows(held + plane * (ROWS * K), 0, ROWS, first, K, K, ROWS, BLOCK_J)
    return tile


@triton.jit
def share_of_mean(mass, MOMENTUM: tl.constexpr):
    """``(1 - mu) / mass``: what a unit of a present class's sum adds to its slot; absent 0."""
    present = mass > 0
    return tl.where(present, (1 - MOMENTUM) * reciprocal(tl.where(present, mass, 1.0)), 0.0)


@triton.jit
def share_of_memory(mass, MOMENTUM: tl.constexpr):
    """What a slot keeps of itself: ``mu`` where its class is present, else all."""
    return tl.where(mass > 0, tl.full(mass.shape, MOMENTUM, mass.dtype), 1.0)


@triton.jit
def moved(
    memory,
    sums,
    mass,
    MOMENTUM: tl.constexpr,
    row,
    K: tl.constexpr,
    c,
    C: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of ``u = mu M + (1 - mu) S / mass``, of ``M`` where the class is absent."""
    m = load_rows(memory, row, K, c, C, C, ROWS, BLOCK_C).to(ACC)
    s = load_rows(sums, row, K, c, C, C, ROWS, BLOCK_C).to(ACC)
    weight = load_vector(mass, row, K, ACC, ROWS)
    mixed = MOMENTUM * m + share_of_mean(weight, MOMENTUM)[:, None] * s
    return tl.where((weight > 0)[:, None], mixed, m)


@triton.jit
def moved_along(
    gg_memory,
    gg_sums,
    gg_mass,
    sums,
    mass,
    MOMENTUM: tl.constexpr,
    row,
    K: tl.constexpr,
    c,
    C: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of ``u_1 = mu M_1 + (1 - mu) (S_1 / mass - S mass_1 / mass^2)``; absent ``M_1``."""
    weight = load_vector(mass, row, K, ACC, ROWS)
    taken = share_of_mean(weight, MOMENTUM)
    kept = share_of_memory(weight, MOMENTUM)
    u_1 = tl.zeros([ROWS, BLOCK_C], ACC)
    if gg_memory is not None:
        u_1 += kept[:, None] * load_rows(gg_memory, row, K, c, C, C, ROWS, BLOCK_C).to(ACC)
    if gg_sums is not None:
        u_1 += taken[:, None] * load_rows(gg_sums, row, K, c, C, C, ROWS, BLOCK_C).to(ACC)
    if gg_mass is not None:
        change = load_vector(gg_mass, row, K, ACC, ROWS)
        change *= reciprocal(tl.where(weight > 0, weight, 1.0)) * taken
        u_1 -= change[:, None] * load_rows(sums, row, K, c, C, C, ROWS, BLOCK_C).to(ACC)
    return u_1


@triton.jit
def rate(
    memory,
    sums,
    mass,
    weight,
    bias,
    grad_memory,
    MOMENTUM: tl.constexpr,
    row,
    C: tl.constexpr,
    K: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """New slots against each other and against the classifier, for ``ROWS`` slots from ``row``.

    Returns the similarities and the logits [ROWS, BLOCK_K] (minus infinity past the last class),
    the inverse norms and curvatures of the rows, the inverse norms of all slots, and
    ``grad_memory . new`` of the rows.
    """
    square_i = tl.zeros([ROWS], ACC)
    square_j = tl.zeros([BLOCK_K], ACC)
    along = tl.zeros([ROWS], ACC)
    g = tl.zeros([ROWS, BLOCK_K], ACC)
    z = tl.zeros([ROWS, BLOCK_K], ACC)
    for start in tl.range(0, C, BLOCK_C, disable_licm=True):
        c = afresh(start, ROWS < K, BLOCK_C)
        u_j = moved(memory, sums, mass, MOMENTUM, 0, K, c, C, ACC, BLOCK_K, BLOCK_C)
        if ROWS == BLOCK_K:
            u_i = u_j
        else:
            u_i = moved(memory, sums, mass, MOMENTUM, row, K, c, C, ACC, ROWS, BLOCK_C)
        w = load_rows(weight, 0, K, c, C, C, BLOCK_K, BLOCK_C).to(ACC)
        square_i += tl.sum(u_i * u_i, 1)
        square_j += tl.sum(u_j * u_j, 1)
        g = dot_exact(u_i, tl.trans(u_j), g)
        z = dot_exact(u_i, tl.trans(w), z)
        if grad_memory is not None:
            along += tl.sum(load_rows(grad_memory, row, K, c, C, C, ROWS, BLOCK_C).to(ACC) * u_i, 1)
    norm_i, curved = inverse_norm(square_i)
    norm_j, _ = inverse_norm(square_j)
    j = tl.arange(0, BLOCK_K)
    g = g * norm_i[:, None] * norm_j[None, :]
    z = z * norm_i[:, None] + load_vector(bias, 0, K, ACC, BLOCK_K)[None, :]
    z = tl.where((j < K)[None, :], z, float("-inf"))
    return g, z, norm_i, curved, norm_j, along * norm_i


@triton.jit
def rate_along(
    gg_memory,
    gg_sums,
    gg_mass,
    gg_weight,
    grad_memory,
    memory,
    sums,
    mass,
    weight,
    MOMENTUM: tl.constexpr,
    row,
    first,
    C: tl.constexpr,
    K: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """New slots from ``row`` on against those from ``first`` on and their rows of the classifier.

    With ``new = n u``, ``n = 1/|u|``, its change is ``new_1 = n (u_1 - bend u)``, where
    ``bend = u.u_1 / |u|^2``. Returns the similarities and ``new . W``, each with its change
    [ROWS, BLOCK_J]; ``n``, curvature and ``bend`` of the rows; ``n`` and ``bend`` of the columns;
    ``grad_memory . new`` of the rows and its change.
    """
    row_0, column_0 = tl.zeros([ROWS], ACC), tl.zeros([BLOCK_J], ACC)
    u_u, u_u1, d_u, d_u1, uj_uj, uj_u1j = row_0, row_0, row_0, row_0, column_0, column_0
    tile_0 = tl.zeros([ROWS, BLOCK_J], ACC)
    g, g_1, new_w, new_w_1 = tile_0, tile_0, tile_0, tile_0
    for start in tl.range(0, C, BLOCK_C, disable_licm=True):
        c = afresh(start, BLOCK_J < K, BLOCK_C)
        u_j = moved(memory, sums, mass, MOMENTUM, first, K, c, C, ACC, BLOCK_J, BLOCK_C)
        u1_j = moved_along(
            gg_memory, gg_sums, gg_mass, sums, mass,
            MOMENTUM, first, K, c, C, ACC, BLOCK_J, BLOCK_C,
        )  # fmt: skip
        if ROWS == BLOCK_J and ROWS >= K:
            u, u_1 = u_j, u1_j
        else:
            u = moved(memory, sums, mass, MOMENTUM, row, K, c, C, ACC, ROWS, BLOCK_C)
            u_1 = moved_along(
                gg_memory, gg_sums, gg_mass, sums, mass,
                MOMENTUM, row, K, c, C, ACC, ROWS, BLOCK_C,
            )  # fmt: skip
        u_u += tl.sum(u * u, 1)
        u_u1 += tl.sum(u * u_1, 1)
        uj_uj += tl.sum(u_j * u_j, 1)
        uj_u1j += tl.sum(u_j * u1_j, 1)
        if grad_memory is not None:
            grad = load_rows(grad_memory, row, K, c, C, C, ROWS, BLOCK_C).to(ACC)
            d_u += tl.sum(grad * u, 1)
            d_u1 += tl.sum(grad * u_1, 1)
        w = load_rows(weight, first, K, c, C, C, BLOCK_J, BLOCK_C).to(ACC)
        g = dot_exact(u, tl.trans(u_j), g)
        g_1 = dot_exact(u_1, tl.trans(u_j), g_1)
        g_1 = dot_exact(u, tl.trans(u1_j), g_1)
        new_w = dot_exact(u, tl.trans(w), new_w)
        new_w_1 = dot_exact(u_1, tl.trans(w), new_w_1)
        if gg_weight is not None:
            w_1 = load_rows(gg_weight, first, K, c, C, C, BLOCK_J, BLOCK_C).to(ACC)
            new_w_1 = dot_exact(u, tl.trans(w_1), new_w_1)
    n, curved = inverse_norm(u_u)
    n_j, curved_j = inverse_norm(uj_uj)
    bend = tl.where(curved, u_u1 * n * n, 0.0)
    bend_j = tl.where(curved_j, uj_u1j * n_j * n_j, 0.0)
    g_1 = (g_1 - (bend[:, None] + bend_j[None, :]) * g) * n[:, None] * n_j[None, :]
    g = g * n[:, None] * n_j[None, :]
    new_w = new_w * n[:, None]
    new_w_1 = new_w_1 * n[:, None] - bend[:, None] * new_w
    along = d_u * n
    return g, g_1, new_w, new_w_1, n, curved, bend, n_j, bend_j, along, d_u1 * n - bend * along


@triton.jit
def pairs(row, column, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Which of [ROWS, BLOCK], from (row, column) on, are two slots, which a slot with itself."""
    i, j = row + tl.arange(0, ROWS), column + tl.arange(0, BLOCK)
    inside = (i < K)[:, None] & (j < K)[None, :]
    same = i[:, None] == j[None, :]
    return inside & (i[:, None] != j[None, :]), inside & same


def slot_config(memory: Tensor, momentum: float) -> dict[str, Any]:
    """Compile-time arguments (the momentum too: as an argument it would be rounded to float32).

    A block of rows holds at most 4096 pairs of slots, in float64 2048.
    """
    slots, channels = memory.shape
    block = padded(slots)
    rows, columns = 32 if block <= 32 else 16, 32
    if memory.element_size() == 8:
        rows, columns = min(32, 2048 // block), 16 if block <= 128 else 8
    return {
        "MOMENTUM": momentum,
        "C": channels,
        "K": slots,
        "PAIRS": max(slots * (slots - 1), 1),
        "ACC": accumulator(memory.dtype),
        "ROWS": min(block, rows),
        "BLOCK_K": block,
        "BLOCK_C": min(padded(channels), columns),
        "num_warps": 8,
    }


def scratch(memory: Tensor, config: dict[str, Any], planes: int) -> tuple[Tensor | None, ...]:
    """Room [K,C] where rows take several blocks, [planes, ROWS, K] where columns do; else None."""
    rows, slots, dtype = config["ROWS"], config["K"], accumulator_type(memory.dtype)
    room = torch.empty_like(memory, dtype=dtype) if rows < slots else None
    several = config["BLOCK_J"] < slots
    return room, memory.new_empty((planes, rows, slots), dtype=dtype) if several else None
