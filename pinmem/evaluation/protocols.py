"""Named protocols of the field: at which size a dataset is measured, and over which classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V2

from pinmem.config import named_folder
from pinmem.data import (
    IGNORE_INDEX,
    Classes,
    SegmentationDataset,
    build_dataset,
    dataset_name,
    eval_transform,
)
from pinmem.data.dataset import Transform

__all__ = ["Protocol", "check_classes", "choose_classes", "open_dataset", "reading"]

Protocol = Literal["full", "half", "robustnet"]

_ROBUSTNET_SIZE = 1536
_HALVED = ("cityscapes", "mapillary")
_NOT_IN_SYNTHIA = ("terrain", "truck", "train")
# SYNTHIA's classes among Cityscapes' 19: mIoU of 16, and mIoU* without the three hardest.
CLASS_LISTS = {
    "synthia16": _NOT_IN_SYNTHIA,
    "synthia13": (*_NOT_IN_SYNTHIA, "wall", "fence", "pole"),
}


def _halve(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The image at half its height and width, normalised; labels keep theirs."""
    half = [max(1, round(length / 2)) for length in image.shape[-2:]]
    image = V2.resize(image, half, antialias=True)
    return eval_transform()(image, target)[0], target


def _centre_square(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Resized to height 1536, the centre 1536x1536, as RobustNet's code does (CVPR 2021).

    The image is resized bicubically, the target to the nearest pixel. Where there is less width,
    the rest is black and ignored; there, that code moves the image to the right and out of the
    square by half of what is missing, and labels the rest road.
    """
    size = _ROBUSTNET_SIZE
    height, width = target.shape
    shape = [size, max(1, int(width / height * size))]
    image = V2.resize(image, shape, InterpolationMode.BICUBIC, antialias=True)
    target = V2.resize(target[None], shape, InterpolationMode.NEAREST_EXACT)[0]
    missing = max(size - shape[1], 0)
    sides = [missing // 2, missing - missing // 2]
    image = F.pad(image.as_subclass(Tensor), sides)
    target = F.pad(target.as_subclass(Tensor), sides, value=IGNORE_INDEX)
    left = round((target.shape[1] - size) / 2)
    columns = slice(left, left + size)
    return eval_transform()(image[:, :, columns], target[:, columns])


class Reading(NamedTuple):
    """How a dataset's images reach the network: in words, the transform, and the height or none."""

    words: str
    transform: Transform
    size: int | None = None


def reading(protocol: Protocol, name: str, size: int | None = None) -> Reading:
    """How a protocol reads a dataset.

    Args:
        protocol: ``full``: every dataset at its own size, or ``size``; ``half``: images of
            Cityscapes and Mapillary at half size, logits upsampled to the labels; ``robustnet``:
            Mapillary at height 1536, its centre 1536x1536. Others at their own size.
        name: of the dataset.
        size: height to read images and labels at.

    Raises:
        ValueError: the protocol has a size of its own.
    """
    if size is not None and protocol != "full":
        raise ValueError(f"size: got {size}, expected none with protocol {protocol}")
    base = dataset_name(name).partition(":")[0]
    if protocol == "robustnet" and base == "mapillary":
        square = _ROBUSTNET_SIZE
        return Reading(f"height {square}, centre {square}x{square}", _centre_square)
    if protocol == "half" and base in _HALVED:
        return Reading("half size, labels at own size", _halve)
    return Reading(f"height {size}" if size else "own size", eval_transform(), size)


def open_dataset(
    option: str,
    text: str,
    split: str,
    size: int | None = None,
    count: int = 0,
    classes: Classes | None = None,
    protocol: Protocol = "full",
) -> Dataset[tuple[Tensor, Tensor]]:
    """A dataset for evaluation, at most ``count`` images spread evenly.

    Args:
        option: what messages call it.
        text: ``name=folder`` or a description, ``my.yaml``.
        split: of the dataset.
        size: height the images are read at.
        count: 0: all.
        classes: that it has to have.
        protocol: see ``reading``.

    Raises:
        ValueError: as ``build_dataset``, or it has other classes.
    """
    name, folder = named_folder(option, text)
    how = reading(protocol, name, size)
    dataset = build_dataset(name, folder, split, how.transform, size=how.size)
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


def choose_classes(names: Sequence[str], classes: Classes) -> list[int] | None:
    """The numbers of the classes that count, in their order; None: all.

    Args:
        names: of classes, or one of ``synthia16`` and ``synthia13``.
        classes: of the network.

    Raises:
        ValueError: a name is not one of the classes.
    """
    if not names:
        return None
    wanted = list(names)
    if len(names) == 1 and names[0] in CLASS_LISTS:
        excluded = CLASS_LISTS[names[0]]
        if strange := [name for name in excluded if name not in classes.names]:
            raise ValueError(
                f"classes: got {names[0]}, expected a network with Cityscapes' classes; "
                f"this one has no {strange[0]}"
            )
        wanted = [name for name in classes.names if name not in excluded]
    for name in wanted:
        if name not in classes.names:
            raise ValueError(
                f"classes: got {name!r}, expected {', '.join(CLASS_LISTS)} "
                f"or some of {', '.join(classes.names)}"
            )
    return sorted({classes.names.index(name) for name in wanted})
