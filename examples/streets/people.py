"""People on foot and on two wheels, as figures facing the camera's plane."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from examples.streets.canvas import Canvas, Color, mix, scale

__all__ = ["bicycle", "motorcycle", "person"]

PERSON, RIDER, MOTORCYCLE, BICYCLE = 11, 12, 17, 18

_SKIN: tuple[Color, ...] = ((224, 178, 148), (198, 150, 118), (148, 102, 76), (96, 66, 50))
_HAIR: tuple[Color, ...] = ((36, 28, 24), (84, 60, 40), (150, 116, 70), (120, 118, 116))
_TYRE: Color = (28, 28, 30)


class _Figure:
    """Draws in metres, sideways and up from a point on the ground at one depth."""

    def __init__(self, canvas: Canvas, x: float, z: float, squeeze: float) -> None:
        self._canvas, self._z = canvas, z
        self._u, self._v = canvas.camera.project(x, 0.0, z)
        self.pixels = canvas.camera.focal / z
        self._squeeze = squeeze
        light = canvas.light
        self._bright = light.on((0.0, 0.35, -0.9))
        self._lit = light.on((math.copysign(0.8, light.sun[0]), 0.3, -0.5))
        self._sun_right = (light.sun[0] > 0) == (squeeze > 0)

    def _at(self, point: tuple[float, float]) -> tuple[float, float]:
        return (
            self._u + point[0] * self._squeeze * self.pixels,
            self._v - point[1] * self.pixels,
        )

    def shape(self, points: Sequence[tuple[float, float]], color: Color, label: int) -> None:
        """A filled polygon."""
        where = [self._at(point) for point in points]
        self._canvas.polygon(where, scale(color, self._bright), label, self._z)

    def lit(self, points: Sequence[tuple[float, float]], color: Color, label: int) -> None:
        """A filled polygon turned to the sun."""
        where = [self._at(point) for point in points]
        self._canvas.polygon(where, scale(color, self._lit), label, self._z)

    def stroke(
        self, points: Sequence[tuple[float, float]], width: float, color: Color, label: int
    ) -> None:
        """A line ``width`` metres wide."""
        where = [self._at(point) for point in points]
        self._canvas.line(where, width * self.pixels, scale(color, self._bright), label, self._z)

    def disc(self, x: float, y: float, rx: float, ry: float, color: Color, label: int) -> None:
        """A filled ellipse."""
        u, v = self._at((x, y))
        half_w, half_h = abs(rx * self._squeeze) * self.pixels, ry * self.pixels
        box = (u - half_w, v - half_h, u + half_w, v + half_h)
        self._canvas.ellipse(box, scale(color, self._bright), label, self._z)

    def ring(
        self, x: float, y: float, radius: float, width: float, color: Color, label: int
    ) -> None:
        """A wheel's tyre and some spokes; what is between them stays as it is."""
        steps = [i * math.pi / 9 for i in range(19)]
        points = [(x + radius * math.cos(t), y + radius * math.sin(t)) for t in steps]
        self.stroke(points, width, color, label)


def _trousers(clothes: tuple[Color, ...], rng: np.random.Generator) -> Color:
    return mix(clothes[rng.integers(len(clothes))], (38, 42, 54), 0.65)


def _head(
    figure: _Figure, x: float, y: float, size: float, label: int, rng: np.random.Generator
) -> None:
    skin = _SKIN[rng.integers(len(_SKIN))]
    hair = _HAIR[rng.integers(len(_HAIR))]
    figure.disc(x, y, size * 0.8, size * 1.05, skin, label)
    if rng.random() < 0.5:  # seen from behind
        figure.disc(x, y + size * 0.1, size * 0.85, size, hair, label)
    else:
        figure.disc(x, y + size * 0.5, size * 0.85, size * 0.6, hair, label)


