"""The confusion matrix of bilinearly upsampled logits, which are never stored (docs/math.md 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from pinmem import reference
from pinmem.backends import select
from pinmem.ops._check import check_labels, check_map
from pinmem.ops._declare import Pass, declare


def upsampled_confusion(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Count ``argmax(upsample(logits))`` against full-size labels.

    Upsampling is bilinear with align_corners=True; ties go to the lowest class.

    Args:
        logits: [B,K,h,w], float64, float32, bfloat16 or float16, either memory format; finite:
            which class a pixel with NaN counts for is left open.
        target: labels [B,H,W], uint8 or int64, each in [0,K) or ``ignore_index``.
        ignore_index: the label that counts for nothing.

    Returns:
        Counts [K,K], int64; rows are the truth, columns the prediction. No gradient.

    Raises:
        ValueError: a shape, dtype, device or label does not fit.
    """
    check_map("logits", logits)
    check_labels("target", target, logits.shape[1], ignore_index, logits)
    logits = logits.detach()
    backend = select("upsampled_confusion", logits, logits.shape[1])
    if backend == "reference":
        return reference.upsampled_confusion(logits, target, ignore_index=ignore_index)
    (counts,) = _CALL[backend](logits, target, ignore_index)
    return counts


def _forward_fake(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    return logits.new_empty((logits.shape[1], logits.shape[1]), dtype=torch.int64)


_CALL = declare(
    "upsampled_confusion",
    upsampled_confusion=Pass(
        "(Tensor logits, Tensor target, int ignore_index) -> Tensor counts", _forward_fake
    ),
)
