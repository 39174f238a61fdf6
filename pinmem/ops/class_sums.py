"""Per-class sums of normalised features under soft labels (docs/math.md 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pinmem import reference
from pinmem.backends import select
from pinmem.ops._check import check_labels, check_map
from pinmem.ops._declare import Pass, declare
from pinmem.ops._maps import accumulator, dense, dense_like


def class_sums(
    features: Tensor, labels: Tensor, num_classes: int, *, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """Sum the L2-normalised features of each class (the writing of the paper, section 3.2).

    The one-hot labels are downsampled bilinearly (align_corners=True, no anti-aliasing), so each
    feature pixel reads four labels; an ignored label keeps its share of the weight and gives it
    to nobody. ``sums / mass`` are the class prototypes.

    Args:
        features: [B,C,h,w], float64, float32, bfloat16 or float16, either memory format.
        labels: [B,H,W], uint8 or int64, each in [0, num_classes) or ``ignore_index``.
        num_classes: K.
        ignore_index: the label that counts for nothing.

    Returns:
        ``sums`` [K,C] and ``mass`` [K], float64 for float64 features, else float32. The mass
        carries no gradient.

    Raises:
        ValueError: a shape, dtype, device or label does not fit.
    """
    check_map("features", features)
    if num_classes < 1:
        raise ValueError(f"num_classes: got {num_classes}, expected at least 1")
    check_labels("labels", labels, num_classes, ignore_index, features)
    backend = select("class_sums", features, num_classes)
    if backend == "reference":
        return reference.class_sums(features, labels, num_classes, ignore_index=ignore_index)
    return _PASSES[backend].class_sums(
        dense(features), labels.contiguous(), num_classes, ignore_index
    )


def _forward_fake(
    features: Tensor, labels: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    dtype = accumulator(features.dtype)
    return (
        features.new_empty((num_classes, features.shape[1]), dtype=dtype),
        features.new_empty((num_classes,), dtype=dtype),
    )


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    features, labels, ctx.num_classes, ctx.ignore_index = inputs
    _, mass = output
    ctx.mark_non_differentiable(mass)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(features, labels)


def _forward_backward(
    passes: Any, ctx: Any, grad_sums: Tensor | None, _mass: None
) -> tuple[Tensor | None, ...]:
    if grad_sums is None or not ctx.needs_input_grad[0]:
        return (None,) * 4
    grad_features = passes.class_sums_backward(
        grad_sums.contiguous(), *ctx.saved_tensors, ctx.num_classes, ctx.ignore_index
    )
    return grad_features, None, None, None


def _backward_fake(
    grad_sums: Tensor, features: Tensor, labels: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    return torch.empty_like(features)


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.num_classes, ctx.ignore_index = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _backward_backward(
    passes: Any, ctx: Any, features_tangent: Tensor | None
) -> tuple[Tensor | None, ...]:
    if features_tangent is None:
        return (None,) * 5
    grad_sums, features, labels = ctx.saved_tensors
    sums_dot, grad_features = passes.class_sums_double_backward(
        dense_like(features_tangent, features),
        grad_sums,
        features,
        labels,
        ctx.num_classes,
        ctx.ignore_index,
    )
    return sums_dot, grad_features, None, None, None


def _double_backward_fake(
    features_tangent: Tensor,
    grad_sums: Tensor,
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_sums), torch.empty_like(features)


_PASSES = declare(
    "class_sums",
    class_sums=Pass(
        "(Tensor features, Tensor labels, int num_classes, int ignore_index)"
        " -> (Tensor sums, Tensor mass)",
        _forward_fake,
        _forward_setup,
        _forward_backward,
    ),
    class_sums_backward=Pass(
        "(Tensor grad_sums, Tensor features, Tensor labels, int num_classes, int ignore_index)"
        " -> Tensor grad_features",
        _backward_fake,
        _backward_setup,
        _backward_backward,
    ),
    class_sums_double_backward=Pass(
        "(Tensor features_tangent, Tensor grad_sums, Tensor features, Tensor labels,"
        " int num_classes, int ignore_index) -> (Tensor sums_dot, Tensor grad_features)",
        _double_backward_fake,
    ),
)