def person(
    canvas: Canvas,
    x: float,
    z: float,
    height: float,
    clothes: tuple[Color, ...],
    rng: np.random.Generator,
) -> None:
    """Somebody standing or walking."""
    figure = _Figure(canvas, x, z, float(rng.choice((-1, 1))))
    top, legs = clothes[rng.integers(len(clothes))], _trousers(clothes, rng)
    k = height / 1.75
    stride, swing = rng.uniform(0.03, 0.24) * k, rng.uniform(-0.04, 0.09) * k
    thigh, ankle = 0.085 * k, 0.06 * k
    hip, shoulder, neck = 0.86 * k, 1.42 * k, 1.5 * k
    half_hip, half_shoulder = 0.15 * k, rng.uniform(0.18, 0.23) * k
    for foot, tone in ((-stride, 0.8), (stride, 1.0)):
        root = math.copysign(0.07 * k, foot)
        figure.shape(
            [(root - thigh, hip), (root + thigh, hip), (foot + ankle, 0.05), (foot - ankle, 0.05)],
            scale(legs, tone), PERSON,
        )  # fmt: skip
        figure.shape(
            [(foot - 0.07, 0.09), (foot + 0.08, 0.09), (foot + 0.13, 0.0), (foot - 0.07, 0.0)],
            (34, 30, 28), PERSON,
        )  # fmt: skip
    coat = hip - (0.0 if rng.random() < 0.6 else rng.uniform(0.15, 0.4) * k)
    figure.stroke(
        [(-half_shoulder, shoulder - 0.06), (-half_shoulder - 0.04 - swing, hip + 0.02)],
        0.1 * k,
        scale(top, 0.8),
        PERSON,
    )
    torso = [
        (-half_shoulder, shoulder),
        (-0.06, neck),
        (0.06, neck),
        (half_shoulder, shoulder),
        (half_hip, coat),
        (-half_hip, coat),
    ]
    figure.shape(torso, top, PERSON)
    figure.lit(
        [(0.03, neck), (half_shoulder, shoulder), (half_hip, coat), (0.06, coat)], top, PERSON
    )
    figure.stroke(
        [(half_shoulder, shoulder - 0.06), (half_shoulder + 0.04 + swing * 0.7, hip + 0.02)],
        0.1 * k,
        scale(top, 0.92),
        PERSON,
    )
    if rng.random() < 0.3:
        bag = scale(clothes[rng.integers(len(clothes))], 0.8)
        figure.shape(
            [
                (half_hip, hip + 0.05),
                (half_hip + 0.24, hip + 0.05),
                (half_hip + 0.26, hip - 0.26),
                (half_hip, hip - 0.26),
            ],
            bag,
            PERSON,
        )
    _head(figure, 0.0, 1.63 * k, 0.115 * k, PERSON, rng)


def _cyclist(
    figure: _Figure,
    seat: tuple[float, float],
    grip: tuple[float, float],
    pedal: tuple[float, float],
    clothes: tuple[Color, ...],
    helmet: bool,
    rng: np.random.Generator,
) -> None:
    top, legs = clothes[rng.integers(len(clothes))], _trousers(clothes, rng)
    lean = rng.uniform(0.08, 0.28)
    shoulder = (seat[0] + lean, seat[1] + 0.55)
    knee = ((seat[0] + pedal[0]) / 2 + 0.2, (seat[1] + pedal[1]) / 2 + 0.08)
    figure.stroke([seat, knee, pedal], 0.15, legs, RIDER)
    figure.stroke([pedal, (pedal[0] + 0.14, pedal[1])], 0.08, (36, 32, 30), RIDER)
    body = [
        (seat[0] - 0.16, seat[1]),
        (seat[0] + 0.14, seat[1] - 0.02),
        (shoulder[0] + 0.15, shoulder[1]),
        (shoulder[0] - 0.17, shoulder[1]),
    ]
    figure.shape(body, top, RIDER)
    figure.lit([body[1], body[2], shoulder, seat], top, RIDER)
    elbow = ((shoulder[0] + grip[0]) / 2, (shoulder[1] + grip[1]) / 2 - 0.08)
    figure.stroke([shoulder, elbow, grip], 0.11, scale(top, 0.85), RIDER)
    head = (shoulder[0] + 0.08, shoulder[1] + 0.2)
    _head(figure, *head, 0.12, RIDER, rng)
    if helmet:
        figure.disc(head[0], head[1] + 0.05, 0.13, 0.11, clothes[rng.integers(len(clothes))], RIDER)


