"""``Z`` of a mean loss: the weight of all pixels that count, in at most 256 shares."""

from __future__ import annotations

import triton
import triton.language as tl
from pinmem.kernels.bilinear import load_labels
from pinmem.kernels.launch import launch
from pinmem.kernels.maps import accumulator
from torch import Tensor

from pinmem.ops._maps import accumulator as accumulation_type

# Shares at most: whoever needs Z adds them up by himself.
MASS_SHARES = 256


@triton.jit
def weight_of_label(class_weight, label, ACC: tl.constexpr):
    """What a pixel counts: its class's weight, 1 without weights, 0 for a label that is ignored."""
    if class_weight is None:
        return (label >= 0).to(ACC)
    else:
        return tl.load(class_weight + label, mask=label >= 0, other=0.0).to(ACC)


@triton.jit
def total_mass(masses, count, BLOCK_MASSES: tl.constexpr):
    """``Z``, the sum of its shares."""
    share = tl.arange(0, BLOCK_MASSES)
    return tl.sum(tl.load(masses + share, mask=share < count, other=0.0).to(tl.float64), 0)


@triton.jit
def over_mass(value, mass):
    """``value / mass``, 0 where nothing counts."""
    return tl.where(mass > 0, value / tl.where(mass > 0, mass, 1.0), 0.0)


@triton.jit
def scale_of(grad_loss, masses, count, ACC: tl.constexpr, BLOCK_MASSES: tl.constexpr):
    """What multiplies a gradient: ``1 / Z``, times ``grad_loss`` where there is one."""
    mass = total_mass(masses, count, BLOCK_MASSES)
    if grad_loss is None:
        scale = over_mass(tl.full((), 1.0, tl.float64), mass)
    else:
        scale = over_mass(tl.load(grad_loss).to(tl.float64), mass)
    return scale.to(ACC)


@triton.jit
def _weigh(
    labels,
    class_weight,
    masses,
    pixels,
    steps,
    ignore_index,
    K: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program's share of ``Z``, the weight of all pixels that count."""
    mass = tl.zeros([BLOCK], ACC)
    first = tl.program_id(0).to(tl.int64) * steps * BLOCK
    for step in range(steps):
        at = first + step * BLOCK + tl.arange(0, BLOCK)
        label = load_labels(labels, at, at < pixels, ignore_index, K)
        mass += weight_of_label(class_weight, label, ACC)
    tl.store(masses + tl.program_id(0), tl.sum(mass, 0))


def mass_shares(
    target: Tensor, class_weight: Tensor | None, logits: Tensor, ignore_index: int
) -> Tensor:
    """The shares of ``Z``, in the accumulation type of the logits [B,K,h,w]; one launch."""
    block = 4096
    steps = max(1, triton.cdiv(target.numel(), block * MASS_SHARES))
    programs = max(1, triton.cdiv(target.numel(), block * steps))
    masses = logits.new_empty(programs, dtype=accumulation_type(logits.dtype))
    launch(
        _weigh,
        programs,
        target,
        class_weight,
        masses,
        target.numel(),
        steps,
        ignore_index,
        K=logits.shape[1],
        ACC=accumulator(logits.dtype),
        BLOCK=block,
        num_warps=8,
    )
    return masses
