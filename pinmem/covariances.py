"""What selective whitening (ISW) works on: covariances that change with the colours of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pinmem.batches import load_draws, seed_of
from pinmem.config import TrainConfig
from pinmem.data import DomainDataset, SegmentationDataset, eval_transform, seeded
from pinmem.data.transforms import Photometric
from pinmem.distributed import Ranks
from pinmem.models import Segmenter
from pinmem.models.whitening import InstanceNormResNet, sensitive_covariances
from pinmem.passes import evaluating

_STREAM = 4  # of random numbers: beside those of the trainer
_TRIALS = 10  # as published
Track = Callable[[Iterable[Any], str], Iterable[Any]]


def masks_of(model: Segmenter) -> tuple[Tensor, ...]:
    """The masks of a network with a whitening loss; none in others."""
    backbone = model.backbone
    whitens = isinstance(backbone, InstanceNormResNet) and backbone.whitening
    return backbone.masks if whitens else ()  # type: ignore[union-attr,return-value]


@torch.no_grad()
def choose_covariances(
    model: Segmenter,
    sources: list[SegmentationDataset],
    config: TrainConfig,
    track: Track,
    ranks: Ranks | None = None,
) -> None:
    """Set the masks to the covariances that are sensitive in every one of ten passes.

    Args:
        model: on its device; nothing happens to one without a whitening loss.
        sources: the training sets.
        config: of the run.
        track: shows progress over what it is given.
        ranks: of the run; each goes through all images, and all take what rank 0 found.
    """
    masks = masks_of(model)
    if not masks:
        return
    backbone = model.backbone
    assert isinstance(backbone, InstanceNormResNet)
    for mask in masks:
        mask.fill_(True)
    device = next(model.parameters()).device
    with evaluating(model):
        for trial in range(_TRIALS):
            views = _views(sources, config, device, trial, track)
            for mask, found in zip(masks, sensitive_covariances(backbone, views), strict=True):
                mask &= found
    if ranks is not None:
        ranks.as_first(masks)


def _views(
    sources: list[SegmentationDataset],
    config: TrainConfig,
    device: torch.device,
    trial: int,
    track: Track,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of all domains as they are, and in other colours."""
    colour, plain = Photometric(hard=True), eval_transform()
    seed = seed_of(config.seed, _STREAM, trial) % 2**32
    dataset = DomainDataset(sources, config.whitening_draws, seed=seed)
    loader = load_draws(dataset, range(len(dataset)), config, device)
    for index, (images, _) in enumerate(track(loader, "covariances")):
        images = images.to(device, non_blocking=True).flatten(0, 1)
        with seeded(config.seed, _STREAM, trial, index):
            yield plain(images, images)[0], colour(images)