def bicycle(
    canvas: Canvas,
    x: float,
    z: float,
    paint: Color,
    clothes: tuple[Color, ...],
    rng: np.random.Generator,
    *,
    ridden: bool,
    squeeze: float,
) -> None:
    """A bicycle seen more (squeeze 1) or less (0.2) from the side, with or without a rider."""
    figure = _Figure(canvas, x, z, squeeze)
    rear, front, hub = (-0.52, 0.34), (0.52, 0.34), (-0.06, 0.32)
    seat, head = (-0.2, 0.86), (0.38, 0.88)
    frame = scale(paint, 0.8)
    figure.ring(*rear, 0.33, 0.055, _TYRE, BICYCLE)
    figure.ring(*front, 0.33, 0.055, _TYRE, BICYCLE)
    figure.stroke([rear, hub, head, seat, rear], 0.05, frame, BICYCLE)
    figure.stroke([seat, hub], 0.05, frame, BICYCLE)
    figure.stroke([front, (0.36, 1.0), (0.28, 1.03)], 0.05, frame, BICYCLE)
    figure.shape([(-0.34, 0.9), (-0.08, 0.92), (-0.1, 0.97), (-0.34, 0.98)], _TYRE, BICYCLE)
    if ridden:
        _cyclist(figure, (-0.2, 0.95), (0.3, 1.04), (0.0, 0.18), clothes, rng.random() < 0.4, rng)


def motorcycle(
    canvas: Canvas,
    x: float,
    z: float,
    paint: Color,
    clothes: tuple[Color, ...],
    rng: np.random.Generator,
    *,
    ridden: bool,
    squeeze: float,
) -> None:
    """A motorcycle or scooter, with or without a rider."""
    figure = _Figure(canvas, x, z, squeeze)
    for wheel in (-0.66, 0.68):
        figure.disc(wheel, 0.31, 0.31, 0.31, _TYRE, MOTORCYCLE)
        figure.disc(wheel, 0.31, 0.15, 0.15, (120, 122, 126), MOTORCYCLE)
    engine = [(-0.34, 0.3), (0.3, 0.26), (0.36, 0.6), (-0.3, 0.6)]
    figure.shape(engine, (66, 66, 70), MOTORCYCLE)
    body = [
        (-0.86, 0.84),
        (-0.6, 0.6),
        (0.34, 0.56),
        (0.52, 0.88),
        (0.3, 0.98),
        (0.0, 0.86),
        (-0.4, 0.8),
    ]
    figure.shape(body, paint, MOTORCYCLE)
    figure.lit([(0.0, 0.86), (0.34, 0.6), (0.52, 0.88), (0.3, 0.98)], paint, MOTORCYCLE)
    figure.shape([(-0.7, 0.84), (-0.02, 0.82), (-0.04, 0.9), (-0.66, 0.93)], _TYRE, MOTORCYCLE)
    figure.stroke([(0.68, 0.31), (0.46, 0.95), (0.34, 1.06)], 0.08, (96, 98, 102), MOTORCYCLE)
    figure.shape(
        [(0.44, 0.84), (0.62, 0.84), (0.56, 1.14), (0.44, 1.06)], scale(paint, 0.9), MOTORCYCLE
    )
    if ridden:
        _cyclist(figure, (-0.24, 0.92), (0.36, 1.04), (0.06, 0.36), clothes, True, rng)
