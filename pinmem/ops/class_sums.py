"""Per-class sums of normalised features under soft labels (docs/math.md 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from pinmem import reference
from pinmem.backends import get_backend, select
from pinmem.ops._chain import Derivatives
from pinmem.ops._check import check_labels, check_map
from pinmem.ops._declare import Pass, declare
from pinmem.ops._maps import accumulator

# A block of the CUDA kernels holds all channels of some pixels, of two maps in second order.
_MOST_CHANNELS_ON_GPU = 2400


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
    too_many = backend == "cuda" and features.shape[1] > _MOST_CHANNELS_ON_GPU
    if backend == "reference" or (too_many and get_backend() != "cuda"):
        return reference.class_sums(features, labels, num_classes, ignore_index=ignore_index)
    sums, mass = _CALL[backend](features, labels, num_classes, ignore_index)
    return sums, mass


def _forward_fake(
    features: Tensor, labels: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    dtype = accumulator(features.dtype)
    return (
        features.new_empty((num_classes, features.shape[1]), dtype=dtype),
        features.new_empty((num_classes,), dtype=dtype),
    )


def _backward_fake(
    grad_sums: Tensor, features: Tensor, labels: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    return torch.empty_like(features)


def _double_backward_fake(
    features_tangent: Tensor,
    grad_sums: Tensor,
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_sums), torch.empty_like(features)


def _zeros(features: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    size = (num_classes, features.shape[1])
    return features.new_zeros(size, dtype=accumulator(features.dtype))


_CALL = declare(
    "class_sums",
    Derivatives(inputs=1, outputs=1, zeros=_zeros),
    class_sums=Pass(
        "(Tensor features, Tensor labels, int num_classes, int ignore_index)"
        " -> (Tensor sums, Tensor mass)",
        _forward_fake,
    ),
    class_sums_backward=Pass(
        "(Tensor grad_sums, Tensor features, Tensor labels, int num_classes, int ignore_index)"
        " -> Tensor grad_features",
        _backward_fake,
    ),
    class_sums_double_backward=Pass(
        "(Tensor features_tangent, Tensor grad_sums, Tensor features, Tensor labels,"
        " int num_classes, int ignore_index) -> (Tensor sums_dot, Tensor grad_features)",
        _double_backward_fake,
    ),
)
