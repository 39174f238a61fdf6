"""Cars: a side profile drawn out to the car's width, with windows, lamps and wheels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from examples.streets.canvas import Color, Point3, scale
from examples.streets.solid import Decal, Face, Solid, across, along, slab, wheel

__all__ = ["BLACK", "GLASS", "HEADLAMP", "PLATE", "TAILLAMP", "TYRE", "car"]

CAR = 13

GLASS: Color = (46, 54, 62)
TYRE: Color = (26, 26, 28)
BLACK: Color = (24, 24, 26)
TAILLAMP: Color = (176, 22, 22)
HEADLAMP: Color = (232, 234, 226)
PLATE: Color = (220, 220, 212)

_PROUD = 0.006  # metres by which a decal stands out of its face


class _Profile(NamedTuple):
    """The side of a car: (metres from the rear, height) of its corners, going over the roof."""

    rear_sill: tuple[float, float]
    rear: tuple[float, float]
    rear_belt: tuple[float, float]
    rear_roof: tuple[float, float]
    front_roof: tuple[float, float]
    front_belt: tuple[float, float]
    nose: tuple[float, float]
    front_sill: tuple[float, float]


_SALOON = _Profile(
    (0, 0.32), (0.1, 0.98), (0.9, 1.03), (1.55, 1.43), (2.7, 1.45),
    (3.5, 1.0), (4.4, 0.78), (4.5, 0.34)
)  # fmt: skip
_HATCHBACK = _Profile(
    (0, 0.34), (0.02, 0.92), (0.12, 1.02), (0.6, 1.46), (2.3, 1.5),
    (3.1, 1.02), (3.95, 0.82), (4.05, 0.36)
)  # fmt: skip
_ESTATE = _Profile(
    (0, 0.34), (0.04, 0.92), (0.14, 1.0), (0.7, 1.43), (2.7, 1.47),
    (3.6, 1.0), (4.5, 0.78), (4.6, 0.34)
)  # fmt: skip
_OFFROAD = _Profile(
    (0, 0.42), (0.0, 1.0), (0.08, 1.12), (0.4, 1.68), (2.6, 1.74),
    (3.4, 1.16), (4.5, 1.0), (4.6, 0.44)
)  # fmt: skip
_VAN = _Profile(
    (0, 0.38), (0.0, 0.95), (0.03, 1.12), (0.14, 1.9), (3.3, 1.94),
    (4.2, 1.18), (4.75, 0.98), (4.85, 0.4)
)  # fmt: skip
_PROFILES = (_SALOON, _HATCHBACK, _ESTATE, _OFFROAD, _VAN)


def car(paint: Color, rng: np.random.Generator) -> Solid:
    """A saloon, hatchback, estate, off-road car or van of this colour."""
    profile = _PROFILES[rng.choice(len(_PROFILES), p=(0.28, 0.28, 0.2, 0.17, 0.07))]
    length = profile.front_sill[0]
    half = rng.uniform(0.86, 0.94)
    roof = half * (0.93 if profile is _VAN else 0.76)
    faces = [
        *_side(profile, paint, -half, -roof, length),
        *_side(profile, paint, half, roof, length),
        *_ends(profile, paint, half, length),
        *_top(profile, paint, half, roof),
    ]
    return Solid(CAR, length, 2 * half, faces)


def _side(profile: _Profile, paint: Color, side: float, roof: float, length: float) -> list[Face]:
    belt_low, belt_high = profile.rear_belt[1], profile.rear_roof[1]
    sill = profile.rear_sill[1]
    out = side * (1 + _PROUD)
    lower_profile = (*profile[:3], *profile[5:])
    lower: list[Point3] = [(at, side, height) for at, height in lower_profile]
    handle = belt_low - 0.14
    decals: list[Decal] = [
        (along(out, 0.3, length - 0.3, sill - 0.02, sill + 0.09), BLACK),
        (along(out, length * 0.475, length * 0.48, sill, belt_low), scale(paint, 0.45)),
        (along(out, length * 0.40, length * 0.44, handle, handle + 0.05), scale(paint, 0.35)),
        *wheel(length * 0.19, 0.33, out),
        *wheel(length * 0.81, 0.33, out),
    ]
    upper: list[Point3] = [
        (profile.rear_belt[0], side, belt_low),
        (profile.rear_roof[0], roof, belt_high),
        (profile.front_roof[0], roof, profile.front_roof[1]),
        (profile.front_belt[0], side, profile.front_belt[1]),
    ]
    middle = (profile.rear_roof[0] + profile.front_roof[0]) / 2
    lean, low, high = side + (roof - side) * 0.84, belt_low + 0.04, belt_low + (
        belt_high - belt_low
    ) * 0.84  # fmt: skip

    def pane(low_rear: float, high_rear: float, high_front: float, low_front: float) -> Decal:
        points = ((low_rear, out, low), (high_rear, lean, high))
        return (*points, (high_front, lean, high), (low_front, out, low)), GLASS

    windows = [
        pane(profile.rear_belt[0] + 0.3, profile.rear_roof[0] + 0.15, middle - 0.05, middle - 0.05),
        pane(middle + 0.05, middle + 0.05, profile.front_roof[0], profile.front_belt[0] - 0.3),
    ]
    return [Face(lower, paint, decals), Face(upper, scale(paint, 0.9), windows)]


def _ends(profile: _Profile, paint: Color, half: float, length: float) -> list[Face]:
    sill, tail_height = profile.rear_sill[1], profile.rear[1]
    faces = [
        Face(across(at, side, side + 0.21, 0.0, 0.4), TYRE)
        for at in (0.45, length - 0.45)
        for side in (-half, half - 0.21)
    ]
    # The dark of the underbody, which hides what is beyond the car.
    faces += [
        Face(across(at, -half * 0.97, half * 0.97, 0.17, sill + 0.05), (14, 14, 15))
        for at in (0.3, length - 0.3)
    ]
    behind = -_PROUD
    tail: list[Decal] = [
        (across(behind, -half, half, sill, sill + 0.17), scale(paint, 0.4)),
        (across(behind, -0.27, 0.27, tail_height * 0.60, tail_height * 0.72), PLATE),
    ]
    lamp = (tail_height * 0.70, tail_height * 0.95)
    tail += [
        (across(behind, left, right, *lamp), TAILLAMP)
        for left, right in ((-half, -half * 0.64), (half * 0.64, half))
    ]
    faces.append(Face(slab((0.0, sill, half), (*profile.rear, half)), paint, tail))
    before, nose, low = length + _PROUD, profile.nose[1], profile.front_sill[1]
    front: list[Decal] = [
        (across(before, -half * 0.5, half * 0.5, nose * 0.72, nose * 0.92), BLACK),
        (across(before, -half * 0.8, half * 0.8, low, low + 0.13), BLACK),
        (across(before, -0.27, 0.27, low + 0.14, low + 0.25), PLATE),
    ]
    front += [
        (across(before, left, right, nose * 0.76, nose * 0.98), HEADLAMP)
        for left, right in ((-half * 0.97, -half * 0.58), (half * 0.58, half * 0.97))
    ]
    faces.append(Face(slab((length, low, half), (*profile.nose, half)), paint, front))
    return faces


def _top(profile: _Profile, paint: Color, half: float, roof: float) -> list[Face]:
    """Boot lid, rear window, roof, windscreen and bonnet."""
    rear = (*profile.rear, half)
    rear_belt, front_belt = (*profile.rear_belt, half), (*profile.front_belt, half)
    rear_roof, front_roof = (*profile.rear_roof, roof), (*profile.front_roof, roof)
    return [
        Face(slab(rear, rear_belt), paint, gloss=0.2),
        _window(rear_belt, rear_roof, paint),
        Face(slab(rear_roof, front_roof), paint, gloss=0.3),
        _window(front_belt, front_roof, paint),
        Face(slab(front_belt, (*profile.nose, half)), paint, gloss=0.3),
    ]


def _window(
    low: tuple[float, float, float], high: tuple[float, float, float], paint: Color
) -> Face:
    def between(share: float) -> tuple[float, float, float]:
        at, height, half = (a + (b - a) * share for a, b in zip(low, high, strict=True))
        return at, height, half * 0.93

    glass = slab(between(0.06), between(0.9))
    middle_low, middle_high = between(0.06), between(0.9)
    gleam = [glass[0], (middle_low[0], -0.2, middle_low[1]), (middle_high[0], 0.1, middle_high[1])]
    return Face(
        slab(low, high),
        scale(paint, 0.85),
        [(glass, GLASS), ([*gleam, glass[3]], scale(GLASS, 1.3))],
    )
