"""What lines the street: houses, parks, lots and walls, plot after plot on either side."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from examples.streets.canvas import Canvas, Color, scale
from examples.streets.facades import brick_wall, fence, hedge, random_facade
from examples.streets.plants import bush, palm, tree
from examples.streets.stage import END, Stage, chunks

__all__ = ["line_with_plots", "paint_skyline", "plant"]

BUILDING, WALL, FENCE, VEGETATION = 2, 3, 4, 8

_BRICKS: tuple[Color, ...] = ((150, 128, 112), (140, 92, 74), (168, 162, 152), (120, 116, 110))
_FENCES: tuple[Color, ...] = ((58, 62, 60), (120, 124, 124), (132, 104, 76), (206, 204, 198))


def plant(stage: Stage, x: float, z: float) -> None:
    """A tree or palm of the domain's kind."""
    style, rng = stage.style, stage.rng
    color, own = stage.pick(style.leaves), stage.stream()
    height = rng.uniform(*style.tree_height)
    kind = palm if rng.random() < style.palm_chance else tree
    stage.add(z, kind, x, z, height, color, own)


def line_with_plots(stage: Stage, side: int) -> None:
    """Furnish one side of the street with plots up to ``END``, and its crossings' far corners."""
    style, road, rng = stage.style, stage.road, stage.rng
    kinds, weights = list(style.plots), np.array(list(style.plots.values()))
    line = road.building_line(side)
    at = -6.0
    while at < END:
        blocked = next((c for c in road.crossings if c[0] - 2 <= at <= c[1] + 2), None)
        if blocked:
            at = blocked[1] + 2.001
            _row_across(stage, side, line, at)
            continue
        length = rng.uniform(*style.building_length)
        limit = min((c[0] - 2 for c in road.crossings if c[0] - 2 > at), default=END)
        end = min(at + length, limit)
        if limit - end < 5:
            end = limit
        kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
        {"building": _house, "park": _park, "lot": _lot, "wall": _walled}[kind](
            stage, side, line, at, end
        )
        at = end + 0.001 if end < limit or limit >= END else limit + 0.001
        if kind == "building" and rng.random() < 0.08:
            at += rng.uniform(1.5, 4.0)  # an alley


def _height_of(stage: Stage, side: int, start: float, end: float, height: float) -> None:
    heights = stage.road.sides[side].heights
    heights[max(0, int(start * 2)) : max(0, int(end * 2))] = height


def _house(stage: Stage, side: int, line: float, start: float, end: float) -> None:
    style, rng, light = stage.style, stage.rng, stage.canvas.light
    near = line + rng.uniform(*style.setback)
    height = float(rng.uniform(*style.building_height) * rng.uniform(0.75, 1.0))
    facade = random_facade(stage.stream(), style, height)
    depth = rng.uniform(9, 15)
    x, far = side * near, side * (near + depth)
    facing, toward = light.on((-side, 0, 0)), light.on((0, 0, -1))
    roof = stage.pick(style.roofs) if rng.random() < style.roof_chance else None
    ridge = height + rng.uniform(2.2, 4.2)
    if roof:
        _roof(stage, side, near, (start, end), (height, ridge), roof)
    lit = replace(facade, brightness=facing)
    stage.strip(x, (start, end), height, lit, BUILDING)
    front = replace(facade, brightness=toward)
    stage.add(start, Canvas.wall, (x, start), (far, start), height, front, BUILDING)
    _height_of(stage, side, start, end, height)
    if near - line > 1.5 and rng.random() < 0.5:
        _border(stage, side, line + 0.1, start, end)


def _roof(
    stage: Stage,
    side: int,
    near: float,
    span: tuple[float, float],
    heights: tuple[float, float],
    color: Color,
) -> None:
    """A sloping roof, and the gable towards the camera."""
    light = stage.canvas.light
    (start, end), (eave, ridge) = span, heights
    slope = scale(color, light.on((-side * 0.7, 0.7, 0.0)))
    x, top = side * near, side * (near + 3.2)
    for at, to in chunks(start, end):
        corners = [(x, eave, at), (x, eave, to), (top, ridge, to), (top, ridge, at)]
        stage.add(to + 0.01, Canvas.world, corners, slope, BUILDING)
    gable = [
        (side * near, eave, start),
        (side * (near + 3.2), ridge, start),
        (side * (near + 6.4), eave, start),
    ]
    tone = scale(color, light.on((0, 0, -1)) * 0.9)
    stage.add(start + 0.005, Canvas.world, gable, tone, BUILDING)


