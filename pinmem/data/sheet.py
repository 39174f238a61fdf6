"""A contact sheet of a dataset: pictures, labels over them and labels alone, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pinmem.data.classes import Classes, colorize
from pinmem.data.dataset import SegmentationDataset
from pinmem.data.errors import DataError
from pinmem.writing import write_beside

__all__ = ["write_sheet"]

_WIDTH = 360  # pixels of a picture
_LINE = 14  # pixels of a line of text
_GAP = 6


def write_sheet(path: Path, datasets: Sequence[SegmentationDataset], rows: int = 5) -> None:
    """Write a PNG: for each dataset some pairs, evenly spread, and under all the classes' colours.

    A pair that cannot be read is a line that says so.
    """
    strips = [
        _strip(dataset, index)
        for dataset in datasets
        for index in dict.fromkeys(i * len(dataset) // rows for i in range(rows))
    ]
    strips.append(_legend(datasets[0].classes))
    width = 3 * (_WIDTH + _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(s.height + _GAP for s in strips) + _GAP), "white")
    top = _GAP
    for strip in strips:
        sheet.paste(strip, (_GAP, top))
        top += strip.height + _GAP
    write_beside(path, lambda file: sheet.save(file, format="PNG", optimize=True))


def _strip(dataset: SegmentationDataset, index: int) -> Image.Image:
    name = f"{dataset.name} {dataset.paths(index)[0].name}"
    try:
        pixels, target = dataset.read_pair(index)
    except DataError as error:
        return _text([name, str(error)])
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    size = (_WIDTH, max(1, round(image.height * _WIDTH / image.width)))
    image = image.resize(size, Image.Resampling.BOX)
    labels = Image.fromarray(target.numpy()).resize(size, Image.Resampling.NEAREST)
    colors = Image.fromarray(colorize(np.asarray(labels), dataset.classes))
    strip = Image.new("RGB", (3 * (_WIDTH + _GAP), size[1] + _LINE), "white")
    strip.paste(_text([name]), (0, 0))
    for column, part in enumerate((image, Image.blend(image, colors, 0.5), colors)):
        strip.paste(part, (column * (_WIDTH + _GAP), _LINE))
    return strip


def _text(lines: list[str]) -> Image.Image:
    picture = Image.new("RGB", (3 * (_WIDTH + _GAP), _LINE * len(lines)), "white")
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        # The built-in font has no letters beyond Latin-1.
        draw.text((0, number * _LINE), line.encode("latin-1", "replace").decode("latin-1"), "black")
    return picture


def _legend(classes: Classes) -> Image.Image:
    entries = [*zip(classes.names, classes.colors, strict=True), ("ignored", (0, 0, 0))]
    across = 6
    cell = 3 * (_WIDTH + _GAP) // across
    legend = Image.new("RGB", (across * cell, _LINE * -(-len(entries) // across)), "white")
    for number, (name, color) in enumerate(entries):
        left, top = number % across * cell, number // across * _LINE
        legend.paste(color, (left, top, left + 10, top + 10))
        legend.paste(_text([name]).crop((0, 0, cell - 14, _LINE)), (left + 14, top))
    return legend
