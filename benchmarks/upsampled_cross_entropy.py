"""upsampled_cross_entropy: the loss of upsampled logits (docs/math.md 2), main and reading loss.

Bytes: forward reads the logits and the labels; backward reads both again and writes a gradient;
the double backward also reads a direction. The upsampled logits are in none of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import IGNORED, Inputs, Source
from benchmarks.plan import BACKWARD, FORWARD, SECOND, Size
from pinmem import ops, reference

PASSES = (BACKWARD, FORWARD, SECOND)
VARIANTS = ("logits at 1/4", "scores of the memory")
OURS = ops.upsampled_cross_entropy
PLAIN = reference.upsampled_cross_entropy


def EAGER(logits: Tensor, target: Tensor) -> Tensor:  # noqa: N802
    """The reference without what the defaults make unnecessary: a third faster."""
    z = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
    return F.cross_entropy(z.float() if z.itemsize < 4 else z, target.long(), ignore_index=IGNORED)


def stride(size: Size, variant: str) -> int:
    return 4 if variant == VARIANTS[0] else size.output_stride


def make(size: Size, dtype: torch.dtype, source: Source, variant: str) -> Inputs:
    shape = (size.batch, size.classes, *size.at(stride(size, variant)))
    return Inputs([source.normal(*shape, dtype=dtype, scale=3)], {"target": source.labels(size)})


def moved(size: Size, itemsize: int, what: str, variant: str) -> int:
    logits = itemsize * size.classes * size.pixels(stride(size, variant))
    labels = size.pixels(1)
    passes = {FORWARD: (1, 1), BACKWARD: (3, 2), SECOND: (6, 3)}[what]
    return passes[0] * logits + passes[1] * labels


def operations(size: Size, what: str, variant: str) -> int:
    # A class of a label pixel: interpolate 4, exponentiate and sum 4; its gradient 2, spread 6.
    return {FORWARD: 8, BACKWARD: 16, SECOND: 40}[what] * size.pixels(1) * size.classes


def test_speed(benchmark, call) -> None:
    benchmark(call)
