"""A split of a segmentation dataset, read from the folders that people have it in."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pinmem.data.cache import PairCache
from pinmem.data.cityscapes_classes import IGNORE_INDEX
from pinmem.data.classes import CITYSCAPES, Classes
from pinmem.data.decode import Polygons, Raw, read_image, read_label
from pinmem.data.errors import DataError, NoImages
from pinmem.data.files import find_files, searched
from pinmem.data.parse import open_description

__all__ = ["SPLIT_ALIASES", "SegmentationDataset", "Transform", "build_dataset", "dataset_name"]

Transform = Callable[..., tuple[Tensor, Tensor]]
"""(image [3, H, W], target [H, W]) -> the same two, transformed; one that takes part in
class-uniform sampling takes ``centre=(y, x)`` too."""

SPLIT_ALIASES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}

_FIRST_LABELS = 16  # checked in every process: those of a first batch


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images with their classes.

    ``dataset[i]`` is ``(image, target)``: ``tv_tensors.Image`` uint8 [3, H, W] (RGB) and
    ``tv_tensors.Mask`` uint8 [H, W] holding 0..K-1 or 255, put through ``transform`` if there is
    one. Nothing but file names is kept in memory.

    Args:
        name: what messages and ``repr`` call it.
        pairs: (image, label) paths.
        encoding: what a label file holds -> classes, see ``pinmem.data.encodings``.
        transform: applied to every (image, target).
        size: read at this size: (height, width), or a height that keeps the aspect; the image is
            resized bilinearly with antialiasing, the target to the nearest pixel.
        classes: names and colours of the classes.
        cache: folder in which decoded pairs are kept, as they are before ``size`` and
            ``transform``: 4 bytes per pixel.

    Raises:
        DataError: at access: a file is missing or damaged, a label has another size than its
            image, or holds values outside its encoding. One line that names the file.
    """

    def __init__(
        self,
        name: str,
        pairs: Sequence[tuple[Path, Path]],
        encoding: Callable[[Raw | Polygons], np.ndarray],
        transform: Transform | None = None,
        size: int | tuple[int, int] | None = None,
        classes: Classes = CITYSCAPES,
        cache: str | Path | None = None,
    ) -> None:
        self.name = name
        self.transform = transform
        self.classes = classes
        self._pairs = list(pairs)
        self._encoding = encoding
        self._size = size
        self._cache = None if cache is None else PairCache(Path(cache), self.encoding_key)
        self._unchecked = _FIRST_LABELS

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} images)"

    @property
    def encoding_key(self) -> str:
        """A text that changes when labels are read another way."""
        return str(getattr(self._encoding, "key", repr(self._encoding)))

    def paths(self, index: int) -> tuple[Path, Path]:
        """The image file and the label file of an item."""
        return self._pairs[index]

    def with_transform(self, transform: Transform | None) -> SegmentationDataset:
        """The same files behind another transform (a second view of one domain)."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def read_target(self, index: int) -> tv_tensors.Mask:
        """The classes of an item alone, uint8 [H, W], as stored: neither resized nor transformed.

        Raises:
            DataError: as at access.
        """
        return self.decode_target(index, read_label(self._pairs[index][1]))

    def decode_target(self, index: int, raw: Raw | Polygons) -> tv_tensors.Mask:
        """The classes that the content of an item's label file means; errors as at access."""
        try:
            return tv_tensors.Mask(torch.from_numpy(self._encoding(raw)))
        except ValueError as error:
            raise DataError(f"{self._pairs[index][1]}: label has {error}") from error

    def read_pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and classes as stored: neither resized nor transformed.

        Raises:
            DataError: as at access.
        """
        image_path, label_path = self._pairs[index]
        image: Tensor = tv_tensors.Image(read_image(image_path))
        target: Tensor = self.read_target(index)
        if image.shape[1:] != target.shape:
            raise DataError(
                f"image and label differ in size: {image_path} is {_extent(image)}, "
                f"{label_path} is {_extent(target)} (width x height)"
            )
        return image, target

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.read(index)

    def read(self, index: int, centre: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """An item; the transform's crop covers the pixel ``centre`` = (y, x), if one is given."""
        if self._cache is None:
            image, target = self.read_pair(index)
        else:
            pixels, labels = self._cache.pair(*self._pairs[index], lambda: self.read_pair(index))
            image, target = tv_tensors.Image(pixels), tv_tensors.Mask(labels)
        if self._unchecked:
            self._unchecked -= 1
            self._check(index, target)
        if self._size is not None:
            before = target.shape
            image, target = _resize(image, target, self._size)
            if centre is not None:
                ratios = [new / old for new, old in zip(target.shape, before, strict=True)]
                centre = (int(centre[0] * ratios[0]), int(centre[1] * ratios[1]))
        if self.transform is not None:
            image, target = (
                self.transform(image, target)
                if centre is None
                else self.transform(image, target, centre)
            )
        return image, target

    def _check(self, index: int, target: Tensor) -> None:
        """An encoding of the caller's own may give what the network has no class for."""
        classes = torch.bincount(target.flatten(), minlength=IGNORE_INDEX).nonzero().flatten()
        strange = classes[(classes >= len(self.classes)) & (classes != IGNORE_INDEX)]
        if len(strange):
            raise DataError(
                f"{self._pairs[index][1]}: label has class {int(strange[0])}, "
                f"expected 0..{len(self.classes) - 1} or {IGNORE_INDEX}"
            )


