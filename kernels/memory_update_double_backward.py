"""The second-order pass of :func:`pinmem.ops.memory_update` as a Triton kernel (docs/math.md 4).

The derivative of the forward and the backward pass along the five directions gg_*, with the
cotangents of the forward held still; a name with _1 is such a derivative. One program, one launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from pinmem.kernels.launch import launch
from pinmem.kernels.maps import (
    afresh,
    cast,
    dot_exact,
    load_rows,
    reciprocal,
    rolled,
    store_rows,
)
from pinmem.kernels.partials import add_share
from pinmem.kernels.slots import (
    hold,
    load_vector,
    moved,
    moved_along,
    pairs,
    rate_along,
    scratch,
    share_of_mean,
    share_of_memory,
    slot_config,
    taken_up,
)
from torch import Tensor


@triton.jit
def _logits(new_w, new_w_1, bias, gg_bias, first, K: tl.constexpr):
    """Logits of the classes from ``first`` on (minus infinity past the last), and their change."""
    BLOCK: tl.constexpr = new_w.shape[1]
    z = new_w + load_vector(bias, first, K, new_w.dtype, BLOCK)[None, :]
    z = tl.where((first + tl.arange(0, BLOCK) < K)[None, :], z, float("-inf"))
    if gg_bias is not None:
        new_w_1 += load_vector(gg_bias, first, K, new_w.dtype, BLOCK)[None, :]
    return z, new_w_1


@triton.jit
def _double_backward(
    gg_memory,
    gg_sums,
    gg_mass,
    gg_weight,
    gg_bias,
    grad_memory,
    grad_divergence,
    grad_classification,
    memory,
    sums,
    mass,
    weight,
    bias,
    gg_new_memory,
    gg_divergence,
    gg_classification,
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
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``room`` is as in the backward pass. ``held`` [8,ROWS,K] are, where the slots j take several
    blocks, planes of pull; n, bend of the columns; new_w, its change; lean, its change; db.
    """
    similar_1 = tl.full((), 0.0, ACC)
    surprise_1 = tl.full((), 0.0, ACC)
    db = tl.zeros([BLOCK_J], ACC)
    for turn in tl.range(0, rolled(K, ROWS < K), ROWS, disable_licm=True):
        row = afresh(turn, ROWS < K, ROWS)
        i = row + tl.arange(0, ROWS)
        row_0, column_0 = tl.zeros([ROWS], ACC), tl.zeros([BLOCK_J], ACC)
        n, bend, curved, n_j, bend_j = row_0, row_0, row_0 > 0, column_0, column_0
        along, along_1, new_dnew, new_dnew_1 = row_0, row_0, row_0, row_0
        # Softmax over blocks of slots: the highest logit, and sums of exponentials below it.
        highest, total, e_z1 = row_0 - float("inf"), row_0, row_0
        tile_0 = tl.zeros([ROWS, BLOCK_J], ACC)
        pull, new_w, new_w_1, lean, lean_1 = tile_0, tile_0, tile_0, tile_0, tile_0
        # The cotangent of new is dnew = grad_memory + pull new + lean W.
        for block in tl.range(0, rolled(K, BLOCK_J < K), BLOCK_J, disable_licm=True):
            first = afresh(block, BLOCK_J < K, BLOCK_J)
            g, g_1, new_w, new_w_1, n, curved, bend, n_j, bend_j, along, along_1 = rate_along(
                gg_memory, gg_sums, gg_mass, gg_weight, grad_memory, memory, sums, mass, weight,
                MOMENTUM, row, first, C, K, ACC, ROWS, BLOCK_J, BLOCK_C,
            )  # fmt: skip
            different, _ = pairs(row, first, K, ROWS, BLOCK_J)
            similar_1 += tl.sum(tl.where(different & (g > 0), g_1, 0.0))
            if grad_divergence is not None:
                grad = tl.load(grad_divergence).to(ACC) * (2.0 / PAIRS)
                pull = tl.where(different & (g > 0), grad, 0.0)
                new_dnew += tl.sum(pull * g, 1)
                new_dnew_1 += tl.sum(pull * g_1, 1)
                hold(pull, held, 0, first, K, ROWS, BLOCK_J)
                hold(n_j[None, :], held, 1, first, K, ROWS, BLOCK_J)
                hold(bend_j[None, :], held, 2, first, K, ROWS, BLOCK_J)
            hold(new_w, held, 3, first, K, ROWS, BLOCK_J)
            hold(new_w_1, held, 4, first, K, ROWS, BLOCK_J)
            z, z_1 = _logits(new_w, new_w_1, bias, gg_bias, first, K)
            before = highest
            highest = tl.maximum(before, tl.max(z, 1))
            fade = tl.exp(before - highest)
            e = tl.exp(z - highest[:, None])
            total = total * fade + tl.sum(e, 1)
            e_z1 = e_z1 * fade + tl.sum(e * z_1, 1)
        if BLOCK_J < K:
            # What some threads hold others read.
            tl.debug_barrier()
        new_dnew += along
        new_dnew_1 += along_1
        per_total = reciprocal(total)
        p_z1 = e_z1 * per_total

        for block in tl.range(0, rolled(K, BLOCK_J < K), BLOCK_J, disable_licm=True):
            first = afresh(block, BLOCK_J < K, BLOCK_J)
            new_w = taken_up(new_w, held, 3, first, K, ROWS, BLOCK_J)
            new_w_1 = taken_up(new_w_1, held, 4, first, K, ROWS, BLOCK_J)
            z, z_1 = _logits(new_w, new_w_1, bias, gg_bias, first, K)
            different, same = pairs(row, first, K, ROWS, BLOCK_J)
            surprise_1 += tl.sum(tl.where(same, p_z1[:, None] - z_1, 0.0))
            if grad_classification is not None:
                grad = tl.load(grad_classification).to(ACC) * (1.0 / K)
                p = tl.exp(z - highest[:, None]) * per_total[:, None]
                lean = tl.where(different | same, (p - tl.where(same, 1.0, 0.0)) * grad, 0.0)
                lean_1 = tl.where(different | same, p * (z_1 - p_z1[:, None]) * grad, 0.0)
                new_dnew += tl.sum(lean * new_w, 1)
                new_dnew_1 += tl.sum(lean * new_w_1 + lean_1 * new_w, 1)
            hold(lean, held, 5, first, K, ROWS, BLOCK_J)
            hold(lean_1, held, 6, first, K, ROWS, BLOCK_J)
            if BLOCK_J < K:
                db = tl.sum(lean_1, 0)
                add_share(held + 7 * ROWS * K, db[None, :], 0, first, 1, K, row)
            else:
                db += tl.sum(lean_1, 0)
        new_dnew = tl.where(curved, new_dnew, 0.0)
        new_dnew_1 = tl.where(curved, new_dnew_1, 0.0)
        mass_i = load_vector(mass, row, K, ACC, ROWS)
        taken = share_of_mean(mass_i, MOMENTUM)
        kept = share_of_memory(mass_i, MOMENTUM)
        per_mass = reciprocal(tl.where(mass_i > 0, mass_i, 1.0))
        growth = tl.zeros([ROWS], ACC)
        if gg_mass is not None:
            growth = load_vector(gg_mass, row, K, ACC, ROWS) * per_mass
        s_du = tl.zeros([ROWS], ACC)
        s_du_1 = tl.zeros([ROWS], ACC)

        for start in tl.range(0, C, BLOCK_C, disable_licm=True):
            c = afresh(start, BLOCK_J < K, BLOCK_C)
            u = moved(memory, sums, mass, MOMENTUM, row, K, c, C, ACC, ROWS, BLOCK_C)
            u_1 = moved_along(
                gg_memory, gg_sums, gg_mass, sums, mass,
                MOMENTUM, row, K, c, C, ACC, ROWS, BLOCK_C,
            )  # fmt: skip
            new = u * n[:, None]
            new_1 = u_1 * n[:, None] - new * bend[:, None]
            store_rows(gg_new_memory, new_1, row, K, c, C, C)
            dnew = tl.zeros([ROWS, BLOCK_C], ACC)
            dnew_1 = tl.zeros([ROWS, BLOCK_C], ACC)
            if grad_memory is not None:
                dnew += load_rows(grad_memory, row, K, c, C, C, ROWS, BLOCK_C).to(ACC)
            for block in tl.range(0, rolled(K, BLOCK_J < K), BLOCK_J, disable_licm=True):
                first = afresh(block, BLOCK_J < K, BLOCK_J)
                lean_j = taken_up(lean, held, 5, first, K, ROWS, BLOCK_J)
                lean_1j = taken_up(lean_1, held, 6, first, K, ROWS, BLOCK_J)
                if grad_divergence is not None:
                    u_j = moved(memory, sums, mass, MOMENTUM, first, K, c, C, ACC, BLOCK_J, BLOCK_C)
                    u1_j = moved_along(
                        gg_memory, gg_sums, gg_mass, sums, mass,
                        MOMENTUM, first, K, c, C, ACC, BLOCK_J, BLOCK_C,
                    )  # fmt: skip
                    pull_j = taken_up(pull, held, 0, first, K, ROWS, BLOCK_J)
                    if BLOCK_J < K:
                        n_j = load_vector(held + ROWS * K, first, K, ACC, BLOCK_J)
                        bend_j = load_vector(held + 2 * ROWS * K, first, K, ACC, BLOCK_J)
                    new_j = u_j * n_j[:, None]
                    dnew = dot_exact(pull_j, new_j, dnew)
                    new_1j = u1_j * n_j[:, None] - new_j * bend_j[:, None]
                    dnew_1 = dot_exact(pull_j, new_1j, dnew_1)
                if grad_classification is not None:
                    w = load_rows(weight, first, K, c, C, C, BLOCK_J, BLOCK_C).to(ACC)
                    dnew = dot_exact(lean_j, w, dnew)
                    dnew_1 = dot_exact(lean_1j, w, dnew_1)
                    if gg_weight is not None:
                        w_1 = load_rows(gg_weight, first, K, c, C, C, BLOCK_J, BLOCK_C).to(ACC)
                        dnew_1 = dot_exact(lean_j, w_1, dnew_1)
                # Loads of what follows do not move up here: registers are short.
                tl.debug_barrier()
                dw = dot_exact(tl.trans(lean_1j), new, tl.zeros([BLOCK_J, BLOCK_C], ACC))
                dw = dot_exact(tl.trans(lean_j), new_1, dw)
                if ROWS < K:
                    add_share(room, dw, first, c, K, C, row)
                else:
                    store_rows(d_weight, dw, first, K, c, C, C)
            du = n[:, None] * (dnew - new * new_dnew[:, None])
            du_1 = dnew_1 - new_1 * new_dnew[:, None] - new * new_dnew_1[:, None]
            du_1 = n[:, None] * du_1 - bend[:, None] * du
            store_rows(d_memory, du_1 * kept[:, None], row, K, c, C, C)
            store_rows(d_sums, (du_1 - du * growth[:, None]) * taken[:, None], row, K, c, C, C)
            s = load_rows(sums, row, K, c, C, C, ROWS, BLOCK_C).to(ACC)
            s_du += tl.sum(s * du, 1)
            s_du_1 += tl.sum(s * du_1, 1)
            if gg_sums is not None:
                s_1 = load_rows(gg_sums, row, K, c, C, C, ROWS, BLOCK_C).to(ACC)
                s_du_1 += tl.sum(s_1 * du, 1)
        dmass = -taken * per_mass * (s_du_1 - 2 * growth * s_du)
        tl.store(d_mass + i, cast(dmass, d_mass.dtype.element_ty), mask=i < K)
    tl.store(gg_divergence, cast(similar_1 * (1.0 / PAIRS), gg_divergence.dtype.element_ty))
    tl.store(gg_classification, cast(surprise_1 * (1.0 / K), gg_classification.dtype.element_ty))
    for block in tl.range(0, rolled(K, BLOCK_J < K), BLOCK_J, disable_licm=True):
        first = afresh(block, BLOCK_J < K, BLOCK_J)
        j = first + tl.arange(0, BLOCK_J)
        if BLOCK_J < K:
            db = load_vector(held + 7 * ROWS * K, first, K, ACC, BLOCK_J)
        tl.store(d_bias + j, cast(db, d_bias.dtype.element_ty), mask=j < K)
        if ROWS < K:
            for c in tl.range(0, C, BLOCK_C, disable_licm=True):
                dw = load_rows(room, first, K, c, C, C, BLOCK_J, BLOCK_C)
                store_rows(d_weight, dw, first, K, c, C, C)


