"""The contact sheet of the documentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from examples.streets.generate import scene_seed
from examples.streets.scene import render_street
from pinmem.data.classes import colorize

__all__ = ["contact_sheet"]

_GAP = 4  # pixels of white between pictures


def contact_sheet(
    path: Path, domains: tuple[str, ...], columns: int, size: tuple[int, int], seed: int
) -> None:
    """Write a PNG: a row per domain, a column per scene, each picture above its labels' colours.

    The scenes are the first ones ``generate`` writes for the train split with this seed and size.
    """
    width, height = size
    rows = []
    for domain in domains:
        scenes = [
            render_street(domain, scene_seed(seed, domain, "train", index), width, height)
            for index in range(columns)
        ]
        rows.append([np.concatenate([picture, colorize(target)]) for picture, target in scenes])
    sheet = np.full(
        (len(rows) * (2 * height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8
    )
    for down, row in enumerate(rows):
        for across, tile in enumerate(row):
            top, left = down * (2 * height + _GAP), across * (width + _GAP)
            sheet[top : top + 2 * height, left : left + width] = tile
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, format="PNG", optimize=True)
