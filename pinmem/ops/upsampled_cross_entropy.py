"""Cross-entropy of bilinearly upsampled logits, which are never stored (docs/math.md 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pinmem import reference
from pinmem.backends import select
from pinmem.ops._chain import Derivatives
from pinmem.ops._check import check_labels, check_map, check_shape
from pinmem.ops._declare import Pass, declare
from pinmem.ops._maps import accumulator, empty_map
from pinmem.ops._transforms import differentiated


def upsampled_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = 255,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of ``upsample(logits) / temperature`` against full-size labels.

    Upsampling is bilinear with align_corners=True. This is the cohesion (reading) loss of the
    paper (section 3.3) from scores at 1/16, and the segmentation loss from logits at 1/4.

    Args:
        logits: [B,K,h,w], float64, float32, bfloat16 or float16, either memory format.
        target: labels [B,H,W], uint8 or int64, each in [0,K) or ``ignore_index``.
        temperature: divides the upsampled logits, > 0.
        ignore_index: the label that counts for nothing.
        class_weight: optional weights [K] >= 0, of the logits' dtype or float32; the mean is
            weighted, as in ``torch.nn.functional.cross_entropy``. No gradient.

    Returns:
        A scalar, float64 for float64 logits, else float32. Zero, with zero gradients, where
        nothing counts.

    Raises:
        ValueError: a shape, dtype, device, label or the temperature does not fit.
    """
    check_map("logits", logits)
    num_classes = logits.shape[1]
    check_labels("target", target, num_classes, ignore_index, logits)
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, expected a number > 0")
    if class_weight is not None:
        check_shape("class_weight", class_weight, (num_classes,), logits)
        if class_weight.requires_grad:
            raise ValueError("class_weight: got a tensor that requires grad, expected one without")
    backend = select("upsampled_cross_entropy", logits, num_classes)
    if backend == "reference":
        return reference.upsampled_cross_entropy(
            logits,
            target,
            temperature=temperature,
            ignore_index=ignore_index,
            class_weight=class_weight,
        )
    loss, _ = _CALL[backend](
        logits, target, class_weight, float(temperature), ignore_index, differentiated(logits)
    )
    return loss


def _forward_fake(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    temperature: float,
    ignore_index: int,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    dtype = accumulator(logits.dtype)
    unit_grad = (
        empty_map(logits, logits.shape[1], dtype) if need_grad else logits.new_empty(0, dtype=dtype)
    )
    return logits.new_empty((), dtype=dtype), unit_grad


def _backward_fake(
    grad_loss: Tensor,
    unit_grad: Tensor,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    temperature: float,
    ignore_index: int,
) -> Tensor:
    return torch.empty_like(logits)


def _double_backward_fake(
    logits_tangent: Tensor,
    grad_loss: Tensor,
    unit_grad: Tensor,
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    temperature: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_loss), torch.empty_like(logits)


def _zeros(logits: Tensor, *others: Any) -> Tensor:
    return logits.new_zeros((), dtype=accumulator(logits.dtype))


_CALL = declare(
    "upsampled_cross_entropy",
    Derivatives(inputs=1, outputs=1, keeps=True, zeros=_zeros),
    upsampled_cross_entropy=Pass(
        "(Tensor logits, Tensor target, Tensor? class_weight, float temperature,"
        " int ignore_index, bool need_grad) -> (Tensor loss, Tensor unit_grad)",
        _forward_fake,
    ),
    upsampled_cross_entropy_backward=Pass(
        "(Tensor grad_loss, Tensor unit_grad, Tensor logits, Tensor target,"
        " Tensor? class_weight, float temperature, int ignore_index) -> Tensor grad_logits",
        _backward_fake,
    ),
    upsampled_cross_entropy_double_backward=Pass(
        "(Tensor logits_tangent, Tensor grad_loss, Tensor unit_grad, Tensor logits, Tensor target,"
        " Tensor? class_weight, float temperature, int ignore_index)"
        " -> (Tensor loss_dot, Tensor grad_logits)",
        _double_backward_fake,
    ),
)
