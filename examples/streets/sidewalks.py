"""What stands and walks beside the road: trees, lamps, signs, bollards, people, bicycles."""

from __future__ import annotations

import math

import numpy as np

from examples.streets.furniture import bin_, bollard, lamp, pole, sign, traffic_light
from examples.streets.ground import Shadow
from examples.streets.people import bicycle, motorcycle, person
from examples.streets.plots import plant
from examples.streets.stage import END, Stage

__all__ = ["add_person", "blob_shadow", "furnish_sidewalk"]


def blob_shadow(stage: Stage, x: float, z: float, radius: float, height: float) -> Shadow:
    """The shadow on the ground of something round, ``height`` metres up."""
    sun = stage.canvas.light.sun
    reach = height / max(sun[1], 0.3)
    cx, cz = x - sun[0] * reach, z - sun[2] * reach
    angles = (step * math.pi / 6 for step in range(12))
    corners = [(cx + radius * math.cos(t), cz + radius * math.sin(t)) for t in angles]
    return stage.style.shadow, corners


def add_person(stage: Stage, x: float, z: float) -> None:
    """Somebody on foot, at times a child."""
    rng, style = stage.rng, stage.style
    height = rng.uniform(1.58, 1.9) if rng.random() < 0.9 else rng.uniform(1.05, 1.45)
    own = stage.stream()
    stage.add(z, person, x, z, height, style.clothes, own)
    stage.shadows.append((0.35, blob_shadow(stage, x, z, 0.28, 0.0)[1]))
    stage.shadows.append(blob_shadow(stage, x, z, 0.3, 0.8))


def _places(rng: np.random.Generator, every: float, start: float) -> list[float]:
    """Distances ahead, ``every`` metres on average but not regularly."""
    places, at = [], start + rng.uniform(0, every)
    while at < END * 0.75:
        places.append(at)
        at += every * rng.uniform(0.55, 1.45)
    return places


def furnish_sidewalk(stage: Stage, side: int) -> None:
    """Everything between the kerb and the building line of one side."""
    road, style, rng = stage.road, stage.style, stage.rng
    part = road.sides[side]
    kerb = road.half_width
    strip = kerb + (part.verge / 2 if part.verge else 0.6)
    wide = part.sidewalk + part.verge > 2.3

    def free(z: float) -> bool:
        return not road.in_crossing(z, 3.0)

    if wide and rng.random() < 0.75:
        for z in filter(free, _places(rng, style.trees_every, 8)):
            plant(stage, side * (strip + rng.uniform(0, 0.3)), z)
            stage.shadows.append(blob_shadow(stage, side * strip, z, 1.9, 4.5))
    toward = -side * rng.uniform(1.2, 2.2)
    high = rng.uniform(6, 9)
    for z in filter(free, _places(rng, style.lamps_every, 5)):
        stage.add(z, lamp, side * (kerb + 0.5), z, high, toward)
    for z in filter(free, _places(rng, style.signs_every, 6)):
        x, tall, own = side * (kerb + rng.uniform(0.4, 0.8)), rng.uniform(2.1, 2.6), stage.stream()
        stage.add(z, sign, x, z, tall, own)
    if rng.random() < style.bollard_chance:
        start = rng.uniform(4, 30)
        for z in filter(free, np.arange(start, start + rng.uniform(6, 24), 1.7).tolist()):
            stage.add(z, bollard, side * (kerb + 0.35), z)
    for z in filter(free, _places(rng, 45, 6)):
        color = stage.pick(((58, 92, 66), (70, 74, 78), (150, 96, 44)))
        stage.add(z, bin_, side * (kerb + 0.7), z, color)
    for z in filter(free, _places(rng, 70, 8)):
        stage.add(z, pole, side * (kerb + 0.4), z, 4.2, 0.14)
    _signals(stage, side)
    _pedestrians(stage, side)
    _parked_two_wheelers(stage, side)


def _signals(stage: Stage, side: int) -> None:
    road, style, rng = stage.road, stage.style, stage.rng
    for start, end in road.crossings:
        if rng.random() < 0.25:
            continue
        arm = -side * (road.half_width * 0.75) if style.mast_lights and side > 0 else 0.0
        for z in (start - 1.2, end + 1.0):
            x = side * (road.half_width + 0.55)
            stage.add(z, traffic_light, x, z, arm, stage.stream())


def _pedestrians(stage: Stage, side: int) -> None:
    road, rng = stage.road, stage.rng
    part = road.sides[side]
    inner = road.half_width + part.verge + 0.5
    outer = max(inner + 0.2, road.building_line(side) - 0.3)
    for z in _places(rng, stage.style.people_every, 5):
        for _ in range(1 + (rng.random() < 0.3)):
            x = side * rng.uniform(inner, outer)
            if not road.in_crossing(z):
                add_person(stage, x, z + rng.uniform(-0.4, 0.4))
    for zebra in road.zebras:
        for _ in range(rng.poisson(0.8)):
            x = side * rng.uniform(0, road.half_width)
            z = zebra + rng.uniform(0.5, 2.8)
            if stage.claim(x, z, 0.5, 0.5):
                add_person(stage, x, z)


def _parked_two_wheelers(stage: Stage, side: int) -> None:
    road, style, rng = stage.road, stage.style, stage.rng
    for place in _places(rng, style.bikes_every, 5):
        x = side * (road.half_width + rng.uniform(0.5, 1.1))
        draw = motorcycle if rng.random() < 0.28 else bicycle
        for number in range(int(rng.integers(1, 4))):
            z = place + number * rng.uniform(0.6, 0.9)
            if road.in_crossing(z, 1.0):
                continue
            paint, own = stage.pick(style.paints), stage.stream()
            squeeze = float(rng.choice((-1, 1))) * rng.uniform(0.35, 1.0)
            stage.add(z, draw, x, z, paint, style.clothes, own, ridden=False, squeeze=squeeze)
            stage.shadows.append((0.3, blob_shadow(stage, x, z, 0.5, 0.0)[1]))