def _extent(tensor: Tensor) -> str:
    return f"{tensor.shape[-1]}x{tensor.shape[-2]}"


def _resize(image: Tensor, target: Tensor, size: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = target.shape
    shape = [size, max(1, round(width * size / height))] if isinstance(size, int) else list(size)
    return (
        F.resize(image, shape, InterpolationMode.BILINEAR, antialias=True),
        F.resize(target, shape, InterpolationMode.NEAREST_EXACT),
    )


def dataset_name(name: str) -> str:
    """A short name for ``gtav``, ``acdc:fog`` or ``some/where/my.yaml``."""
    head, colon, subset = name.rpartition(":")
    path = head if colon else name
    return (Path(path).stem if path.endswith((".yaml", ".yml")) else path) + (
        f":{subset}" if colon else ""
    )


def build_dataset(
    name: str,
    root: str | Path | None,
    split: str,
    transform: Transform | None = None,
    size: int | tuple[int, int] | None = None,
    cache: str | Path | None = None,
) -> SegmentationDataset:
    """The dataset ``name`` as it lies under ``root``; every layout of its description is found.

    Args:
        name: a known dataset (``gtav``, ``acdc``, one subset as ``acdc:fog``), or the path of a
            description of your own, ``my.yaml``.
        root: the folder that holds ``images/``, ``RGB/``, ``leftImg8bit/`` and so on; empty: the
            one its description names.
        split: ``train``, ``val`` or ``test``, or one of the description's own; ``valid`` and
            ``validation`` are ``val``.
        transform, size, cache: see ``SegmentationDataset``.

    Raises:
        ValueError: an unknown name.
        NoImages: naming root, split and what was searched for.
        DataError: labels or listed images are missing, naming the first.
    """
    description, subsets = open_description(name)
    split = SPLIT_ALIASES.get(split, split)
    if not root and description.root is None:
        raise ValueError(f"root: {name} names no folder of its own, expected {name}=folder")
    folder = Path(root) if root else description.root
    assert folder is not None
    found = find_files(description, folder, split, subsets)
    title = f"{dataset_name(name)}/{split}"
    if found is None:
        raise NoImages(
            f"no image of {name}, split {split!r}, under root {str(folder)!r}: "
            f"looked for {searched(description, split)}"
        )
    missing = [label for _, label in found.without_label]
    if missing and not found.pairs and description.missing_labels:
        raise DataError(
            f"{title}: no labels ({missing[0]} is missing, and {len(missing) - 1} more): "
            f"{description.missing_labels}"
        )
    listed = found.layout.list or found.layout.pairs
    lost = [*missing, *(found.without_image if listed else ())]
    if lost:
        shown = ", ".join(map(str, lost[:3]))
        of = len(found.pairs) + len(lost)
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise DataError(f"{title}: {len(lost)} of {of} pairs lack a file: {shown}{more}")
    for count, what in (
        (0 if listed else len(found.without_image), "labels without an image"),
        (found.left_pictures() if not (listed or found.layout.standard_split) else 0, "pictures"),
    ):
        if count:
            logging.getLogger(__name__).warning(
                f"{title}: {count} {what} skipped; python -m pinmem.data.check says which"
            )
    encoding = found.layout.encoding
    return SegmentationDataset(
        title, found.pairs, encoding, transform, size, description.classes, cache
    )
