"""Triton kernels for :func:`pinmem.ops.memory_update` (docs/math.md 4).

The matrices are small and what they cost is launches: one program each way, one launch each. A
program walks over blocks of slots i; for each it holds rows [slots i, slots j] of the
similarities and the logits. Bytes, elements of ``e`` bytes: forward reads ``5 K C e`` and writes
``K C e``, backward reads ``9 K C e`` and writes ``3 K C e``; repeated reads find a cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pinmem.kernels.launch import CompileCase, launch, recording
from pinmem.kernels.maps import afresh, cast, dot_exact, load_rows, rolled, softmax_rows, store_rows
from pinmem.kernels.memory_update_double_backward import memory_update_double_backward
from pinmem.kernels.partials import add_share
from pinmem.kernels.slots import (
    hold,
    load_vector,
    moved,
    pairs,
    rate,
    scratch,
    share_of_mean,
    share_of_memory,
    slot_config,
    taken_up,
)
from torch import Tensor

__all__ = [
    "compile_cases",
    "memory_update",
    "memory_update_backward",
    "memory_update_double_backward",
]


@triton.jit
def _forward(
    memory,
    sums,
    mass,
    weight,
    bias,
    new_memory,
    divergence,
    classification,
    MOMENTUM: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    similar = tl.full((), 0.0, ACC)
    surprise = tl.full((), 0.0, ACC)
    for turn in tl.range(0, rolled(K, ROWS < K), ROWS, disable_licm=True):
        row = afresh(turn, ROWS < K, ROWS)
        g, z, norm, _, _, _ = rate(
            memory, sums, mass, weight, bias, None, MOMENTUM, row, C, K, ACC, ROWS, BLOCK_K, BLOCK_C
        )
        different, same = pairs(row, 0, K, ROWS, BLOCK_K)
        similar += tl.sum(tl.where(different, tl.maximum(g, 0.0), 0.0))
        highest = tl.max(z, 1)
        total = highest + tl.log(tl.sum(tl.exp(z - highest[:, None]), 1))
        surprise += tl.sum(tl.where(same, total[:, None] - z, 0.0))
        for c in tl.range(0, C, BLOCK_C, disable_licm=True):
            u = moved(memory, sums, mass, MOMENTUM, row, K, c, C, ACC, ROWS, BLOCK_C)
            store_rows(new_memory, u * norm[:, None], row, K, c, C, C)
    tl.store(divergence, cast(similar * (1.0 / PAIRS), divergence.dtype.element_ty))
    tl.store(classification, cast(surprise * (1.0 / K), classification.dtype.element_ty))


@triton.jit
def _backward(
    grad_memory,
    grad_divergence,
    grad_classification,
    memory,
    sums,
    mass,
    weight,
    bias,
    d_memory,
    d_sums,
    d_mass,
    d_weight,
    d_bias,
    room,
    held,
    MOMENTUM: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``room`` [K,C] is where the weight's gradient adds up where the rows take several blocks.

    ``held`` [3,ROWS,K] is where their products wait where the slots j take several blocks.
    """
    j = tl.arange(0, BLOCK_K)
    db = tl.zeros([BLOCK_K], ACC)
    for turn in tl.range(0, rolled(K, ROWS < K), ROWS, disable_licm=True):
        row = afresh(turn, ROWS < K, ROWS)
        i = row + tl.arange(0, ROWS)
        g, z, norm, curved, norm_j, new_dnew = rate(
            memory, sums, mass, weight, bias, grad_memory,
            MOMENTUM, row, C, K, ACC, ROWS, BLOCK_K, BLOCK_C,
        )  # fmt: skip
        different, same = pairs(row, 0, K, ROWS, BLOCK_K)
        # dnew = grad_memory + pull new + lean W; its product with new needs no channels.
        pull = tl.zeros([ROWS, BLOCK_K], ACC)
        lean = tl.zeros([ROWS, BLOCK_K], ACC)
        if grad_divergence is not None:
            grad = tl.load(grad_divergence).to(ACC) * (2.0 / PAIRS)
            pull = tl.where(different & (g > 0), grad, 0.0)
            new_dnew += tl.sum(pull * g, 1)
        if grad_classification is not None:
            grad = tl.load(grad_classification).to(ACC) * (1.0 / K)
            lean = softmax_rows(z) - tl.where(same, 1.0, 0.0)
            lean = tl.where(different | same, lean * grad, 0.0)
            unbiased = z - load_vector(bias, 0, K, ACC, BLOCK_K)[None, :]
            new_dnew += tl.sum(tl.where(different | same, lean * unbiased, 0.0), 1)
        db += tl.sum(lean, 0)
        turned = tl.where(curved, new_dnew, 0.0)
        mass_i = load_vector(mass, row, K, ACC, ROWS)
        taken = share_of_mean(mass_i, MOMENTUM)
        kept = share_of_memory(mass_i, MOMENTUM)
        s_du = tl.zeros([ROWS], ACC)
        hold(pull, held, 0, 0, K, ROWS, BLOCK_J)
        hold(lean, held, 1, 0, K, ROWS, BLOCK_J)
        hold(norm_j[None, :], held, 2, 0, K, ROWS, BLOCK_J)
        if BLOCK_J < K:
            # What some threads hold others take up.
            tl.debug_barrier()

        for start in tl.range(0, C, BLOCK_C, disable_licm=True):
            c = afresh(start, BLOCK_J < K, BLOCK_C)
            new = moved(memory, sums, mass, MOMENTUM, row, K, c, C, ACC, ROWS, BLOCK_C)
            new *= norm[:, None]
            dnew = tl.zeros([ROWS, BLOCK_C], ACC)
            if grad_memory is not None:
                dnew += load_rows(grad_memory, row, K, c, C, C, ROWS, BLOCK_C).to(ACC)
            for block in tl.range(0, rolled(K, BLOCK_J < K), BLOCK_J, disable_licm=True):
                first = afresh(block, BLOCK_J < K, BLOCK_J)
                if grad_divergence is not None:
                    new_j = moved(
                        memory, sums, mass, MOMENTUM, first, K, c, C, ACC, BLOCK_J, BLOCK_C
                    )
                    if BLOCK_J < K:
                        new_j *= load_vector(held + 2 * ROWS * K, first, K, ACC, BLOCK_J)[:, None]
                    else:
                        new_j *= norm_j[:, None]
                    dnew = dot_exact(taken_up(pull, held, 0, first, K, ROWS, BLOCK_J), new_j, dnew)
                lean_j = taken_up(lean, held, 1, first, K, ROWS, BLOCK_J)
                if grad_classification is not None:
                    w = load_rows(weight, first, K, c, C, C, BLOCK_J, BLOCK_C).to(ACC)
                    dnew = dot_exact(lean_j, w, dnew)
                dw = dot_exact(tl.trans(lean_j), new, tl.zeros([BLOCK_J, BLOCK_C], ACC))
                if ROWS < K:
                    add_share(room, dw, first, c, K, C, row)
                else:
                    store_rows(d_weight, dw, first, K, c, C, C)
            du = norm[:, None] * (dnew - new * turned[:, None])
            store_rows(d_memory, du * kept[:, None], row, K, c, C, C)
            store_rows(d_sums, du * taken[:, None], row, K, c, C, C)
            s_du += tl.sum(load_rows(sums, row, K, c, C, C, ROWS, BLOCK_C).to(ACC) * du, 1)
        mass_i = tl.where(mass_i > 0, mass_i, 1.0)
        dmass = -taken * s_du / mass_i
        tl.store(d_mass + i, cast(dmass, d_mass.dtype.element_ty), mask=i < K)
    tl.store(d_bias + j, cast(db, d_bias.dtype.element_ty), mask=j < K)
    if ROWS < K:
        for c in tl.range(0, C, BLOCK_C, disable_licm=True):
            for first in tl.range(0, rolled(K, BLOCK_J < K), BLOCK_J, disable_licm=True):
                dw = load_rows(room, first, K, c, C, C, BLOCK_J, BLOCK_C)
                store_rows(d_weight, dw, first, K, c, C, C)


