"""What stands on pavements: lamps, traffic lights, signs, bollards."""

from __future__ import annotations

import math

import numpy as np

from examples.streets.canvas import Canvas, Color, scale

__all__ = ["bin_", "bollard", "lamp", "pole", "sign", "traffic_light"]

POLE, LIGHT, SIGN, VOID = 5, 6, 7, 255

_STEEL: Color = (112, 114, 116)
_DARK: Color = (52, 56, 56)


def pole(
    canvas: Canvas, x: float, z: float, height: float, width: float, color: Color = _STEEL
) -> None:
    """An upright pole, its sunny edge brighter."""
    light = canvas.light
    sunny = math.copysign(width / 2, light.sun[0])
    body = [(x - width / 2, 0.0, z), (x + width / 2, 0.0, z)]
    body += [(x + width / 2, height, z), (x - width / 2, height, z)]
    canvas.world(body, scale(color, light.ambient * 0.85), POLE)
    edge = [(x, 0.0, z), (x + sunny, 0.0, z), (x + sunny, height, z), (x, height, z)]
    if canvas.camera.focal * width / z > 3:
        canvas.world(edge, scale(color, light.on((math.copysign(0.9, sunny), 0, -0.4))), POLE)


def _arm(
    canvas: Canvas, a: tuple[float, float], b: tuple[float, float], z: float, width: float
) -> None:
    camera, light = canvas.camera, canvas.light
    points = [camera.project(a[0], a[1], z), camera.project(b[0], b[1], z)]
    tone = scale(_STEEL, light.ambient * 0.9)
    canvas.line(points, width * camera.focal / z, tone, POLE, z)


def lamp(canvas: Canvas, x: float, z: float, height: float, toward: float) -> None:
    """A street lamp whose arm reaches ``toward`` (metres along X) over the road."""
    pole(canvas, x, z, height, 0.16)
    _arm(canvas, (x, height), (x + toward, height + 0.35), z, 0.09)
    end = x + toward
    head = [(end - 0.35, height + 0.3, z), (end + 0.35, height + 0.34, z)]
    head += [(end + 0.3, height + 0.48, z), (end - 0.28, height + 0.44, z)]
    canvas.world(head, scale((172, 174, 172), canvas.light.ambient), POLE)


def bollard(canvas: Canvas, x: float, z: float) -> None:
    """A knee-high post at the kerb."""
    pole(canvas, x, z, 0.95, 0.12, _DARK)


def bin_(canvas: Canvas, x: float, z: float, color: Color) -> None:
    """A litter bin; it belongs to none of the classes."""
    tone = scale(color, canvas.light.on((0.0, 0.2, -0.9)))
    body = [(x - 0.26, 0.0, z), (x + 0.26, 0.0, z), (x + 0.3, 0.95, z), (x - 0.3, 0.95, z)]
    canvas.world(body, tone, VOID)
    lid = [(x - 0.32, 0.9, z), (x + 0.32, 0.9, z), (x + 0.26, 1.05, z), (x - 0.26, 1.05, z)]
    canvas.world(lid, scale(tone, 0.6), VOID)


def traffic_light(canvas: Canvas, x: float, z: float, arm: float, rng: np.random.Generator) -> None:
    """A signal on its pole; with ``arm`` (metres along X) another hangs over the road."""
    state = int(rng.integers(3))
    height = 5.6 if arm else 2.5
    pole(canvas, x, z, height + 0.2, 0.2 if arm else 0.13, _DARK if not arm else _STEEL)
    if arm:
        _arm(canvas, (x, height), (x + arm, height + 0.25), z, 0.14)
        _signal(canvas, x + arm * 0.95, height - 0.35, z, state)
        _signal(canvas, x + arm * 0.5, height - 0.4, z, state)
    _signal(canvas, x, 2.5, z, state)


def _signal(canvas: Canvas, x: float, bottom: float, z: float, state: int) -> None:
    """The lamps' housing with one lamp (0 red, 1 amber, 2 green) lit."""
    tone = scale((40, 42, 40), canvas.light.ambient)
    half, high = 0.21, 1.08
    case = [(x - half, bottom, z), (x + half, bottom, z), (x + half, bottom + high, z)]
    canvas.world([*case, (x - half, bottom + high, z)], tone, LIGHT)
    radius = 0.13 * canvas.camera.focal / z
    lamps: tuple[Color, ...] = ((250, 52, 40), (252, 190, 50), (60, 230, 130))
    for place, color in enumerate(lamps):
        u, v = canvas.camera.project(x, bottom + high - 0.19 - 0.34 * place, z)
        shown = color if place == state else scale(color, 0.22)
        canvas.ellipse((u - radius, v - radius, u + radius, v + radius), shown, LIGHT, z)


def sign(canvas: Canvas, x: float, z: float, height: float, rng: np.random.Generator) -> None:
    """A traffic sign on its pole: round, triangular, eight-sided, square, or a name plate."""
    pole(canvas, x, z, height + 0.3, 0.09)
    bright = canvas.light.on((0.0, 0.1, -1.0))
    red, white, blue = (196, 30, 36), (236, 236, 232), (30, 80, 170)
    yellow, green, black = (240, 196, 40), (30, 110, 70), (30, 30, 30)

    def polygon(corners: int, radius: float, turn: float, color: Color) -> None:
        angles = (turn + step * 2 * math.pi / corners for step in range(corners))
        points = [(x + radius * math.cos(t), height + radius * math.sin(t), z) for t in angles]
        canvas.world(points, scale(color, bright), SIGN)

    def plate(half_w: float, half_h: float, color: Color, dy: float = 0.0) -> None:
        low, high = height + dy - half_h, height + dy + half_h
        points = [(x - half_w, low, z), (x + half_w, low, z), (x + half_w, high, z)]
        canvas.world([*points, (x - half_w, high, z)], scale(color, bright), SIGN)

    kind = rng.choice(
        ("limit", "warning", "stop", "parking", "direction", "blue", "diamond"),
        p=(0.24, 0.16, 0.1, 0.16, 0.12, 0.12, 0.1),
    )
    if kind == "limit":
        polygon(18, 0.34, 0.0, red)
        polygon(18, 0.25, 0.0, white)
        plate(0.12, 0.08, black)
    elif kind == "warning":
        polygon(3, 0.44, math.pi / 2, red)
        polygon(3, 0.28, math.pi / 2, white)
    elif kind == "stop":
        polygon(8, 0.38, math.pi / 8, white)
        polygon(8, 0.35, math.pi / 8, red)
        plate(0.24, 0.07, white)
    elif kind == "parking":
        plate(0.32, 0.32, white)
        plate(0.28, 0.28, blue)
        plate(0.06, 0.16, white)
    elif kind == "direction":
        plate(0.8, 0.28, white)
        plate(0.75, 0.24, green if rng.random() < 0.5 else blue)
        plate(0.5, 0.05, white, 0.08)
        plate(0.4, 0.05, white, -0.08)
    elif kind == "blue":
        polygon(18, 0.34, 0.0, blue)
        plate(0.05, 0.18, white)
    else:
        polygon(4, 0.42, 0.0, yellow)
        polygon(4, 0.3, 0.0, white if rng.random() < 0.5 else yellow)
        plate(0.05, 0.12, black)