def _row_across(stage: Stage, side: int, line: float, z: float) -> None:
    """The houses along a crossing street, as seen looking into it."""
    style, rng = stage.style, stage.rng
    toward = stage.canvas.light.on((0, 0, -1))
    x = line + rng.uniform(9, 14)
    while x < line + 75:
        width = rng.uniform(*style.building_length)
        height = float(rng.uniform(*style.building_height))
        facade = random_facade(stage.stream(), style, height)
        ends = (side * x, z), (side * (x + width), z)
        lit = replace(facade, brightness=toward)
        stage.add(z + 0.02, Canvas.wall, *ends, height, lit, BUILDING)
        x += width
        if rng.random() < 0.4:
            plant(stage, side * x, z - 1.5)


def _border(stage: Stage, side: int, line: float, start: float, end: float) -> None:
    """A fence, hedge or low wall at the edge of a plot."""
    rng, light = stage.rng, stage.canvas.light
    facing = light.on((-side, 0.0, 0.0))
    kind = rng.choice(("fence", "hedge", "wall"), p=(0.55, 0.2, 0.25))
    if kind == "fence":
        height = rng.uniform(1.1, 2.2)
        shader = fence(stage.pick(_FENCES), height, facing, rng.uniform(0.14, 0.3))
        stage.strip(side * line, (start, end), height, shader, FENCE, open_work=True)
    elif kind == "hedge":
        shader = hedge(stage.pick(stage.style.leaves), facing)
        stage.strip(side * line, (start, end), rng.uniform(0.9, 1.9), shader, VEGETATION)
    else:
        height = rng.uniform(0.8, 1.6)
        shader = brick_wall(stage.pick(_BRICKS), height, stage.style.texture, facing)
        stage.strip(side * line, (start, end), height, shader, WALL)


def _park(stage: Stage, side: int, line: float, start: float, end: float) -> None:
    rng = stage.rng
    stage.road.sides[side].grass_plots.append((start, end))
    for _ in range(rng.poisson((end - start) / 3.5)):
        x, z = side * (line + rng.uniform(2, 26)), rng.uniform(start, end)
        plant(stage, x, z)
    for _ in range(rng.poisson((end - start) / 6)):
        x, z = side * (line + rng.uniform(0.8, 10)), rng.uniform(start, end)
        size, color, own = rng.uniform(0.8, 2.0), stage.pick(stage.style.leaves), stage.stream()
        stage.add(z, bush, x, z, size, color, own)
    if rng.random() < 0.6:
        _border(stage, side, line + 0.1, start, end)


def _lot(stage: Stage, side: int, line: float, start: float, end: float) -> None:
    """Open ground behind a fence, houses at its back."""
    rng = stage.rng
    if rng.random() < 0.7:
        stage.road.sides[side].grass_plots.append((start, end))
    _house(stage, side, line + rng.uniform(8, 16), start + 0.5, end - 0.5)
    _height_of(stage, side, start, end, 0.0)
    _border(stage, side, line + 0.1, start, end)
    if rng.random() < 0.7:
        plant(stage, side * (line + rng.uniform(2, 7)), rng.uniform(start, end))


def _walled(stage: Stage, side: int, line: float, start: float, end: float) -> None:
    """A high wall with trees behind it."""
    rng = stage.rng
    height = float(rng.uniform(1.8, 3.4))
    facing = stage.canvas.light.on((-side, 0.0, 0.0))
    shader = brick_wall(stage.pick(_BRICKS), height, stage.style.texture, facing)
    stage.strip(side * line, (start, end), height, shader, WALL)
    _height_of(stage, side, start, end, height)
    for _ in range(max(1, rng.poisson((end - start) / 5))):
        plant(stage, side * (line + rng.uniform(2, 9)), rng.uniform(start, end))


def paint_skyline(stage: Stage) -> None:
    """Far roofs and treetops along the horizon, behind everything that is furnished."""
    rng, canvas = stage.rng, stage.canvas
    camera, light = canvas.camera, canvas.light
    for z, kinds in ((300.0, 0.7), (230.0, 0.35)):
        reach = z * camera.width / camera.focal
        x = camera.x - camera.bend(z) - reach
        while x < camera.x - camera.bend(z) + reach:
            width = rng.uniform(10, 34)
            if rng.random() < kinds:
                height = rng.uniform(6, 0.9 * stage.style.building_height[1])
                color = scale(stage.pick(stage.style.facades), light.on((0, 0, -1)) * 0.85)
                box = [(x, -2, z), (x + width, -2, z), (x + width, height, z), (x, height, z)]
                canvas.world(box, color, BUILDING)
            else:
                color = scale(stage.pick(stage.style.leaves), light.ambient)
                top = rng.uniform(5, 12)
                arc = [
                    (
                        x + width * (0.5 - 0.62 * math.cos(t)),
                        top * math.sin(t) * rng.uniform(0.8, 1),
                        z,
                    )
                    for t in np.linspace(0, math.pi, 14)
                ]
                canvas.world([(x, -2, z), *arc, (x + width, -2, z)], color, VEGETATION)
            x += width
