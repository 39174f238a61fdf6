"""Street scenes as files, in the folders and label encodings of the real datasets."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from examples.streets.png16 import encode_png16
from examples.streets.texture import Array
from pinmem.data.cityscapes_classes import IGNORE_INDEX, LABELS, TRAIN_ID_TO_LABEL_ID
from pinmem.data.parse import known_datasets

__all__ = ["WRITERS", "Writer", "encode_image"]

_COMPRESSION = 3  # of deflate: a third of the default's time, five percent more bytes


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_COMPRESSION)
    return buffer.getvalue()


def encode_image(picture: Array) -> bytes:
    """An 8-bit RGB PNG of uint8 [H, W, 3]."""
    return _encode(Image.fromarray(picture))


def _inverse(codes: dict[int, int]) -> Array:
    """uint8 [256]: trainId -> code; what is ignored becomes 0, "unlabeled" or "void" in all."""
    table = np.zeros(256, dtype=np.uint8)
    for train_id, code in codes.items():
        table[train_id] = code
    return table


_LABEL_IDS = _inverse(TRAIN_ID_TO_LABEL_ID)
_SYNTHIA = _inverse(
    {
        train_id: code
        for code, train_id in known_datasets()["synthia"].layouts[0].encoding.values.items()
        if train_id != IGNORE_INDEX
    }
)


def _gtav_label(target: Array) -> bytes:
    image = Image.fromarray(_LABEL_IDS[target])
    indexed = Image.frombytes("P", image.size, image.tobytes())
    indexed.putpalette([channel for row in LABELS for channel in row.color])
    return _encode(indexed)


def _synthia_label(target: Array) -> bytes:
    samples = np.zeros((*target.shape, 3), dtype=np.uint16)
    samples[:, :, 0] = _SYNTHIA[target]
    return encode_png16(samples, _COMPRESSION)


def _train_ids(target: Array) -> bytes:
    return _encode(Image.fromarray(target))


def _cityscapes_label(target: Array) -> bytes:
    return _encode(Image.fromarray(_LABEL_IDS[target]))


@dataclass(frozen=True)
class Writer:
    """Where the files of one dataset go (format strings of split and index), and their labels."""

    image: str
    label: str
    encode_label: Callable[[Array], bytes]
    splits: dict[str, str]
    first: int = 0

    def paths(self, root: Path, split: str, index: int) -> tuple[Path, Path]:
        """The image file and the label file of a scene; ``split`` is ``train`` or ``val``."""
        names = {"split": self.splits[split], "number": self.first + index}
        return root / self.image.format(**names), root / self.label.format(**names)

    def write(self, root: Path, split: str, index: int, picture: Array, target: Array) -> None:
        """Write both files; either is there whole or not at all."""
        image_path, label_path = self.paths(root, split, index)
        _replace(label_path, self.encode_label(target))
        _replace(image_path, encode_image(picture))


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


_SPLITS = {"train": "train", "val": "val"}

WRITERS: dict[str, Writer] = {
    "gtav": Writer(
        "images/{split}/streets/{number:05d}.png",
        "labels/{split}/streets/{number:05d}.png",
        _gtav_label,
        {"train": "train", "val": "valid"},
        first=1,
    ),
    "synthia": Writer(
        "RGB/{split}/{number:07d}.png",
        "GT/LABELS/{split}/{number:07d}.png",
        _synthia_label,
        _SPLITS,
    ),
    "cityscapes": Writer(
        "leftImg8bit/{split}/streets/streets_{number:06d}_000000_leftImg8bit.png",
        "gtFine/{split}/streets/streets_{number:06d}_000000_gtFine_labelIds.png",
        _cityscapes_label,
        _SPLITS,
    ),
    "acdc": Writer(
        "rgb_anon/night/{split}/streets/streets_frame_{number:06d}_rgb_anon.png",
        "gt/night/{split}/streets/streets_frame_{number:06d}_gt_labelTrainIds.png",
        _train_ids,
        _SPLITS,
    ),
}
"""How each domain's scenes are written, by the domain's name."""
