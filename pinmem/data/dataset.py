"""A split of a segmentation dataset, read from the folders it is handed out in."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pinmem.data.decode import read_image, read_label
from pinmem.data.encodings import Encoding
from pinmem.data.errors import DataError
from pinmem.data.layouts import LAYOUTS

__all__ = ["SegmentationDataset", "Transform", "build_dataset"]

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(image [3, H, W], target [H, W]) -> the same two, transformed."""

_SPLIT_ALIASES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images with their trainIds.

    ``dataset[i]`` is ``(image, target)``: ``tv_tensors.Image`` uint8 [3, H, W] (RGB) and
    ``tv_tensors.Mask`` uint8 [H, W] holding 0..18 or 255, put through ``transform`` if there is
    one. Nothing but file names is kept in memory.

    Args:
        name: what messages and ``repr`` call it.
        pairs: (image, label) paths.
        encoding: raw label samples -> trainIds, see ``pinmem.data.encodings``.
        transform: applied to every (image, target).
        size: read at this size: (height, width), or a height that keeps the aspect; the image is
            resized bilinearly with antialiasing, the target to the nearest pixel.

    Raises:
        DataError: at access: a file is missing or damaged, a label has another size than its
            image, or holds values outside its encoding. One line that names the file.
    """

    def __init__(
        self,
        name: str,
        pairs: Sequence[tuple[Path, Path]],
        encoding: Encoding,
        transform: Transform | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> None:
        self.name = name
        self.transform = transform
        self._pairs = list(pairs)
        self._encoding = encoding
        self._size = size

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} images)"

    def paths(self, index: int) -> tuple[Path, Path]:
        """The image file and the label file of an item."""
        return self._pairs[index]

    def with_transform(self, transform: Transform | None) -> SegmentationDataset:
        """The same files behind another transform (a second view of one domain)."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def read_target(self, index: int) -> tv_tensors.Mask:
        """The trainIds of an item alone, uint8 [H, W], as stored: neither resized nor transformed.

        Raises:
            DataError: as at access.
        """
        path = self._pairs[index][1]
        raw = read_label(path)
        try:
            return tv_tensors.Mask(torch.from_numpy(self._encoding(raw)))
        except ValueError as error:
            raise DataError(f"{path}: label has {error}") from error

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image_path, label_path = self._pairs[index]
        image: Tensor = tv_tensors.Image(read_image(image_path))
        target: Tensor = self.read_target(index)
        if image.shape[1:] != target.shape:
            raise DataError(
                f"image and label differ in size: {image_path} is {_extent(image)}, "
                f"{label_path} is {_extent(target)} (width x height)"
            )
        if self._size is not None:
            image, target = _resize(image, target, self._size)
        if self.transform is not None:
            image, target = self.transform(image, target)
        return image, target


def _extent(tensor: Tensor) -> str:
    return f"{tensor.shape[-1]}x{tensor.shape[-2]}"


def _resize(image: Tensor, target: Tensor, size: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = target.shape
    shape = [size, round(width * size / height)] if isinstance(size, int) else list(size)
    return (
        F.resize(image, shape, InterpolationMode.BILINEAR, antialias=True),
        F.resize(target, shape, InterpolationMode.NEAREST_EXACT),
    )


def build_dataset(
    name: str,
    root: str | Path,
    split: str,
    transform: Transform | None = None,
    size: int | tuple[int, int] | None = None,
) -> SegmentationDataset:
    """The dataset ``name`` as it lies under ``root``; every layout it is handed out in is found.

    Args:
        name: ``gtav``, ``synthia``, ``cityscapes``, ``idd``, ``bdd100k`` or ``mapillary``.
        root: the folder that holds ``images/``, ``RGB/``, ``leftImg8bit/`` and so on.
        split: ``train``, ``val`` or ``test``; ``valid`` and ``validation`` are ``val``.
        transform, size: see ``SegmentationDataset``.

    Raises:
        ValueError: an unknown name; or no image is found, naming root, split and what was
            searched for.
    """
    layout = LAYOUTS.get(name)
    if layout is None:
        near = difflib.get_close_matches(name, LAYOUTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"name: expected one of {', '.join(LAYOUTS)}, got {name!r}{hint}")
    root = Path(root)
    split = _SPLIT_ALIASES.get(split, split)
    found = layout.find(root, split)
    if found is None:
        raise ValueError(
            f"no image of {name}, split {split!r}, under root {str(root)!r}: "
            f"looked for {' and '.join(layout.patterns(split))}"
        )
    folders, folder = found
    pairs = folders.pairs(root, split, folder)
    return SegmentationDataset(f"{name}/{split}", pairs, layout.encoding, transform, size)
