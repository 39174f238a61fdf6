"""The confusion matrix of a network over a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pinmem.distributed import Ranks
from pinmem.evaluation.folding import folded
from pinmem.evaluation.inference import Inference, infer
from pinmem.models import Segmenter
from pinmem.passes import autocast, evaluating
from pinmem.stop import leave_signals_to_the_parent

__all__ = ["confusion_of"]

Track = Callable[[Iterable[list[Tensor]]], Iterable[list[Tensor]]]


@torch.no_grad()
def confusion_of(
    model: Segmenter,
    dataset: Dataset[tuple[Tensor, Tensor]],
    *,
    inference: Inference | None = None,
    workers: int = 0,
    amp_dtype: torch.dtype | None = None,
    track: Track = lambda batches: batches,
    ranks: Ranks | None = None,
) -> Tensor:
    """The confusion matrix [K,K] of a network over a dataset, one image after the other.

    Args:
        model: on any device; its mode is kept.
        dataset: pairs of an image [3,H,W], normalised, and labels of that size or another.
        inference: None: whole images, one scale.
        workers: processes that load data.
        amp_dtype: autocast to this type.
        track: goes through the batches, for a progress bar.
        ranks: each takes some of the images, and has the matrix of all in the end. Where reading
            draws noise, image after image, each takes all.
    """
    device = next(model.parameters()).device
    if model.memory is not None and model.memory.gumbel == "always":
        ranks = None
    count = len(dataset)  # type: ignore[arg-type]
    loader = DataLoader(
        dataset,
        sampler=None if ranks is None else range(ranks.rank, count, ranks.size),
        num_workers=workers,
        generator=torch.Generator(),
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_the_parent,
    )
    total = torch.zeros((model.num_classes,) * 2, dtype=torch.int64, device=device)

    def forward(images: Tensor) -> tuple[Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(images, amp_dtype):
            return (model(images).logits,)

    with evaluating(model), folded(model):
        for images, labels in track(loader):
            images, labels = (each.to(device, non_blocking=True) for each in (images, labels))
            size = (labels.shape[1], labels.shape[2])
            (prediction,) = infer(forward, images, inference or Inference(), size)
            total += prediction.confusion(labels)
    return total if ranks is None else ranks.total(total)