def _blocks(double: bool, padded_slots: int) -> dict[str, int]:
    """Twice as many products are open here as in the other passes: blocks also of slots j."""
    if double:
        return {"ROWS": 16, "BLOCK_J": 16, "BLOCK_C": 8, "num_warps": 4}
    return {"BLOCK_J": min(padded_slots, 32), "BLOCK_C": 16}


def memory_update_double_backward(
    gg_memory: Tensor | None,
    gg_sums: Tensor | None,
    gg_mass: Tensor | None,
    gg_weight: Tensor | None,
    gg_bias: Tensor | None,
    grad_memory: Tensor | None,
    grad_divergence: Tensor | None,
    grad_classification: Tensor | None,
    memory: Tensor,
    sums: Tensor,
    mass: Tensor,
    weight: Tensor,
    bias: Tensor,
    momentum: float,
) -> tuple[Tensor, ...]:
    """Second-order pass: derivatives along the five directions gg_*."""
    config = slot_config(memory, momentum)
    config |= _blocks(memory.element_size() == 8, config.pop("BLOCK_K"))
    inputs = (memory, sums, mass, weight, bias)
    losses = (memory.new_empty(()), memory.new_empty(()))
    outputs = (torch.empty_like(memory), *losses, *map(torch.empty_like, inputs))
    room, held = scratch(memory, config, 8)
    directions = (gg_memory, gg_sums, gg_mass, gg_weight, gg_bias)
    cotangents = (grad_memory, grad_divergence, grad_classification)
    # A single program gains nothing from registers left to others.
    launch(
        _double_backward,
        1,
        *directions,
        *cotangents,
        *inputs,
        *outputs,
        room,
        held,
        **config,
        maxnreg=255,
    )
    return outputs
