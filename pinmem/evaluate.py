"""Measure a trained network: ``python -m pinmem.evaluate --checkpoint FILE --dataset name=folder``.

One confusion matrix over the whole set, from logits that are never upsampled in memory.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from pinmem import ops
from pinmem.checkpoint import load_trained, open_trained
from pinmem.config import named_folder
from pinmem.data import Classes, SegmentationDataset, build_dataset, eval_transform
from pinmem.models import Segmenter
from pinmem.passes import autocast, evaluating
from pinmem.program import parse, run
from pinmem.stop import leave_signals_to_the_parent

__all__ = [
    "Score",
    "check_classes",
    "confusion_of",
    "load_trained",
    "open_dataset",
    "pick_device",
    "score",
    "table",
]


class Score(NamedTuple):
    """Per-class intersection over union [K] (NaN where a class is absent) and their mean."""

    iou: Tensor
    miou: float


def score(confusion: Tensor) -> Score:
    """IoU from a confusion matrix [K,K]; classes in neither truth nor prediction do not count."""
    confusion = confusion.double()
    hits = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hits
    iou = torch.where(union > 0, hits / union.clamp_min(1), torch.nan)
    return Score(iou, float(iou.nanmean().nan_to_num()))


@torch.no_grad()
def confusion_of(
    model: Segmenter,
    dataset: Dataset[tuple[Tensor, Tensor]],
    *,
    workers: int = 0,
    amp_dtype: torch.dtype | None = None,
) -> Tensor:
    """The confusion matrix [K,K] of a network over a dataset: whole images, one scale.

    Args:
        model: on any device; its mode is kept.
        dataset: pairs of an image [3,H,W], normalised, and labels [H,W].
        workers: processes that load data.
        amp_dtype: autocast to this type.
    """
    device = next(model.parameters()).device
    loader = DataLoader(
        dataset,
        num_workers=workers,
        generator=torch.Generator(),
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_the_parent,
    )
    total = torch.zeros((model.num_classes,) * 2, dtype=torch.int64, device=device)
    with evaluating(model):
        for images, labels in loader:
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            with autocast(images, amp_dtype):
                logits = model(images).logits
            total += ops.upsampled_confusion(logits, labels.to(device, non_blocking=True))
    return total


def open_dataset(
    option: str,
    text: str,
    split: str,
    size: int | None = None,
    count: int = 0,
    classes: Classes | None = None,
) -> Dataset[tuple[Tensor, Tensor]]:
    """A dataset for evaluation, at most ``count`` images spread evenly.

    Args:
        option: what messages call it.
        text: ``name=folder`` or a description, ``my.yaml``.
        split: of the dataset.
        size: height the images are read at.
        count: 0: all.
        classes: that it has to have.

    Raises:
        ValueError: as ``build_dataset``, or it has other classes.
    """
    name, folder = named_folder(option, text)
    dataset: SegmentationDataset = build_dataset(name, folder, split, eval_transform(), size=size)
    if classes is not None:
        check_classes(dataset, classes)
    if not 0 < count < len(dataset):
        return dataset
    return Subset(dataset, [i * len(dataset) // count for i in range(count)])


def check_classes(dataset: SegmentationDataset, classes: Classes) -> None:
    """Raise ``ValueError`` unless a dataset has these classes, in this order."""
    if dataset.classes.names != classes.names:
        raise ValueError(
            f"{dataset.name}: has the classes {', '.join(dataset.classes.names)}, "
            f"expected {', '.join(classes.names)}"
        )


def table(result: Score, classes: Classes | None = None) -> str:
    """Per-class IoU in percent, and the mean, as lines of text."""
    named = classes or Classes.numbered(len(result.iou))
    # A network may have more classes than are named.
    names = [*named.names, *map(str, range(len(named), len(result.iou)))]
    width = max(14, *map(len, names))
    rows = [
        f"{name:>{width}} {100 * value:6.2f}"
        for name, value in zip(names, result.iou.tolist(), strict=True)
    ]
    return "\n".join([*rows, f"{'mIoU':>{width}} {100 * result.miou:6.2f}"])


@dataclass
class EvaluateConfig:
    """Measure a trained network on one dataset.

    Args:
        checkpoint: written by ``python -m pinmem.train`` or ``pinmem.convert``, or a published one.
        dataset: ``name=folder``, or a description, ``my.yaml``.
        split: of the dataset.
        size: height the images are read at; absent: their own.
        images: at most so many, evenly spread; 0: all.
        compat: Gumbel noise while reading, as in the published evaluation.
        amp: autocast to this type.
        workers: processes that load data.
        model: name of the network in a published checkpoint, which does not say.
        output_stride: likewise; the published one if absent.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    checkpoint: str
    dataset: str
    split: str = "val"
    size: int | None = None
    images: int = 0
    compat: bool = False
    amp: Literal["none", "bfloat16"] = "none"
    workers: int = 2
    model: str | None = None
    output_stride: int | None = None
    device: str = "auto"


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: got {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {name!r}, but no CUDA device is available")
    return device


def main() -> None:
    """Run the program."""
    config = parse(EvaluateConfig, program="python -m pinmem.evaluate")
    model, classes = open_trained(
        config.checkpoint, pick_device(config.device), config.model, config.output_stride
    )
    dataset = open_dataset(
        "dataset", config.dataset, config.split, config.size, config.images, classes
    )
    amp_dtype = None if config.amp == "none" else torch.bfloat16
    if config.compat and model.memory is not None:
        model.memory.gumbel = "always"
    confusion = confusion_of(model, dataset, workers=config.workers, amp_dtype=amp_dtype)
    if not confusion.any():
        # Dummies, such as the labels of a test split: a score of them would be of nothing.
        where = f"{config.dataset}: split {config.split}"
        print(f"error: {where}: no labelled pixel", file=sys.stderr)
        raise SystemExit(1)
    print(table(score(confusion), classes))
    size = f"height {config.size}" if config.size else "own size"
    print(f"protocol: whole images at {size}, one scale, {len(dataset)} images")  # type: ignore[arg-type]


if __name__ == "__main__":
    run(main)
