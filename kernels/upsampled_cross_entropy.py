"""Triton kernels for :func:`pinmem.ops.upsampled_cross_entropy` (docs/math.md 2).

Forward and second order are three launches: ``Z``, the visit to every pixel
(:mod:`pinmem.kernels.upsampled_cross_entropy_visit`), and the finish. An exponential a pixel and
class is what they are bound by; ``z`` at a pixel is never stored. Backward is one multiplication.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from pinmem.kernels.bilinear import index_of, plan, spread, upsamplings
from pinmem.kernels.launch import CompileCase, launch, recording
from pinmem.kernels.loss_mass import MASS_SHARES, mass_shares
from pinmem.kernels.maps import accumulator, cast, padded
from pinmem.kernels.upsampled_cross_entropy_visit import finish, visit
from torch import Tensor

from pinmem.ops._maps import accumulator as accumulation_type
from pinmem.ops._maps import empty_map, format_of


@triton.jit
def _multiply(unit_grad, grad_loss, grad_logits, numel, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    unit = tl.load(unit_grad + at, mask=at < numel)
    value = unit * tl.load(grad_loss).to(unit.dtype)
    tl.store(grad_logits + at, cast(value, grad_logits.dtype.element_ty), mask=at < numel)


def _classes_a_thread(order: int, block_k: int, dtype: torch.dtype, index: Any) -> int:
    """How many classes of a column fit a thread's registers, at 3, 5 or 7 values each."""
    if dtype == torch.float64:
        return (16, 8, 4)[order]
    if index == tl.int64:
        return (32, 16, 8)[order]
    # A warp that has all classes knows them at compile time, and drops the padding.
    return (32, 32 if block_k <= 32 else 16, 16)[order]


def _run(
    order: int,
    logits: Tensor,
    tangent: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    grad_loss: Tensor | None,
    temperature: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor | None]:
    """The value (order 0), and its gradient (1), or the change of both along ``tangent`` (2)."""
    batch, num_classes, h, w = logits.shape
    high, wide = target.shape[1:]
    kind = accumulation_type(logits.dtype)
    block_k = padded(num_classes)
    index = index_of(logits, target)
    lanes, warps = spread(block_k, _classes_a_thread(order, block_k, logits.dtype, index))
    cut = plan(logits, target, lanes)
    sizes = (h, w, high, wide, cut.y.tiles, cut.x.tiles, cut.y.window, cut.x.window)
    masses = mass_shares(target, class_weight, logits, ignore_index)
    common = {
        "K": num_classes,
        "ACC": accumulator(logits.dtype),
        "ORDER": order,
        "UPSAMPLES": cut.upsamples,
        "CHANNELS_LAST": format_of(logits) == torch.channels_last,
        "INDEX": index,
        "TILE_Y": cut.y.tile,
        "TILE_X": cut.x.tile,
        "BLOCK_MASSES": MASS_SHARES,
    }
    programs = batch * cut.tiles
    values = logits.new_empty(programs, dtype=kind)
    out, edges = None, None
    if order:
        out = empty_map(logits, num_classes, kind if order == 1 else logits.dtype)
        share = cut.y.window * cut.x.window * num_classes
        edges = logits.new_empty(programs * share, dtype=kind)
    launch(
        visit,
        programs,
        logits,
        tangent,
        target,
        class_weight,
        masses,
        grad_loss,
        out,
        edges,
        values,
        *sizes,
        masses.numel(),
        ignore_index,
        **common,
        TEMPERATURE=temperature,  # as an argument it would be rounded to float32
        STEPS=cut.x.steps,
        LANES_X=lanes,
        BLOCK_K=block_k,
        num_warps=warps,
        maxnreg=255 if order else None,
    )

    value = logits.new_empty((), dtype=kind if grad_loss is None else grad_loss.dtype)
    block_k, block_x = min(block_k, 32), 32
    blocks = triton.cdiv(num_classes, block_k) * triton.cdiv(w, block_x)
    launch(
        finish,
        1 + (batch * h * blocks if order else 0),
        edges,
        masses,
        values,
        grad_loss,
        value,
        out,
        *sizes,
        cut.x.span,
        masses.numel(),
        programs,
        **common,
        BLOCK_K=block_k,
        BLOCK_X=block_x,
        BLOCK_VALUES=1024,
        num_warps=2 if index == tl.int32 else 4,
        maxnreg=255,
    )
    return value, out


def upsampled_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    temperature: float,
    ignore_index: int,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss and, with ``need_grad``, its gradient at ``grad_loss = 1``, from one visit."""
    loss, unit_grad = _run(
        int(need_grad), logits, None, target, class_weight, None, temperature, ignore_index
    )
    return loss, loss.new_empty(0) if unit_grad is None else unit_grad


def upsampled_cross_entropy_backward(
    grad_loss: Tensor,
    unit_grad: Tensor,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    temperature: float,
    ignore_index: int,
) -> Tensor:
    """``unit_grad * grad_loss`` in the logits' type, one launch."""
    grad_logits = torch.empty_like(logits)
    numel, block = logits.numel(), 2048
    launch(
        _multiply,
        triton.cdiv(numel, block),
        unit_grad,
        grad_loss,
        grad_logits,
        numel,
        BLOCK=block,
        num_warps=8,
    )
    return grad_logits


def upsampled_cross_entropy_double_backward(
    gg_logits: Tensor,
    grad_loss: Tensor,
    unit_grad: Tensor,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    temperature: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """The changes of loss and gradient along ``gg_logits``, from one visit."""
    gg_loss, grad_logits = _run(
        2, logits, gg_logits, target, class_weight, grad_loss, temperature, ignore_index
    )
    assert grad_logits is not None
    return gg_loss, grad_logits


def compile_cases() -> Iterator[CompileCase]:
    """Every kernel in every configuration that ``auto`` can choose."""
    for label, typical, logits, target, weight in upsamplings():
        inputs = (logits, target, weight, 0.7, 255)
        with recording(label, typical) as cases:
            loss, _ = upsampled_cross_entropy(*inputs, False)
            _, unit_grad = upsampled_cross_entropy(*inputs, True)
            saved = (loss, unit_grad, *inputs)
            upsampled_cross_entropy_backward(*saved)
            upsampled_cross_entropy_double_backward(logits, *saved)
        yield from cases
