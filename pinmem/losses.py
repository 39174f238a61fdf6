"""The losses of a training pass (paper, section 3.4; docs/math.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pinmem import ops
from pinmem.memory import Written
from pinmem.models import Segmenter, SegmenterOutput


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts beside the segmentation loss; the published values."""

    aux: float = 0.4
    reading: float = 0.02
    divergence: float = 0.4
    classification: float = 0.2


class Losses(NamedTuple):
    """The losses of one pass, scalars; those a pass does not have are zero."""

    total: Tensor
    segmentation: Tensor
    aux: Tensor
    reading: Tensor
    divergence: Tensor
    classification: Tensor

    def detach(self) -> Losses:
        """The same numbers without their graph."""
        return Losses(*(loss.detach() for loss in self))


def losses_of(
    model: Segmenter,
    output: SegmenterOutput,
    labels: Tensor,
    weights: LossWeights,
    written: Written | None = None,
) -> Losses:
    """The weighted losses of a training-mode pass, with those of a write where there was one."""
    segmentation = ops.upsampled_cross_entropy(output.logits, labels)
    zero = torch.zeros_like(segmentation)
    aux, reading, divergence, classification = zero, zero, zero, zero
    if output.aux_logits is not None:
        small = _nearest(labels, output.aux_logits.shape[2:])
        aux = ops.upsampled_cross_entropy(output.aux_logits, small)
    if model.memory is not None and output.scores is not None:
        reading = model.memory.reading_loss(output.scores, labels)
    if written is not None:
        divergence, classification = written.divergence, written.classification
    total = (
        segmentation
        + weights.aux * aux
        + weights.reading * reading
        + weights.divergence * divergence
        + weights.classification * classification
    )
    return Losses(total, segmentation, aux, reading, divergence, classification)


def _nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels at the auxiliary head's resolution, by nearest neighbour."""
    if labels.dtype == torch.uint8:
        return F.interpolate(labels[:, None], size=tuple(size), mode="nearest")[:, 0]
    small = F.interpolate(labels[:, None].double(), size=tuple(size), mode="nearest")
    return small[:, 0].to(labels.dtype)
