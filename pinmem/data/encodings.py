"""Label encodings: what the samples of a label file mean, as classes 0..K-1 or ``IGNORE_INDEX``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from pinmem.data.cityscapes_classes import IGNORE_INDEX
from pinmem.data.classes import MOST_CLASSES
from pinmem.data.decode import Polygons, Raw

__all__ = ["MOST_RAW", "Color", "Encoding"]

Color = tuple[int, int, int]

_UNKNOWN = 254
MOST_RAW = 65535


class Encoding:
    """From a label file's samples, palette, colours or polygons to classes, uint8 [H, W].

    Grey samples are looked up by value, colours by colour. A palette is read by index as long as
    the colours of the indices agree with it, or are none of this encoding's; where an index means
    one class and its colour another (some program ordered the palette anew), by colour.

    Args:
        values: raw value (0..65535) -> class.
        colors: RGB -> every class that is drawn in it; where there are several, the lowest is read,
            so a class comes before what is ignored.
        names: label of a polygon -> class.
        channel: of a colour file, the one that holds the value.

    ``key`` is a text that two encodings share if they mean the same.
    """

    def __init__(
        self,
        values: Mapping[int, int],
        colors: Mapping[Color, Iterable[int]] | None = None,
        names: Mapping[str, int] | None = None,
        channel: int | None = None,
    ) -> None:
        table = np.full(MOST_RAW + 1, _UNKNOWN, dtype=np.uint8)
        table[list(values)] = list(values.values())
        self.values = dict(values)
        self.colors = {color: frozenset(classes) for color, classes in (colors or {}).items()}
        self.names = dict(names or {})
        self.channel = channel
        self.key = repr((sorted(values.items()), sorted(self.names.items()), channel)) + repr(
            sorted((color, sorted(classes)) for color, classes in self.colors.items())
        )
        self._table = table

    def __call__(self, raw: Raw | Polygons) -> np.ndarray:
        """Classes uint8 [H, W].

        Raises:
            ValueError: a value, colour or name that the encoding lacks.
        """
        if isinstance(raw, Polygons):
            return self._draw(raw)
        samples = raw.samples
        if samples.ndim == 3 and self.channel is not None:
            if self.channel >= samples.shape[2]:
                raise ValueError(f"{samples.shape[2]} channels, expected a channel {self.channel}")
            samples = samples[:, :, self.channel]
        elif samples.ndim == 3 and samples.shape[2] == 2:
            samples = samples[:, :, 0]  # grey with alpha
        if samples.ndim == 3:
            return self._by_color(samples)
        if raw.palette is not None and self.colors:
            return self._by_palette(samples, raw.palette)
        return _lookup(samples, self._table)

    def _by_palette(self, samples: np.ndarray, palette: np.ndarray) -> np.ndarray:
        by_index = self._table[:256]
        if (palette == np.arange(len(palette))[:, None]).all():
            return _lookup(samples, by_index)  # a grey per index, not colours
        by_color = np.full(256, _UNKNOWN, dtype=np.uint8)
        agreed = by_index.copy()
        for index, (red, green, blue) in enumerate(palette.tolist()):
            classes = self.colors.get((red, green, blue))
            if classes is not None:
                by_color[index] = min(classes)
                if by_index[index] not in classes:
                    agreed[index] = _UNKNOWN
        out = _translate(samples, agreed)
        if not (out == _UNKNOWN).any():
            return out
        # A program that orders a palette anew keeps a colour once; a palette of one colour is none.
        used = np.unique(samples)
        known = by_color[used] != _UNKNOWN
        if known.all() and (not self.values or len(np.unique(palette[used], axis=0)) == len(used)):
            return _translate(samples, by_color)
        raise ValueError(
            f"values outside the encoding: {_some(used[agreed[used] == _UNKNOWN])}, "
            "by index or by the colours of its palette"
        )

    def _by_color(self, samples: np.ndarray) -> np.ndarray:
        if not self.colors:
            raise ValueError(f"expected one channel, got shape {list(samples.shape)}")
        if samples.dtype != np.uint8 or samples.shape[2] not in (3, 4):
            raise ValueError(
                f"expected 8-bit colour, got {samples.dtype} of shape {list(samples.shape)}"
            )
        key = samples[:, :, 0].astype(np.int32)
        key = key << 16 | samples[:, :, 1].astype(np.int32) << 8 | samples[:, :, 2]
        out = _color_table(tuple((color, min(of)) for color, of in self.colors.items()))[key]
        unknown = out == _UNKNOWN
        if unknown.any():
            raise ValueError(f"colours outside the encoding: {_some(samples[unknown])}")
        return out

    def _draw(self, polygons: Polygons) -> np.ndarray:
        """Polygons in their order; a group of things ("cargroup") is that thing."""
        canvas = Image.new("L", (polygons.width, polygons.height), IGNORE_INDEX)
        draw = ImageDraw.Draw(canvas)
        for name, points in polygons.objects:
            known = name if name in self.names else name.removesuffix("group")
            if known not in self.names:
                raise ValueError(f"polygons outside the encoding: {name!r}")
            draw.polygon(points, fill=self.names[known])
        return np.array(canvas)


def _translate(samples: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look up uint8 samples in uint8 [256]."""
    # bytes.translate is the fastest 8-bit lookup there is here: 1 ms for two million pixels.
    moved = samples.tobytes().translate(table.tobytes())
    return np.frombuffer(bytearray(moved), np.uint8).reshape(samples.shape)


def _lookup(samples: np.ndarray, table: np.ndarray) -> np.ndarray:
    if samples.dtype == np.uint8:
        out = _translate(samples, table[:256])
    else:
        wide = samples.astype(np.int64)
        outside = (wide < 0) | (wide >= len(table))
        if outside.any():
            raise ValueError(f"values outside the encoding: {_some(samples[outside])}")
        out = table[wide]
    unknown = out == _UNKNOWN
    if unknown.any():
        raise ValueError(f"values outside the encoding: {_some(samples[unknown])}")
    return out


def _some(values: np.ndarray) -> str:
    distinct = np.unique(values, axis=0).tolist()
    shown = ", ".join(str(value) for value in distinct[:5])
    return (shown + (", ..." if len(distinct) > 5 else "")) or "none"


@cache
def _color_table(colors: tuple[tuple[Color, int], ...]) -> np.ndarray:
    """uint8 [2^24]: colour as one number -> class; 16 MiB, made on the first colour label."""
    table = np.full(1 << 24, _UNKNOWN, dtype=np.uint8)
    for (red, green, blue), number in colors:
        table[red << 16 | green << 8 | blue] = number
    return table


assert MOST_CLASSES <= _UNKNOWN
