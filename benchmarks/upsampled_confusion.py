"""upsampled_confusion: the confusion matrix of upsampled logits (docs/math.md 5).

Bytes: reads the logits and the labels, writes K x K counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import Inputs, Source
from benchmarks.plan import FORWARD, Size
from pinmem import ops, reference

PASSES = (FORWARD,)
OURS = ops.upsampled_confusion
PLAIN = reference.upsampled_confusion


def EAGER(logits: Tensor, target: Tensor) -> Tensor:  # noqa: N802
    """The usual evaluation loop: upsample, argmax, bincount of the pairs that count."""
    classes = logits.shape[1]
    z = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
    cells = target.long() * classes + z.argmax(dim=1)
    # Ignored labels fall behind the last cell of the matrix.
    counts = torch.bincount(cells.flatten(), minlength=256 * classes)
    return counts[: classes * classes].view(classes, classes)


def make(size: Size, dtype: torch.dtype, source: Source, variant: str) -> Inputs:
    logits = source.normal(size.batch, size.classes, *size.at(4), dtype=dtype, scale=3)
    return Inputs([logits], {"target": source.labels(size)})


def moved(size: Size, itemsize: int, what: str, variant: str) -> int:
    return itemsize * size.classes * size.pixels(4) + size.pixels(1) + 8 * size.classes**2


def operations(size: Size, what: str, variant: str) -> int:
    return 5 * size.pixels(1) * size.classes  # interpolate 4, compare 1


def test_speed(benchmark, call) -> None:
    benchmark(call)
