"""What a street is put together on: its parts with their depths, until all can be painted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from examples.streets.canvas import NEAR, Canvas, Color, Shader, scale
from examples.streets.ground import Road, Shadow
from examples.streets.style import Style

__all__ = ["END", "Stage", "chunks"]

END = 170.0
"""Metres ahead up to which the street is furnished."""

_CHUNK = 8.0  # metres: what is long is painted in parts, so that sorting by depth works


@dataclass
class Stage:
    """Things to paint, and what is needed to make them."""

    style: Style
    road: Road
    canvas: Canvas
    rng: np.random.Generator
    shadows: list[Shadow] = field(default_factory=list)
    _props: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _claims: list[tuple[float, float, float, float]] = field(default_factory=list)

    def add(self, depth: float, paint: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Have ``paint(canvas, ...)`` called before whatever is nearer than ``depth``."""
        if depth > NEAR:
            self._props.append((depth, partial(paint, self.canvas, *args, **kwargs)))

    def paint(self) -> None:
        """Paint everything that was added, far things first."""
        for _, paint in sorted(self._props, key=lambda prop: -prop[0]):
            paint()

    def claim(self, x: float, z: float, half_x: float, half_z: float) -> bool:
        """Take a rectangle of road for a thing; false if another has any of it."""
        for cx, cz, cw, cl in self._claims:
            if abs(x - cx) < half_x + cw and abs(z - cz) < half_z + cl:
                return False
        self._claims.append((x, z, half_x, half_z))
        return True

    def stream(self) -> np.random.Generator:
        """A generator for one thing, so that what it draws shifts nothing else."""
        return np.random.default_rng(int(self.rng.integers(1 << 62)))

    def pick(self, colors: tuple[Color, ...]) -> Color:
        """One of some colours, slightly varied."""
        color = colors[self.rng.integers(len(colors))]
        return scale(color, self.rng.uniform(0.86, 1.12))

    def strip(
        self,
        x: float,
        span: tuple[float, float],
        height: float,
        shader: Shader,
        label: int,
        *,
        open_work: bool = False,
    ) -> None:
        """A wall along the street, from Z ``span[0]`` to ``span[1]``."""
        start, end = span
        for near, far in chunks(start, end):
            self.add(
                far,
                Canvas.wall,
                (x, near),
                (x, far),
                height,
                shader,
                label,
                along=near - start,
                open_work=open_work,
            )


def chunks(start: float, end: float) -> list[tuple[float, float]]:
    """The part of a range of Z beyond ``NEAR``, cut into short pieces."""
    cuts = np.arange(max(start, NEAR + 0.01), end, _CHUNK).tolist()
    return list(zip(cuts, [*cuts[1:], end], strict=True))
