"""What the pictures of the method are drawn from, gathered in one pass over some images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pinmem import ops
from pinmem.data import IGNORE_INDEX
from pinmem.models import Segmenter
from pinmem.models.heads import upsample
from pinmem.passes import evaluating
from pinmem.prediction.pictures import denormalize

__all__ = ["BINS", "Example", "Statistics", "gather"]

BINS = 10
"""Intervals of confidence."""


@dataclass(frozen=True)
class Example:
    """An image uint8 [3,H,W], its labels and their prediction uint8 [H,W], attention [K,h,w]."""

    image: Tensor
    labels: Tensor
    guess: Tensor
    attention: Tensor | None

    def activation(self, k: int) -> Tensor:
        """The attention on a class's slot, [H,W]."""
        assert self.attention is not None
        return upsample(self.attention[None, k : k + 1], self.image.shape[1:])[0, 0]


@dataclass
class Statistics:
    """Of one dataset.

    confusion: [K,K], as in evaluation.
    features: [n,C], the mean query of a class in an image, unit length; ``feature_classes`` [n].
    reliability: [3,K,BINS], by predicted class and confidence: pixels at the logits' resolution,
        the sum of their confidence, and how many of them are right.
    """

    confusion: Tensor
    reliability: Tensor
    features: list[Tensor] = field(default_factory=list)
    feature_classes: list[Tensor] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    images: int = 0

    def calibration_error(self) -> Tensor:
        """Expected calibration error of each predicted class, [K]; NaN where there is none."""
        pixels, confidence, right = self.reliability
        return (confidence - right).abs().sum(1) / pixels.sum(1)


@torch.no_grad()
def gather(
    model: Segmenter, dataset: Dataset[tuple[Tensor, Tensor]], images: int = 20, examples: int = 1
) -> Statistics:
    """Put some images of a dataset, evenly spread, through a network.

    Args:
        model: on any device; its mode is kept.
        dataset: pairs of an image [3,H,W], normalised, and labels.
        images: at most so many.
        examples: how many of them are kept as pictures.
    """
    size, classes = len(dataset), model.num_classes  # type: ignore[arg-type]
    device = next(model.parameters()).device
    found = Statistics(
        torch.zeros(classes, classes, dtype=torch.int64),
        torch.zeros(3, classes, BINS, dtype=torch.float64),
    )
    count = min(images, size)
    with evaluating(model):
        for number in range(count):
            image, labels = dataset[number * size // count]
            labels = labels.as_subclass(Tensor)
            output = model(image[None].to(device))
            logits = output.logits.float()
            target = labels[None].to(device)
            found.confusion += ops.upsampled_confusion(logits, target).cpu()
            sums, mass = ops.class_sums(output.query.float(), target, classes)
            present = mass > 0
            means = torch.nn.functional.normalize(sums[present], dim=1)
            found.features.append(means.cpu())
            found.feature_classes.append(present.nonzero().flatten().cpu())
            found.reliability += _reliability(logits[0].cpu(), labels)
            if number < examples:
                guess = upsample(logits, image.shape[1:]).argmax(1)[0].to("cpu", torch.uint8)
                attention = None
                if output.scores is not None:
                    attention = output.scores[0].float().softmax(dim=0).cpu()
                found.examples.append(Example(denormalize(image), labels, guess, attention))
    found.images = count
    return found


def _reliability(logits: Tensor, labels: Tensor) -> Tensor:
    """See `Statistics`; logits [K,h,w], labels [H,W], read at the middle of each logit."""
    rows, columns = (
        ((2 * torch.arange(small, device=labels.device) + 1) * large // (2 * small))
        for small, large in zip(logits.shape[1:], labels.shape, strict=True)
    )
    truth = labels[rows][:, columns]
    confidence, guess = logits.softmax(dim=0).max(dim=0)
    counted = truth != IGNORE_INDEX
    confidence, guess, truth = confidence[counted].double(), guess[counted], truth[counted]
    cells = guess * BINS + (confidence * BINS).long().clamp_max(BINS - 1)
    values = (torch.ones_like(confidence), confidence, (guess == truth).double())
    shape = (len(logits), BINS)
    size = shape[0] * shape[1]
    return torch.stack([torch.bincount(cells, v, minlength=size).view(shape) for v in values])
