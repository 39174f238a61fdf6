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
    cast,
    dot_exact,
    inverse_norm,
    load_rows,
    reciprocal,
    softmax_rows,
    store_rows,
)
from pinmem.kernels.partials import add_share
from pinmem.kernels.slots import (
    load_vector,
    moved,
    pairs,
    share_of_mean,
    share_of_memory,
    slot_config,
)
from torch import Tensor

from pinmem.ops._maps import accumulator


@triton.jit
def _moved_along(
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
    MOMENTUM: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    similar_1 = tl.full((), 0.0, ACC)
    surprise_1 = tl.full((), 0.0, ACC)
    k = tl.arange(0, BLOCK_K)
    db = tl.zeros([BLOCK_K], ACC)
    for row in range(0, K, ROWS):
        i = row + tl.arange(0, ROWS)
        # All products over channels of u, u_1, W, W_1 and the cotangent of the new memory.
        u_u = tl.zeros([ROWS], ACC)
        u_u1 = tl.zeros([ROWS], ACC)
        uj_uj = tl.zeros([BLOCK_K], ACC)
        uj_u1j = tl.zeros([BLOCK_K], ACC)
        d_u = tl.zeros([ROWS], ACC)
        d_u1 = tl.zeros([ROWS], ACC)
        g = tl.zeros([ROWS, BLOCK_K], ACC)
        g_1 = tl.zeros([ROWS, BLOCK_K], ACC)
        z = tl.zeros([ROWS, BLOCK_K], ACC)
        u1_w = tl.zeros([ROWS, BLOCK_K], ACC)
        u_w1 = tl.zeros([ROWS, BLOCK_K], ACC)
        for c in tl.range(0, C, BLOCK_C, disable_licm=True):
            u_j = moved(memory, sums, mass, MOMENTUM, 0, K, c, C, ACC, BLOCK_K, BLOCK_C)
            u1_j = _moved_along(
                gg_memory, gg_sums, gg_mass, sums, mass,
                MOMENTUM, 0, K, c, C, ACC, BLOCK_K, BLOCK_C,
            )  # fmt: skip
            if ROWS == BLOCK_K:
                u, u_1 = u_j, u1_j
            else:
                u = moved(memory, sums, mass, MOMENTUM, row, K, c, C, ACC, ROWS, BLOCK_C)
                u_1 = _moved_along(
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
            w = load_rows(weight, 0, K, c, C, C, BLOCK_K, BLOCK_C).to(ACC)
            g = dot_exact(u, tl.trans(u_j), g)
            g_1 = dot_exact(u_1, tl.trans(u_j), g_1)
            g_1 = dot_exact(u, tl.trans(u1_j), g_1)
            z = dot_exact(u, tl.trans(w), z)
            u1_w = dot_exact(u_1, tl.trans(w), u1_w)
            if gg_weight is not None:
                w_1 = load_rows(gg_weight, 0, K, c, C, C, BLOCK_K, BLOCK_C).to(ACC)
                u_w1 = dot_exact(u, tl.trans(w_1), u_w1)

        # new = n u and new_1 = n (u_1 - bend u), with n = 1/|u| and bend = u.u_1 / |u|^2.
        n, curved = inverse_norm(u_u)
        n_j, curved_j = inverse_norm(uj_uj)
        bend = tl.where(curved, u_u1 * n * n, 0.0)
        bend_j = tl.where(curved_j, uj_u1j * n_j * n_j, 0.0)
        g_1 = (g_1 - (bend[:, None] + bend_j[None, :]) * g) * n[:, None] * n_j[None, :]
        g = g * n[:, None] * n_j[None, :]
        new_w = z * n[:, None]
        new1_w = u1_w * n[:, None] - bend[:, None] * new_w
        new_w1 = u_w1 * n[:, None]
        z = new_w + load_vector(bias, 0, K, ACC, BLOCK_K)[None, :]
        z_1 = new1_w + new_w1
        if gg_bias is not None:
            z_1 += load_vector(gg_bias, 0, K, ACC, BLOCK_K)[None, :]
        different, same = pairs(row, K, ROWS, BLOCK_K)
        p = softmax_rows(tl.where((k < K)[None, :], z, float("-inf")))
        p_z1 = tl.sum(p * z_1, 1)
        similar_1 += tl.sum(tl.where(different & (g > 0), g_1, 0.0))
        surprise_1 += tl.sum(tl.where(same, p_z1[:, None] - z_1, 0.0))

        # The cotangent of new is dnew = grad_memory + pull new + lean W.
        new_dnew = d_u * n
        new_dnew_1 = d_u1 * n - bend * new_dnew
        pull = tl.zeros([ROWS, BLOCK_K], ACC)
        lean = tl.zeros([ROWS, BLOCK_K], ACC)
        lean_1 = tl.zeros([ROWS, BLOCK_K], ACC)
        if grad_divergence is not None:
            grad = tl.load(grad_divergence).to(ACC) * (2.0 / PAIRS)
            pull = tl.where(different & (g > 0), grad, 0.0)
            new_dnew += tl.sum(pull * g, 1)
            new_dnew_1 += tl.sum(pull * g_1, 1)
        if grad_classification is not None:
            grad = tl.load(grad_classification).to(ACC) * (1.0 / K)
            lean = tl.where(different | same, (p - tl.where(same, 1.0, 0.0)) * grad, 0.0)
            lean_1 = tl.where(different | same, p * (z_1 - p_z1[:, None]) * grad, 0.0)
            new_dnew += tl.sum(lean * new_w, 1)
            new_dnew_1 += tl.sum(lean * (new1_w + new_w1) + lean_1 * new_w, 1)
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

        for c in tl.range(0, C, BLOCK_C, disable_licm=True):
            u = moved(memory, sums, mass, MOMENTUM, row, K, c, C, ACC, ROWS, BLOCK_C)
            u_1 = _moved_along(
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
            if grad_divergence is not None:
                u_j = moved(memory, sums, mass, MOMENTUM, 0, K, c, C, ACC, BLOCK_K, BLOCK_C)
                u1_j = _moved_along(
                    gg_memory, gg_sums, gg_mass, sums, mass,
                    MOMENTUM, 0, K, c, C, ACC, BLOCK_K, BLOCK_C,
                )  # fmt: skip
                new_j = u_j * n_j[:, None]
                dnew = dot_exact(pull, new_j, dnew)
                dnew_1 = dot_exact(pull, u1_j * n_j[:, None] - new_j * bend_j[:, None], dnew_1)
            if grad_classification is not None:
                w = load_rows(weight, 0, K, c, C, C, BLOCK_K, BLOCK_C).to(ACC)
                dnew = dot_exact(lean, w, dnew)
                dnew_1 = dot_exact(lean_1, w, dnew_1)
                if gg_weight is not None:
                    w_1 = load_rows(gg_weight, 0, K, c, C, C, BLOCK_K, BLOCK_C).to(ACC)
                    dnew_1 = dot_exact(lean, w_1, dnew_1)
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
            dw = dot_exact(tl.trans(lean_1), new, tl.zeros([BLOCK_K, BLOCK_C], ACC))
            dw = dot_exact(tl.trans(lean), new_1, dw)
            if ROWS < K:
                add_share(room, dw, 0, c, K, C, row)
            else:
                store_rows(d_weight, dw, 0, K, c, C, C)
        dmass = -taken * per_mass * (s_du_1 - 2 * growth * s_du)
        tl.store(d_mass + i, cast(dmass, d_mass.dtype.element_ty), mask=i < K)
    tl.store(d_bias + k, cast(db, d_bias.dtype.element_ty), mask=k < K)
    tl.store(gg_divergence, cast(similar_1 * (1.0 / PAIRS), gg_divergence.dtype.element_ty))
    tl.store(gg_classification, cast(surprise_1 * (1.0 / K), gg_classification.dtype.element_ty))
    if ROWS < K:
        for c in tl.range(0, C, BLOCK_C, disable_licm=True):
            dw = load_rows(room, 0, K, c, C, C, BLOCK_K, BLOCK_C)
            store_rows(d_weight, dw, 0, K, c, C, C)


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
    # Twice as many products are open here as in the other passes.
    config["BLOCK_C"] = 16
    inputs = (memory, sums, mass, weight, bias)
    losses = (memory.new_empty(()), memory.new_empty(()))
    outputs = (torch.empty_like(memory), *losses, *map(torch.empty_like, inputs))
    room = None
    if config["ROWS"] < config["K"]:
        room = torch.empty_like(memory, dtype=accumulator(memory.dtype))
    directions = (gg_memory, gg_sums, gg_mass, gg_weight, gg_bias)
    cotangents = (grad_memory, grad_divergence, grad_classification)
    launch(_double_backward, 1, *directions, *cotangents, *inputs, *outputs, room, **config)
    return outputs
