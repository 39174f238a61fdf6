"""Pictures of a prediction: label files, class colours, overlays, activation maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pinmem.data import CITYSCAPES, Classes, colorize
from pinmem.data.cityscapes_classes import TRAIN_ID_TO_LABEL_ID
from pinmem.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from pinmem.writing import write_beside

__all__ = [
    "DRAWN",
    "INDEXED",
    "activation_sheet",
    "denormalize",
    "draw",
    "heat",
    "overlay",
    "write_picture",
    "write_png",
]  # fmt: skip

INDEXED = ("labels", "trainids", "labelids")
"""Kinds of results that hold numbers of classes."""
DRAWN = ("color", "overlay", "side_by_side", "activation")
"""Kinds of results that are to be looked at."""

_TILE = 320  # pixels across, of an activation map
_LINE = 16  # pixels of a line of text
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))


def overlay(
    image: Tensor, labels: Tensor, opacity: float = 0.5, classes: Classes = CITYSCAPES
) -> Tensor:
    """Class colours over an image; uint8 [3,H,W] and [H,W] to uint8 [3,H,W]."""
    colours = _colours(labels, classes)
    return (image.float() * (1 - opacity) + colours.float() * opacity).round().to(torch.uint8)


def draw(
    kind: str,
    image: Tensor,
    labels: Tensor,
    classes: Classes,
    activation: Callable[[int], Tensor] | None = None,
) -> Image.Image:
    """A result as a picture.

    Args:
        kind: one of ``INDEXED`` and ``DRAWN``.
        image: uint8 [3,H,W].
        labels: predicted classes, uint8 [H,W].
        classes: names and colours.
        activation: the attention on a class's slot, [H,W], by its number.

    Raises:
        ValueError: the kind needs what is not there.
    """
    if kind in INDEXED:
        return _indexed(kind, labels, classes)
    if kind == "activation":
        if activation is None:
            raise ValueError("save: got activation, expected none: this network has no memory")
        return activation_sheet(image, activation, classes)
    painted = _colours(labels, classes)
    if kind == "color":
        return _image(painted)
    over = overlay(image, labels, classes=classes)
    if kind == "overlay":
        return _image(over)
    return _image(torch.cat([image, over, painted], dim=2))


def activation_sheet(
    image: Tensor, activation: Callable[[int], Tensor], classes: Classes, columns: int = 4
) -> Image.Image:
    """The attention on each class's slot over the image, a tile per class, on one scale for all.

    Args:
        image: uint8 [3,H,W].
        activation: the attention on a class's slot, [H,W], by its number.
        classes: names.
        columns: tiles in a row.
    """
    height = max(1, round(_TILE * image.shape[1] / image.shape[2]))
    grey = np.asarray(_image(image).convert("L").resize((_TILE, height)).convert("RGB"))
    tiles = [
        np.asarray(Image.fromarray(activation(k).float().cpu().numpy()).resize((_TILE, height)))
        for k in range(len(classes))
    ]
    low, high = min(tile.min() for tile in tiles), max(tile.max() for tile in tiles)
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * _TILE, rows * (height + _LINE) + _LINE), "white")
    text = ImageDraw.Draw(sheet)
    text.text((4, 2), f"attention on each slot, from {low:.3f} (dark) to {high:.3f}", "black")
    for k, tile in enumerate(tiles):
        left, top = k % columns * _TILE, k // columns * (height + _LINE) + _LINE
        name = f"{classes.names[k]}: up to {tile.max():.3f}"
        # The built-in font has no letters beyond Latin-1.
        text.text((left + 4, top + 2), name.encode("latin-1", "replace").decode("latin-1"), "black")
        shown = heat((tile - low) / max(high - low, 1e-12)) * 0.7 + grey * 0.3
        sheet.paste(Image.fromarray(shown.round().astype(np.uint8)), (left, top + _LINE))
    return sheet


def heat(values: np.ndarray) -> np.ndarray:
    """Colours from dark to bright of values 0..1: float [...] -> float [...,3] of 0..255."""
    at = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, at, channel) for channel in zip(*_HEAT, strict=True)], -1)


def denormalize(image: Tensor) -> Tensor:
    """A normalised image [3,H,W] back to uint8."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((image.cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG, beside and renamed."""
    write_beside(path, lambda file: picture.save(file, format="PNG"))


def write_png(path: Path, picture: Tensor) -> None:
    """Write uint8 [3,H,W] or [1,H,W] as a PNG, beside and renamed."""
    write_picture(path, _image(picture))


def _image(picture: Tensor) -> Image.Image:
    pixels = picture[0] if picture.shape[0] == 1 else picture.permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().numpy())


def _colours(labels: Tensor, classes: Classes) -> Tensor:
    painted = np.ascontiguousarray(colorize(labels.numpy(), classes))
    return torch.from_numpy(painted).permute(2, 0, 1)


def _indexed(kind: str, labels: Tensor, classes: Classes) -> Image.Image:
    numbers = labels.numpy()
    if kind == "labelids":
        if classes.names != CITYSCAPES.names:
            raise ValueError("save: got labelids, expected none: the classes are not Cityscapes'")
        table = np.zeros(256, dtype=np.uint8)
        for train_id, label_id in TRAIN_ID_TO_LABEL_ID.items():
            table[train_id] = label_id
        numbers = table[numbers]
    picture = Image.fromarray(np.ascontiguousarray(numbers))
    if kind == "labels":  # the same numbers, in colour in any viewer
        picture.putpalette(colorize(np.arange(256, dtype=np.uint8), classes).tobytes())
    return picture
