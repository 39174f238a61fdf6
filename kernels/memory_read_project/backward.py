"""The backward pass of memory_read_project.

With up to 256 channels a program has all of a pixel's gradient in registers: one kernel makes dx
and leaves what sums over pixels need (``r`` [N], ``a`` and ``ds`` [N,K]); a second one forms
``dW_q = D^T q``, ``ds^T q`` and ``dP = a^T D``, split over pixels, and one or two launches add the
parts. The rest is products of small matrices. Bytes per pixel, for elements of ``e`` bytes: reads
``(2C + 2O + K) e``, writes ``C e``.

With more channels the gradient of the readout is formed and read by memory_read's own pass.
"""

from __future__ import annotations

import functools

import torch
import triton.language as tl
from torch import Tensor

from pinmem.kernels.launch import Plan
from pinmem.kernels.maps import (
    Layout,
    as_type,
    both_products,
    cast,
    dot,
    inverse_norm,
    jit,
    layout_of,
    load_channels,
    load_rows,
    padded,
    pixel_block,
    plan_of,
    run_offsets,
    softmax,
    store_channels,
    sum_squares,
)
from pinmem.kernels.memory_read import memory_read, memory_read_backward
from pinmem.kernels.memory_read_project.pixel_sums import pixel_sums
from pinmem.reference import own_types

_MOST_CHANNELS = 256


