"""What the kernels of :func:`pinmem.ops.memory_update` share: moving the slots, block sizes.

A program holds rows of ``[slots i, all slots j]``. Everything is done in the accumulation type:
the matrices are small, and the pairs of slots are compared exactly.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from pinmem.kernels.maps import accumulator, dot_exact, inverse_norm, load_rows, padded, reciprocal
from torch import Tensor


@triton.jit
def load_vector(ptr, first, end, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """``BLOCK`` elements from ``first`` on, zero from ``end`` on."""
    i = first + tl.arange(0, BLOCK)
    return tl.load(ptr + i, mask=i < end, other=0.0).to(ACC)


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
    for c in tl.range(0, C, BLOCK_C, disable_licm=True):
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
def pairs(row, K: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Which of [ROWS, BLOCK_K] are pairs of different slots, which a slot with itself."""
    i, j = row + tl.arange(0, ROWS), tl.arange(0, BLOCK_K)
    inside = (i < K)[:, None] & (j < K)[None, :]
    same = i[:, None] == j[None, :]
    return inside & (i[:, None] != j[None, :]), inside & same


def slot_config(memory: Tensor, momentum: float) -> dict[str, Any]:
    """Compile-time arguments; a block of rows holds at most 4096 pairs of slots."""
    slots, channels = memory.shape
    block = padded(slots)
    double = memory.element_size() == 8
    return {
        "MOMENTUM": momentum,
        "C": channels,
        "K": slots,
        "PAIRS": max(slots * (slots - 1), 1),
        "ACC": accumulator(memory.dtype),
        "ROWS": min(block, 32 if block <= 64 else 16),
        "BLOCK_K": block,
        "BLOCK_C": min(padded(channels), 16 if double else 32),
        "num_warps": 8,
    }
