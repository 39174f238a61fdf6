"""Triton kernels for :func:`pinmem.ops.memory_read_project` (docs/math.md 1).

With ``P = M W_c^T`` the readout is never formed: ``projected = r (x W_q^T) + a P``. Bytes per
pixel, for elements of ``e`` bytes: forward reads ``C e`` and writes ``(O + K) e``. Two launches: P,
and the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

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
from pinmem.kernels.memory_read_project_backward import memory_read_project_backward
from pinmem.kernels.memory_read_project_double_backward import memory_read_project_double_backward
from pinmem.kernels.projection import project_slots
from pinmem.kernels.reading_cases import readings
from pinmem.kernels.reading_config import config_of
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
        c = afresh(tile * BLOCK_C, BLOCK_K > 32, BLOCK_C)
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
    y = dot_slots(cast(a, T), p, y * r[:, None])
    store_channels(projected, at_o, step_o, inside, o, OUT, y)


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
        if typical:
            read = (query, memory, weight, None)
            with recording(f"{label} in part", typical) as cases:
                memory_read_project(*read)
                memory_read_project_backward(*grads, *read, True, False, True)
                memory_read_project_backward(projected, None, *read, True, False, False)
                memory_read_project_backward(projected, None, *read, False, True, True)
                memory_read_project_double_backward(query, None, weight, *grads, *read)
                memory_read_project_double_backward(None, memory, None, projected, None, *read)
            yield from cases