def memory_update(
    memory: Tensor, sums: Tensor, mass: Tensor, weight: Tensor, bias: Tensor, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward."""
    outputs = (torch.empty_like(memory), memory.new_empty(()), memory.new_empty(()))
    inputs = (memory, sums, mass, weight, bias)
    launch(_forward, 1, *inputs, *outputs, **slot_config(memory, momentum), maxnreg=255)
    return outputs


def memory_update_backward(
    grad_memory: Tensor | None,
    grad_divergence: Tensor | None,
    grad_classification: Tensor | None,
    memory: Tensor,
    sums: Tensor,
    mass: Tensor,
    weight: Tensor,
    bias: Tensor,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """First-order gradients."""
    config = slot_config(memory, momentum)
    inputs = (memory, sums, mass, weight, bias)
    d_memory, d_sums, d_mass, d_weight, d_bias = map(torch.empty_like, inputs)
    config["BLOCK_J"] = min(config["BLOCK_K"], 32)
    if memory.element_size() == 8 and config["BLOCK_K"] > 64:
        config |= {"BLOCK_J": 16, "BLOCK_C": config["BLOCK_C"] // 2}
    room, held = scratch(memory, config, 3)
    outputs = (d_memory, d_sums, d_mass, d_weight, d_bias)
    cotangents = (grad_memory, grad_divergence, grad_classification)
    launch(_backward, 1, *cotangents, *inputs, *outputs, room, held, **config, maxnreg=255)
    return outputs


def compile_cases() -> Iterator[CompileCase]:
    """Every kernel in every configuration that ``auto`` can choose."""
    shapes = [(torch.float32, 19, 256), (torch.bfloat16, 19, 256), (torch.float64, 19, 256)]
    shapes += [(dtype, k, 256) for dtype in (torch.float32, torch.float64) for k in (64, 128, 256)]
    shapes += [(torch.float32, 19, 2048), (torch.float16, 2, 5)]
    for dtype, slots, channels in shapes:
        matrix = torch.empty((slots, channels), dtype=dtype, device="meta")
        row, scalar = matrix[:, 0].contiguous(), matrix.new_empty(())
        inputs = (matrix, matrix, row, matrix, row)
        name = f"{str(dtype).removeprefix('torch.')} K={slots} C={channels}"
        typical = (dtype, slots, channels) == (torch.float32, 19, 256)
        with recording(name, typical) as cases:
            memory_update(*inputs, 0.8)
            memory_update_backward(matrix, scalar, scalar, *inputs, 0.8)
            memory_update_double_backward(*inputs, matrix, scalar, scalar, *inputs, 0.8)
        yield from cases
        if typical:
            # Of the losses alone, of the memory alone, and along what a network gives.
            losses, alone = (None, scalar, scalar), (matrix, None, None)
            along = (None, matrix, row, matrix, row)
            with recording(f"{name} in part", typical) as cases:
                memory_update_backward(*losses, *inputs, 0.8)
                memory_update_backward(*alone, *inputs, 0.8)
                memory_update_double_backward(*along, *losses, *inputs, 0.8)
                memory_update_double_backward(*along, *alone, *inputs, 0.8)
            yield from cases
