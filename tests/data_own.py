"""A dataset of its own: five classes, raw values 10..50, from drawn street scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data_files import put, write
from tests.data_trees import scene

NAMES = ("flat", "built", "thing", "green", "sky")
COLORS = ((90, 90, 90), (200, 120, 40), (220, 20, 60), (40, 160, 40), (70, 130, 180))
_OF_TRAIN_ID = [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, *[2] * 8]
HEAD = "classes:\n" + "".join(
    f"  {name}: {list(color)}\n" for name, color in zip(NAMES, COLORS, strict=True)
)
TABLE = "encoding: {10: flat, 20: built, 30: thing, 40: green, 50: sky}\nignore: 0\n"
PATTERNS = "images: photos/{split}/*.jpg\nlabels: masks/{split}/*.png\n"


def five(number: int) -> np.ndarray:
    """Classes 0..4, or 255, uint8 [H, W]."""
    table = np.full(256, 255, dtype=np.uint8)
    table[:19] = _OF_TRAIN_ID
    return table[scene(number)[1]]


def raw(number: int) -> np.ndarray:
    """The same as the raw values 10..50, or 0."""
    classes = five(number)
    return np.where(classes == 255, 0, 10 * (classes + 1)).astype(np.uint8)


def own_tree(root: Path, train: int = 4, val: int = 2) -> Path:
    """Write it, with ``my.yaml`` in it; returns that file."""
    for number in range(train + val):
        split = "train" if number < train else "val"
        write(root / f"photos/{split}/shot {number}.jpg", scene(number)[0], quality=90)
        write(root / f"masks/{split}/shot {number}.png", raw(number))
    path = root / "my.yaml"
    path.write_text("root: .\n" + PATTERNS + HEAD + TABLE)
    return path


def colors_of(classes: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] in the classes' colours, ignored pixels white."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(COLORS)] = COLORS
    return table[classes]


def indexed(classes: np.ndarray) -> Image.Image:
    """A palette image of the classes' colours."""
    return Image.fromarray(colors_of(classes)).convert("P", palette=Image.Palette.ADAPTIVE)


# Ways to write labels: how a file is written, and what reads it.
WRITERS = {
    "trainIds": (lambda path, n: write(path, five(n)), "encoding: trainIds\n"),
    "trainIds, tiff": (lambda path, n: write(path, five(n)), "encoding: trainIds\n"),
    "colours": (
        lambda path, n: write(path, colors_of(five(n))),
        "encoding: colors\nignore: [[255, 255, 255]]\n",
    ),
    "other colours": (
        lambda path, n: write(path, 255 - colors_of(five(n))),
        "encoding:\n  colors:\n"
        + "".join(f"    {k}: {[255 - c for c in v]}\n" for k, v in zip(NAMES, COLORS, strict=True))
        + "    ignore: [[0, 0, 0]]\n",
    ),
    "palette": (
        lambda path, n: (put(path, b"") and indexed(five(n)).save(path)) or path,
        "encoding: colors\nignore: [[255, 255, 255]]\n",
    ),
    "16 bits": (
        lambda path, n: write(path, raw(n).astype(np.uint16) * 1000),
        "encoding: {10000: flat, 20000: built, 30000: thing, 40000: green, 50000: sky}\n"
        "ignore: 0\n",
    ),
}
