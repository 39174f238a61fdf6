"""The losses of a training pass (paper, section 3.4; docs/math.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pinmem import ops
from pinmem.distributed import active
from pinmem.memory import Written
from pinmem.models import Segmenter, SegmenterOutput


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts beside the segmentation loss; the published values."""

    aux: float = 0.4
    reading: float = 0.02
    divergence: float = 0.4
    classification: float = 0.2
    whitening: float = 0.6  # RobustNet's, of a network that has this loss; part of the total alone


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
    whole: Sequence[Tensor] | None = None,
) -> Losses:
    """The weighted losses of a training-mode pass, with those of a write where there was one.

    On ranks that share a batch they add up to those of the whole.

    Args:
        model: the network that was run.
        output: what it gave.
        labels: [B,H,W].
        weights: of the losses.
        written: what a write gave.
        whole: the labels of all micro-batches, where ``labels`` are those of one: each loss then
            counts as its share of their pixels, so that the losses of all add up.
    """
    ranks = active()
    if ranks is not None:
        whole = whole or [labels]
    share = _share(labels, whole)
    segmentation = share(ops.upsampled_cross_entropy(output.logits, labels))
    zero = torch.zeros_like(segmentation)
    aux, reading, divergence, classification = zero, zero, zero, zero
    if output.aux_logits is not None:
        size = output.aux_logits.shape[2:]
        small = _nearest(labels, size)
        others = None if whole is None else [_nearest(other, size) for other in whole]
        aux = _share(small, others)(ops.upsampled_cross_entropy(output.aux_logits, small))
    if model.memory is not None and output.scores is not None:
        reading = share(model.memory.reading_loss(output.scores, labels))
    if written is not None:
        divergence, classification = of_rank(written)
    total = (
        segmentation
        + weights.aux * aux
        + weights.reading * reading
        + weights.divergence * divergence
        + weights.classification * classification
    )
    if output.whitened:
        whitening = model.backbone.whitening_loss(output.whitened)
        images = labels.shape[0] / sum(each.shape[0] for each in whole or (labels,))
        images /= 1 if ranks is None else ranks.size
        total = total + weights.whitening * images * whitening
    return Losses(total, segmentation, aux, reading, divergence, classification)


def of_rank(written: Written) -> tuple[Tensor, Tensor]:
    """The writing losses, which are those of all ranks' writes, as one rank's part of their sum."""
    ranks = active()
    if ranks is None:
        return written.divergence, written.classification
    return written.divergence / ranks.size, written.classification / ranks.size


def _share(
    labels: Tensor, whole: Sequence[Tensor] | None, ignore_index: int = 255
) -> Callable[[Tensor], Tensor]:
    """Turns a mean over the labelled pixels of a part into its share of the mean over all."""
    if whole is None:
        return lambda loss: loss
    counted = [(each != ignore_index).sum() for each in (labels, *whole)]
    total = torch.stack(counted[1:]).sum()
    if (ranks := active()) is not None:
        total = ranks.total(total)
    return lambda loss: loss * counted[0].to(loss.dtype) / total.clamp_min(1)


def _nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels at the auxiliary head's resolution, by nearest neighbour."""
    if labels.dtype == torch.uint8:
        return F.interpolate(labels[:, None], size=tuple(size), mode="nearest")[:, 0]
    small = F.interpolate(labels[:, None].double(), size=tuple(size), mode="nearest")
    return small[:, 0].to(labels.dtype)
