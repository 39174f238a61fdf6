"""Laying out a street of a domain at random, and painting it."""

from __future__ import annotations

import math

import numpy as np

from examples.streets.camera_effects import develop
from examples.streets.canvas import Camera, Canvas, Light
from examples.streets.domains import STYLES
from examples.streets.ground import Road, Side, paint_ground, paint_sky
from examples.streets.plots import line_with_plots, paint_skyline
from examples.streets.sidewalks import furnish_sidewalk
from examples.streets.stage import END, Stage
from examples.streets.style import Style
from examples.streets.texture import Array
from examples.streets.traffic import add_traffic

__all__ = ["render_street"]

_HOOD_LABEL = 255


def render_street(
    domain: str, seed: int | list[int], width: int, height: int
) -> tuple[Array, Array]:
    """Draw one street.

    Args:
        domain: ``gtav``, ``synthia`` or ``cityscapes``.
        seed: of everything in it; the same seed at another size shows the same street.
        width, height: of the picture in pixels.

    Returns:
        The picture, uint8 [height, width, 3] (RGB), and its trainIds, uint8 [height, width].

    Raises:
        ValueError: an unknown domain, or a size under 32 pixels.
    """
    if domain not in STYLES:
        raise ValueError(f"domain: expected one of {', '.join(STYLES)}, got {domain!r}")
    if min(width, height) < 32:
        raise ValueError(f"size: expected at least 32 pixels a side, got {width}x{height}")
    style = STYLES[domain]
    rng = np.random.default_rng(seed)
    road = _random_road(style, rng)
    camera = _random_camera(style, road, rng, width, height)
    canvas = Canvas(camera, _random_light(style, rng))
    stage = Stage(style, road, canvas, rng)
    for side in (-1, 1):
        line_with_plots(stage, side)
    add_traffic(stage)
    for side in (-1, 1):
        furnish_sidewalk(stage, side)

    paint_sky(canvas, style, stage.stream())
    paint_ground(canvas, style, road, stage.shadows, stage.stream())
    paint_skyline(stage)
    stage.paint()
    if style.hood:
        _paint_hood(canvas, rng)
    painted = np.asarray(canvas.image)
    picture = develop(painted[:, :, :3], style, stage.stream())
    return picture, painted[:, :, 3].copy()


def _random_road(style: Style, rng: np.random.Generator) -> Road:
    lanes = int(rng.choice(style.lanes))
    lane_width = rng.uniform(*style.lane_width)
    median = rng.uniform(1.5, 4.0) if lanes > 1 and rng.random() < style.median_chance else 0.0
    sides = {
        side: Side(
            verge=rng.uniform(1.2, 2.4) if rng.random() < style.verge_chance else 0.0,
            sidewalk=rng.uniform(*style.sidewalk),
            parking=rng.random() < style.parking_chance,
        )
        for side in (-1, 1)
    }
    crossings, zebras = [], []
    at = rng.uniform(0.25, 1.0) * style.crossing_every
    while at < END - 20:
        width = rng.uniform(7, 14)
        crossings.append((at, at + width))
        if rng.random() < 0.8:
            zebras.append(at - 4.5)
        at += width + rng.uniform(0.6, 1.4) * style.crossing_every
    half_width = median / 2 + lanes * lane_width + 2.15 * any(s.parking for s in sides.values())
    tram = median == 0 and rng.random() < style.train_chance * 1.6
    rails = (-1 if rng.random() < 0.7 or lanes == 1 else 1) * lane_width / 2 if tram else None
    return Road(
        half_width, lanes, lane_width, sides, crossings, zebras, rails, median, rng.random() < 0.6
    )  # fmt: skip


def _random_camera(
    style: Style, road: Road, rng: np.random.Generator, width: int, height: int
) -> Camera:
    lane = int(rng.integers(road.lanes))
    x = road.median / 2 + (lane + 0.5) * road.lane_width + rng.uniform(-0.4, 0.4)
    swing = rng.uniform(-1, 1) * style.swing
    return Camera(
        width=width,
        height_px=height,
        focal=rng.uniform(*style.focal) * width,
        cx=(0.5 + swing) * width,
        cy=rng.uniform(*style.horizon) * height,
        x=x,
        height=rng.uniform(*style.camera_height),
        curvature=float(np.clip(rng.normal(0, 0.5), -1, 1)) * style.bend,
    )


def _random_light(style: Style, rng: np.random.Generator) -> Light:
    elevation = math.radians(rng.uniform(*style.sun_height))
    azimuth = rng.uniform(0, 2 * math.pi)
    level = math.cos(elevation)
    sun = (level * math.sin(azimuth), math.sin(elevation), level * math.cos(azimuth))
    return Light(
        sun=sun,
        sun_strength=rng.uniform(*style.sun_strength),
        ambient=rng.uniform(*style.ambient),
        haze=style.sky_low,
        visibility=rng.uniform(*style.visibility),
    )


def _paint_hood(canvas: Canvas, rng: np.random.Generator) -> None:
    """The bonnet of the car that carries the camera."""
    width, height = canvas.camera.width, canvas.camera.height_px
    top = height * rng.uniform(0.93, 0.96)
    tone = rng.uniform(28, 46)
    points = [
        (width * (i / 24), top + height * 0.10 * (2 * i / 24 - 1) ** 4 * 1.4) for i in range(25)
    ]
    corners = [(width, height), (0.0, height)]
    canvas.polygon([*points, *corners], (tone, tone + 2, tone + 4), _HOOD_LABEL, 0.0)
    sheen = [(u, v + height * 0.012) for u, v in points]
    gleam = (tone * 2.4, tone * 2.5, tone * 2.6)
    canvas.line(sheen, height * 0.012, gleam, _HOOD_LABEL, 0.0)
