"""The classes of a dataset: their names and colours, in the order of their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pinmem.data.cityscapes_classes import CLASS_NAMES, PALETTE

__all__ = ["CITYSCAPES", "MOST_CLASSES", "Classes", "colorize"]

MOST_CLASSES = 254
"""A label is 8 bits: 255 is ignored, 254 is what encodings mark unknown values with."""


@dataclass(frozen=True)
class Classes:
    """Names and RGB colours (0..255) of classes 0..K-1."""

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.names)

    def state(self) -> dict[str, Any]:
        """Plain lists, for a checkpoint."""
        return {"names": list(self.names), "colors": [list(color) for color in self.colors]}

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> Classes:
        """The classes that ``state()`` described."""
        colors = ((int(r), int(g), int(b)) for r, g, b in state["colors"])
        return Classes(tuple(map(str, state["names"])), tuple(colors))

    @staticmethod
    def numbered(count: int) -> Classes:
        """Classes nobody has named: Cityscapes' if there are 19, else numbers in spread colours."""
        if count == len(CITYSCAPES):
            return CITYSCAPES
        return Classes(
            tuple(str(k) for k in range(count)), tuple(spread_color(k) for k in range(count))
        )


CITYSCAPES = Classes(CLASS_NAMES, tuple((int(r), int(g), int(b)) for r, g, b in PALETTE))


def spread_color(number: int) -> tuple[int, int, int]:
    """A colour of its own for each of the first 256 numbers, neighbours far apart."""
    channels = [0, 0, 0]
    for bit in range(8):
        channels[bit % 3] |= ((number + 1) >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


def colorize(target: np.ndarray, classes: Classes = CITYSCAPES) -> np.ndarray:
    """Colours of a map of classes: uint8 [..., H, W] -> uint8 [..., H, W, 3]; the rest black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(classes)] = classes.colors
    return table[target]
