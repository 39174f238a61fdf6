"""Trucks, buses and trams: boxes with windows."""

from __future__ import annotations

import numpy as np

from examples.streets.canvas import Color, scale
from examples.streets.cars import BLACK, GLASS, HEADLAMP, PLATE, TAILLAMP, TYRE
from examples.streets.solid import Decal, Face, Solid, across, along, slab, wheel

__all__ = ["bus", "train", "truck"]

TRUCK, BUS, TRAIN = 14, 15, 16

_LOADS: tuple[Color, ...] = (
    (226, 226, 222), (196, 198, 200), (60, 84, 130), (170, 60, 48), (210, 176, 70), (88, 110, 88),
)  # fmt: skip


def _box(
    rear: float, front: float, half: float, low: float, high: float, color: Color
) -> dict[str, Face]:
    """The faces of a box by name: rear, front, left, right, top."""
    return {
        "rear": Face(across(rear, -half, half, low, high), color),
        "front": Face(across(front, -half, half, low, high), color),
        "left": Face(along(-half, rear, front, low, high), color),
        "right": Face(along(half, rear, front, low, high), color),
        "top": Face(slab((rear, high, half), (front, high, half)), color, gloss=0.2),
    }


def _tyres(half: float, ends: tuple[float, ...]) -> list[Face]:
    return [
        Face(across(at, side, side + 0.3, 0.0, 0.7), TYRE)
        for at in ends
        for side in (-half, half - 0.3)
    ]


def truck(paint: Color, rng: np.random.Generator) -> Solid:
    """A lorry: a cab of this colour before a box, a tipper or a flat load."""
    length = rng.uniform(6.5, 9.5)
    half = rng.uniform(1.1, 1.25)
    cab_from = length - rng.uniform(1.7, 2.1)
    cab_high = rng.uniform(2.4, 2.9)
    load_high = rng.choice((3.5, 3.2, 2.9, 2.1))
    load_color = _LOADS[rng.integers(len(_LOADS))]
    load = _box(0.0, cab_from - 0.1, half, 0.95, float(load_high), load_color)
    cab = _box(cab_from, length, half * 0.96, 0.5, cab_high, paint)
    chassis = _box(0.2, length - 0.1, half * 0.9, 0.5, 0.95, BLACK)
    dark = scale(load_color, 0.62)
    behind, before = -0.01, length + 0.01
    load["rear"].decals += [
        (across(behind, -0.03, 0.03, 1.0, float(load_high) - 0.1), dark),
        (across(behind, -half, half, float(load_high) - 0.1, float(load_high)), dark),
    ]
    chassis["rear"].decals += [
        (across(0.19, -half * 0.9, -half * 0.6, 0.62, 0.82), TAILLAMP),
        (across(0.19, half * 0.6, half * 0.9, 0.62, 0.82), TAILLAMP),
        (across(0.19, -0.3, 0.3, 0.6, 0.76), PLATE),
    ]
    cab["front"].decals += [
        (across(before, -half * 0.86, half * 0.86, cab_high - 1.15, cab_high - 0.3), GLASS),
        (across(before, -half * 0.6, half * 0.6, 0.8, cab_high - 1.35), scale(paint, 0.4)),
        (across(before, -half * 0.9, -half * 0.62, 0.6, 0.8), HEADLAMP),
        (across(before, half * 0.62, half * 0.9, 0.6, 0.8), HEADLAMP),
        (across(before, -0.3, 0.3, 0.55, 0.68), PLATE),
    ]
    for name, side in (("left", -1.0), ("right", 1.0)):
        at = side * half * 0.97
        cab[name].decals += [
            (along(at, cab_from + 0.6, length - 0.25, cab_high - 1.05, cab_high - 0.35), GLASS),
            *wheel(length - 0.85, 0.48, at),
        ]
        band = load_color if rng.random() < 0.5 else scale(load_color, 0.72)
        middle = (0.95 + float(load_high)) / 2
        load[name].decals.append(
            (along(side * half * 1.005, 0.6, cab_from - 0.8, middle - 0.3, middle + 0.3), band)
        )
        chassis[name].decals += wheel(1.4, 0.48, side * half * 0.91)
        chassis[name].decals += wheel(2.5, 0.48, side * half * 0.91)
    faces = [*chassis.values(), *_tyres(half * 0.9, (0.9, length - 0.9)), *load.values()]
    return Solid(TRUCK, length, 2 * half, [*faces, *cab.values()])


