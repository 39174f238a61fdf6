"""What is on the road: parked and moving cars, trucks, buses, trams, and people on two wheels."""

from __future__ import annotations

import math

from examples.streets.canvas import Color
from examples.streets.cars import car
from examples.streets.heavy import bus, train, truck
from examples.streets.people import bicycle, motorcycle
from examples.streets.sidewalks import blob_shadow
from examples.streets.solid import Solid
from examples.streets.stage import Stage

__all__ = ["add_traffic"]

_BUSES: tuple[Color, ...] = ((196, 160, 40), (170, 34, 36), (214, 212, 204), (48, 96, 150))
_TRAMS: tuple[Color, ...] = ((176, 40, 36), (206, 172, 60), (60, 110, 80), (70, 110, 160))
_FAR = 110.0


def add_traffic(stage: Stage) -> None:
    """Fill the lanes, the parking places and the crossings."""
    for side in (-1, 1):
        if stage.road.sides[side].parking:
            _park(stage, side)
    taken = _heavy(stage)
    for side in (-1, 1):
        for lane in range(stage.road.lanes):
            _lane(stage, side, lane, taken)
    _two_wheelers(stage)
    _cross_traffic(stage)


def _place(stage: Stage, solid: Solid, x: float, z: float, heading: float) -> None:
    sine, cosine = abs(math.sin(heading)), abs(math.cos(heading))
    nearest = z - solid.length / 2 * cosine - solid.width / 2 * sine
    half_x = solid.width / 2 * cosine + solid.length / 2 * sine
    if nearest < 3.5 or not stage.claim(x, z, half_x + 0.1, z - nearest + 0.3):
        return
    stage.add(nearest, solid.paint, x, z, heading)
    sun, cast = stage.canvas.light.sun, stage.style.shadow
    reach = 1.3 / max(sun[1], 0.3)
    corners = solid.footprint(x, z, heading, 0.05)
    shifted = [(cx - sun[0] * reach, cz - sun[2] * reach) for cx, cz in corners]
    for one in range(4):  # the swept hull, side by side
        other = (one + 1) % 4
        stage.shadows.append((cast, [corners[one], corners[other], shifted[other], shifted[one]]))
    stage.shadows.append((cast, shifted))
    stage.shadows.append((0.28, solid.footprint(x, z, heading, 0.22)))
    stage.shadows.append((0.62, corners))


def _park(stage: Stage, side: int) -> None:
    road, style, rng = stage.road, stage.style, stage.rng
    x = side * (road.half_width - 1.05)
    z = rng.uniform(4, 9)
    while z < _FAR:
        free = not road.in_crossing(z, 6.0) and not any(abs(z - at) < 5 for at in road.zebras)
        if free and rng.random() < style.parked_chance:
            heading = 0.0 if side > 0 or rng.random() < 0.2 else math.pi
            solid = car(stage.pick(style.paints), stage.stream())
            _place(stage, solid, x + rng.uniform(-0.15, 0.1), z, heading + rng.normal(0, 0.02))
        z += rng.uniform(5.1, 6.3)


Taken = dict[tuple[int, int], list[tuple[float, float]]]


def _lane_x(stage: Stage, side: int, lane: int) -> float:
    road = stage.road
    return side * (road.median / 2 + (lane + 0.5) * road.lane_width)


def _heavy(stage: Stage) -> Taken:
    """Buses, trucks and trams first; the stretches of lane they take, by (side, lane)."""
    road, style, rng = stage.road, stage.style, stage.rng
    taken: Taken = {}

    def put(solid: Solid, side: int, lane: int, x: float, nearest: float) -> None:
        z = nearest + solid.length / 2
        _place(stage, solid, x, z, 0.0 if side > 0 else math.pi)
        taken.setdefault((side, lane), []).append((nearest - 4, nearest + solid.length + 4))

    if road.rails is not None and rng.random() < 0.8:
        side = 1 if road.rails > 0 else -1
        tram = train(stage.pick(_TRAMS), stage.stream())
        put(tram, side, 0, road.rails, rng.uniform(9, 38))
    for chance, build, colors in (
        (style.bus_chance, bus, _BUSES),
        (style.truck_chance, truck, style.paints),
    ):
        if rng.random() < chance:
            side = 1 if rng.random() < 0.5 else -1
            lane = road.lanes - 1
            nearest = rng.uniform(8, 40)
            spans = taken.get((side, lane), [])
            if any(start - 13 < nearest < end for start, end in spans):
                nearest = max(end for _, end in spans) + 5
            x = _lane_x(stage, side, lane)
            put(build(stage.pick(colors), stage.stream()), side, lane, x, nearest)
    return taken


def _lane(stage: Stage, side: int, lane: int, taken: Taken) -> None:
    style, rng = stage.style, stage.rng
    z = rng.uniform(8, 14) + rng.exponential(style.cars_every * 0.7)
    spans = taken.get((side, lane), [])
    while z < _FAR:
        if not any(start - 3 < z < end + 3 for start, end in spans):
            heading = (0.0 if side > 0 else math.pi) + rng.normal(0, 0.015)
            x = _lane_x(stage, side, lane) + rng.uniform(-0.3, 0.3)
            _place(stage, car(stage.pick(style.paints), stage.stream()), x, z, heading)
        z += rng.uniform(6.5, 9) + rng.exponential(style.cars_every)


def _two_wheelers(stage: Stage) -> None:
    road, style, rng = stage.road, stage.style, stage.rng
    for draw, every in ((bicycle, style.bikes_every * 1.3), (motorcycle, style.bikes_every * 2.2)):
        z = 5 + rng.exponential(every * 0.6)
        while z < 70:
            side = 1 if rng.random() < 0.6 else -1
            edge = road.median / 2 + road.lanes * road.lane_width
            x = side * (edge - rng.uniform(0.4, 1.3))
            # Most ride along the street, seen nearly from behind or from the front.
            squeeze = rng.uniform(0.3, 0.6) if rng.random() < 0.65 else rng.uniform(0.7, 1.0)
            squeeze *= float(rng.choice((-1, 1)))
            at = z
            z += 3 + rng.exponential(every)
            if not stage.claim(x, at, 0.7, 1.0):
                continue
            paint, own = stage.pick(style.paints), stage.stream()
            stage.add(at, draw, x, at, paint, style.clothes, own, ridden=True, squeeze=squeeze)
            stage.shadows.append((0.4, blob_shadow(stage, x, at, 0.55, 0.0)[1]))
            stage.shadows.append(blob_shadow(stage, x, at, 0.5, 0.9))


def _cross_traffic(stage: Stage) -> None:
    road, style, rng = stage.road, stage.style, stage.rng
    for start, end in road.crossings:
        if end - start < 8 or start < 12:
            continue
        for lane, heading in ((0.28, math.pi / 2), (0.72, -math.pi / 2)):
            for _ in range(rng.poisson(0.7)):
                x = rng.uniform(-18, 18)
                z = start + lane * (end - start)
                solid = car(stage.pick(style.paints), stage.stream())
                _place(stage, solid, x, z, heading + rng.normal(0, 0.05))
                break