@jit
def _backward(
    query, memory, weight, projected_memory, gumbel, grad_projected, grad_scores,
    grad_query, attention, slot_grads, inverse,
    C, OUT, pixels, blocks, total,
    K: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
    HALF_C: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    T: tl.constexpr = query.dtype.element_ty
    image, first, inside = pixel_block(tl.program_id(0), blocks, total, pixels, BLOCK_N)
    at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
    at_k, _ = run_offsets(image, first, K, pixels, CHANNELS_LAST, BLOCK_N)
    at_o, _ = run_offsets(image, first, OUT, pixels, CHANNELS_LAST, BLOCK_N)

    x_x = tl.zeros([BLOCK_N], tl.float32)
    s = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for c in range(0, C, BLOCK_C):
        x = load_channels(query, at, step, inside, c, C, BLOCK_C)  # [N, C]
        m = load_rows(memory, 0, K, c, C, C, BLOCK_K, BLOCK_C)  # [K, C]
        s = dot(x, tl.trans(m), s, PRECISION)
        x_x += sum_squares(x)
    r, curved = inverse_norm(x_x)
    s *= r[:, None]
    a = softmax(s, gumbel, at_k, step, inside, K)
    da = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    e_0 = tl.zeros([BLOCK_N, HALF_C], tl.float32)
    for o in range(0, OUT, BLOCK_O):
        d = load_channels(grad_projected, at_o, step, inside, o, OUT, BLOCK_O)  # [N, O]
        p = load_rows(projected_memory, 0, K, o, OUT, OUT, BLOCK_K, BLOCK_O)  # [K, O]
        da = dot(d, tl.trans(p), da, WIDE)
        if grad_query is not None:
            w = load_rows(weight, o, OUT, 0, C, 2 * C, BLOCK_O, HALF_C)  # [O, C]
            e_0 = dot(d, w, e_0, WIDE)
    ds = a * (da - tl.sum(a * da, 1)[:, None])
    if grad_scores is not None:
        ds += load_channels(grad_scores, at_k, step, inside, 0, K, BLOCK_K).to(tl.float32)
    if attention is not None:
        store_channels(attention, at_k, step, inside, 0, K, a)
        store_channels(slot_grads, at_k, step, inside, 0, K, ds)
        tl.store(inverse + image.to(tl.int64) * pixels + first + tl.arange(0, BLOCK_N), r, inside)
    if grad_query is None:
        return
    ds = cast(ds, T)
    m = load_rows(memory, 0, K, 0, C, C, BLOCK_K, HALF_C)
    e_0 = dot(ds, m, e_0, PRECISION)
    x_0 = load_channels(query, at, step, inside, 0, C, HALF_C).to(tl.float32)
    x_e = tl.sum(x_0 * e_0, 1)
    if not TWO:
        bend = tl.where(curved, x_e * r * r, 0.0)[:, None]
        store_channels(grad_query, at, step, inside, 0, C, r[:, None] * (e_0 - x_0 * bend))
    else:
        # Half of the gradient waits in the maps' type while the other half is formed.
        e_0 = cast(e_0, T)
        m = load_rows(memory, 0, K, HALF_C, C, C, BLOCK_K, HALF_C)
        e_1 = dot(ds, m, tl.zeros([BLOCK_N, HALF_C], tl.float32), PRECISION)
        for o in range(0, OUT, BLOCK_O):
            d = load_channels(grad_projected, at_o, step, inside, o, OUT, BLOCK_O)
            w = load_rows(weight, o, OUT, HALF_C, C, 2 * C, BLOCK_O, HALF_C)
            e_1 = dot(d, w, e_1, WIDE)
        x_1 = load_channels(query, at, step, inside, HALF_C, C, HALF_C).to(tl.float32)
        x_e += tl.sum(x_1 * e_1, 1)
        bend = tl.where(curved, x_e * r * r, 0.0)[:, None]
        store_channels(grad_query, at, step, inside, HALF_C, C, r[:, None] * (e_1 - x_1 * bend))
        x_0 = load_channels(query, at, step, inside, 0, C, HALF_C).to(tl.float32)
        dx = r[:, None] * (e_0.to(tl.float32) - x_0 * bend)
        store_channels(grad_query, at, step, inside, 0, C, dx)


# bytes per element: up to 32 slots, and more: pixels, channels, outputs, warps, stages
_BLOCKS = {
    2: [(64, 64, 64, 8, 2), (64, 32, 32, 8, 2)],
    4: [(64, 32, 32, 8, 2), (16, 16, 32, 8, 2)],
}


@functools.lru_cache(256)
def _plan(layout: Layout, slots: int, outputs: int, products: tuple[str, str]) -> Plan:
    block_n, block_c, block_o, warps, stages = layout.of(_BLOCKS, slots, products[1])
    wide = padded(layout.shape[1])
    sizes = layout.sizes(block_n)
    return plan_of(
        _backward, layout, slots, sizes[2], (layout.shape[1], outputs, *sizes),
        block_n, warps, stages, products[0],
        WIDE=products[1], BLOCK_C=min(block_c, wide),
        BLOCK_O=min(block_o, padded(outputs)), HALF_C=min(wide, 128), TWO=wide > 128,
    )  # fmt: skip


@own_types
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
    """First-order pass: gradients of query, memory and weight, empty where not needed."""
    m, w = as_type(memory, query), as_type(weight, query)
    if grad_projected is None or padded(query.shape[1]) > _MOST_CHANNELS:
        return _through_readout(
            grad_projected, grad_scores, query, memory, weight, gumbel,
            need_query, need_memory, need_weight,
        )  # fmt: skip
    layout = layout_of(query)
    slots, channels = memory.shape
    outputs = weight.shape[0]
    grad_query = torch.empty_like(query) if need_query else query.new_empty(0)
    grad_memory, grad_weight = memory.new_empty(0), weight.new_empty(0)
    need_sums = need_memory or need_weight
    attention = layout.new_map(slots, query) if need_sums else None
    slot_grads = layout.new_map(slots, query) if need_sums else None
    inverse = query.new_empty(query.numel() // channels, dtype=torch.float32) if need_sums else None
    plan = _plan(layout, slots, outputs, both_products(query))
    plan(
        query, m, w, m @ w[:, channels:].T, gumbel, grad_projected, grad_scores,
        grad_query if need_query else None, attention, slot_grads, inverse,
    )  # fmt: skip
    if attention is None or slot_grads is None or inverse is None:
        return grad_query, grad_memory, grad_weight
    if need_weight:
        grad_weight = torch.empty_like(weight)
    slot_sums, projected_grad = pixel_sums(
        query, grad_projected, attention, slot_grads, inverse,
        grad_weight if need_weight else None, need_memory, memory.dtype,
    )  # fmt: skip
    if slot_sums is not None:
        grad_memory = torch.addmm(slot_sums, projected_grad, as_type(weight[:, channels:], memory))
    if need_weight:
        grad_weight[:, channels:] = projected_grad.T @ memory
    return grad_query, grad_memory, grad_weight


def _through_readout(
    grad_projected: Tensor | None, grad_scores: Tensor | None,
    query: Tensor, memory: Tensor, weight: Tensor, gumbel: Tensor | None,
    need_query: bool, need_memory: bool, need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The same by the readout [B,2C,h,w] and its gradient, which memory_read's passes take."""
    grad_readout, grad_weight = None, weight.new_empty(0)
    if grad_projected is not None:
        grad_readout = pointwise(grad_projected, weight.T, layout_of(query))
    grad_query, grad_memory = memory_read_backward(
        grad_readout, grad_scores, query, memory, gumbel, need_query, need_memory
    )
    if need_weight and grad_projected is not None:
        readout, _ = memory_read(query, memory, gumbel)
        grad_weight = weight_gradient(grad_projected, readout).to(weight.dtype)
    elif need_weight:
        grad_weight = torch.zeros_like(weight)
    return grad_query, grad_memory, grad_weight


def pointwise(features: Tensor, matrix: Tensor, layout: Layout) -> Tensor:
    """A map times a matrix [O,C] at every pixel; without cuDNN, which may choose anew every run."""
    matrix = as_type(matrix, features)
    if not layout.channels_last:
        return (matrix @ features.flatten(2)).unflatten(2, features.shape[2:])
    return (features.permute(0, 2, 3, 1) @ matrix.T).permute(0, 3, 1, 2)


def weight_gradient(grad_projected: Tensor, readout: Tensor) -> Tensor:
    """``D^T readout`` [O,2C]."""
    return torch.einsum("bohw,bchw->oc", grad_projected, readout)