def _window_row(side: float, rear: float, front: float, low: float, high: float) -> list[Decal]:
    count = max(1, round((front - rear) / 1.5))
    step = (front - rear) / count
    return [
        (along(side, rear + i * step + 0.06, rear + (i + 1) * step - 0.06, low, high), GLASS)
        for i in range(count)
    ]


def bus(paint: Color, rng: np.random.Generator) -> Solid:
    """A town bus."""
    length, half, high = rng.uniform(10.5, 12.5), 1.27, rng.uniform(2.95, 3.15)
    body = _box(0.0, length, half, 0.32, high, paint)
    skirt = scale(paint, 0.6)
    behind, before = -0.01, length + 0.01
    body["rear"].decals += [
        (across(behind, -half * 0.8, half * 0.8, 1.75, 2.6), GLASS),
        (across(behind, -half * 0.7, half * 0.7, 0.85, 1.5), skirt),
        (across(behind, -half * 0.5, half * 0.5, 2.68, 2.9), BLACK),
        *((across(behind, a, a + 0.2, 0.9, 1.5), TAILLAMP) for a in (-half, half - 0.2)),
        (across(behind, -0.3, 0.3, 0.5, 0.64), PLATE),
        (across(behind, -half, half, 0.32, 0.46), BLACK),
    ]
    body["front"].decals += [
        (across(before, -half * 0.92, half * 0.92, 1.15, 2.5), GLASS),
        (across(before, -half * 0.75, half * 0.75, 2.58, 2.86), BLACK),
        (across(before, -half * 0.5, half * 0.5, 2.64, 2.8), (232, 170, 60)),
        *((across(before, a, a + 0.36, 0.6, 0.84), HEADLAMP) for a in (-half * 0.95, half * 0.66)),
        (across(before, -0.3, 0.3, 0.46, 0.6), PLATE),
    ]
    for name, side in (("left", -half), ("right", half)):
        at = side * 1.005
        body[name].decals += [
            *_window_row(at, 0.5, length - 0.6, 1.35, 2.45),
            (along(at, 0.0, length, 0.32, 0.62), skirt),
            *((along(at, a, a + 1.2, 0.45, 2.4), scale(GLASS, 0.8)) for a in (4.6, length - 1.9)),
            *wheel(2.6, 0.5, at),
            *wheel(length - 2.9, 0.5, at),
        ]
    return Solid(BUS, length, 2 * half, [*_tyres(half, (0.6, length - 0.6)), *body.values()])


def train(paint: Color, rng: np.random.Generator) -> Solid:
    """A tram of several cars, which the datasets call a train."""
    length, half, high = rng.choice((18.0, 27.0)), 1.2, 3.4
    length = float(length)
    pale: Color = (224, 222, 214)
    body = _box(0.0, length, half, 0.25, high, paint)
    for name, at in (("rear", -0.01), ("front", length + 0.01)):
        lamp = TAILLAMP if name == "rear" else HEADLAMP
        body[name].decals += [
            (across(at, -half * 0.9, half * 0.9, 1.3, 2.7), GLASS),
            (across(at, -half * 0.6, half * 0.6, 2.84, 3.16), BLACK),
            (across(at, -half * 0.45, half * 0.45, 2.9, 3.1), (236, 176, 64)),
            (across(at, -half, half, 0.85, 1.1), pale),
            *((across(at, a, a + 0.3, 0.6, 0.8), lamp) for a in (-half * 0.9, half * 0.9 - 0.3)),
            (across(at, -half, half, 0.25, 0.42), BLACK),
        ]
    for name, side in (("left", -half), ("right", half)):
        at = side * 1.005
        body[name].decals += [
            (along(at, 0.0, length, 2.55, 2.8), pale),
            *_window_row(at, 0.6, length - 0.6, 1.3, 2.5),
            (along(at, 0.0, length, 0.8, 1.05), pale),
            (along(at, 0.0, length, 0.25, 0.5), BLACK),
            *(
                (along(at, a - 0.18, a + 0.18, 0.3, high), BLACK)
                for a in (length / 3, length * 2 / 3)
            ),
            *(
                (along(at, a, a + 1.3, 0.45, 2.5), scale(GLASS, 0.8))
                for a in (2.2, length / 2, length - 4)
            ),
        ]
    roof = _box(length * 0.1, length * 0.9, half * 0.6, high, high + 0.3, (120, 122, 124))
    return Solid(TRAIN, length, 2 * half, [*body.values(), *roof.values()])
