"""Sky, and everything flat: road, markings, kerbs, sidewalks, grass, and the shadows on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from examples.streets.canvas import Canvas
from examples.streets.style import Style
from examples.streets.texture import Array, fade, grit, noise_tile, rgb, sample

__all__ = ["Road", "Shadow", "Side", "paint_ground", "paint_sky"]

ROAD, SIDEWALK, TERRAIN, SKY = 0, 1, 9, 10

Shadow = tuple[float, list[tuple[float, float]]]
"""A polygon on the ground: how much light it takes (0..1), and (X, Z) of its corners."""


@dataclass
class Side:
    """One side of the road, from the kerb outwards; widths in metres."""

    verge: float
    sidewalk: float
    parking: bool
    grass_plots: list[tuple[float, float]] = field(default_factory=list)  # Z ranges beyond it
    heights: Array = field(default_factory=lambda: np.zeros(512, dtype=np.float32))
    """Height of what stands at the building line, for every half metre of Z: casts the shadow."""


@dataclass
class Road:
    """The street's cross-section and what is on it. X is 0 on its axis."""

    half_width: float
    lanes: int
    lane_width: float
    sides: dict[int, Side]  # -1: left, 1: right
    crossings: list[tuple[float, float]]  # Z ranges of crossing streets
    zebras: list[float]  # Z where one begins
    rails: float | None  # X of a tramway's middle
    median: float  # width of a green median, or 0
    dashed: bool

    def building_line(self, side: int) -> float:
        """Distance from the axis at which plots begin."""
        part = self.sides[side]
        return self.half_width + part.verge + part.sidewalk

    def in_crossing(self, z: float, margin: float = 0.0) -> bool:
        """Whether ``z`` lies in a crossing street, widened by ``margin``."""
        return any(start - margin <= z <= end + margin for start, end in self.crossings)


def paint_sky(canvas: Canvas, style: Style, rng: np.random.Generator) -> None:
    """The sky down to the horizon; what stands there covers the rest."""
    camera = canvas.camera
    rows = min(camera.height_px, math.ceil(camera.cy) + 2)
    v = (np.arange(rows, dtype=np.float32) / max(rows, 1))[:, None, None]
    top, low = rgb(style.sky_top), rgb(style.sky_low)
    colors = np.repeat(top + (low - top) * v**1.3, camera.width, axis=1)
    # A flat layer of cloud seen from below: rows near the horizon are far away.
    distance = camera.focal / (camera.cy - np.arange(rows) + 0.06 * camera.focal)
    across = (np.arange(camera.width) - camera.cx) / camera.focal
    offset = rng.uniform(0, 256, 2)
    cover = sample(
        noise_tile(1.7),
        (distance * 40)[:, None] + offset[0],
        across[None, :] * distance[:, None] * 40 + offset[1],
    )
    amount = rng.uniform(*style.clouds)
    cloud = np.clip((cover + (amount * 3.2 - 1.9)) * 0.7, 0, 1)[:, :, None] * np.float32(0.9)
    shaded = rgb(style.cloud_color) * (1 - 0.10 * np.clip(cover, 0, 2))[:, :, None]
    colors += (shaded - colors) * cloud
    mask = np.ones(colors.shape[:2], dtype=bool)
    canvas.paste(0, 0, colors, mask, SKY)


def paint_ground(
    canvas: Canvas,
    style: Style,
    road: Road,
    shadows: list[Shadow],
    rng: np.random.Generator,
) -> None:
    """Everything below the horizon, with its shadows."""
    camera, light = canvas.camera, canvas.light
    first = max(0, math.floor(camera.cy + 0.5) + 1)
    v = np.arange(first, camera.height_px, dtype=np.float32) + 0.5 - np.float32(camera.cy)
    z = (camera.height * camera.focal / np.maximum(v, 0.3))[:, None].astype(np.float32)
    u = np.arange(camera.width, dtype=np.float32)[None, :] + 0.5 - np.float32(camera.cx)
    x = u * (z / camera.focal) + np.float32(camera.x) - 0.5 * np.float32(camera.curvature) * z * z
    footprint = z / camera.focal
    noise = grit(z, x, footprint * 2.0) * style.texture

    colors, labels = _surfaces(style, road, x, z, footprint, noise, rng)
    sunlit = light.on((0, 1, 0))
    taken = style.shadow * _cast_by_buildings(road, light.sun, x, z)
    shade = 1 - np.maximum(taken, _shadow_mask(canvas, shadows, first))
    colors *= (sunlit * shade)[:, :, None]
    canvas.paste(0, first, canvas.haze(colors, z), np.ones(labels.shape, bool), labels)


def _stripe(x: Array, center: float, width: float, footprint: Array) -> Array:
    """Share of a pixel that a line along the road covers."""
    edge = np.maximum(footprint, 1e-4)
    return np.clip((width / 2 - np.abs(x - center)) / edge + 0.5, 0, 1) * np.minimum(
        1, width / edge
    )


def _surfaces(
    style: Style,
    road: Road,
    x: Array,
    z: Array,
    footprint: Array,
    noise: Array,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Colours [h, w, 3] in full light and trainIds [h, w]."""
    asphalt = rgb(style.asphalt) + rng.uniform(-1, 1) * style.asphalt_spread
    worn = np.cos((x / road.lane_width) * (4 * math.pi)) * fade(1.5, footprint)
    brightness = 1 + 0.045 * noise + 0.025 * worn * style.texture
    brightness = _repairs(brightness, x, z, rng, style.texture)
    colors = asphalt * brightness[:, :, None]
    labels = np.full(noise.shape, ROAD, dtype=np.uint8)

    paint = _markings(road, x, z, footprint) * np.clip(0.82 + 0.12 * noise, 0, 1)
    colors += (rgb((206, 206, 202)) - colors) * paint[:, :, None]
    if not road.median and road.rails is None:
        if road.dashed:
            line = _stripe(x, 0.0, 0.16, footprint) * _dashes(z, 9.0, 4.0)
        else:
            line = _stripe(x, -0.14, 0.12, footprint) + _stripe(x, 0.14, 0.12, footprint)
        line = line * ~_inside(z, road.crossings, 3.0)
        colors += (rgb(style.center_line) - colors) * (0.8 * line)[:, :, None]
    if road.rails is not None:
        for rail in (road.rails - 0.72, road.rails + 0.72):
            steel = _stripe(x, rail, 0.12, footprint)
            colors += (rgb((60, 58, 58)) - colors) * (0.85 * steel)[:, :, None]

    crossing = _inside(z, road.crossings, 0.0)
    paved = rgb(style.paving) * (1 + 0.06 * noise + _slabs(x, z, footprint))[:, :, None]
    dark = rgb(style.grass) * (1 + 0.16 * noise)[:, :, None]
    kerb = rgb(style.paving) * np.float32(1.12)
    for side, part in road.sides.items():
        out = x * side - road.half_width  # metres beyond the kerb
        beyond = (out >= 0) & ~crossing
        _put(colors, labels, beyond, paved, SIDEWALK)
        if part.verge:
            _put(colors, labels, beyond & (out > 0.3) & (out < part.verge), dark, TERRAIN)
        far = beyond & (out >= part.verge + part.sidewalk + 0.1)
        _put(colors, labels, far & _inside(z, part.grass_plots, 0.0), dark, TERRAIN)
        colors[beyond & (out < 0.22)] = kerb
    if road.median:
        inside = (np.abs(x) < road.median / 2) & ~_inside(z, road.crossings, 4.0)
        _put(colors, labels, inside, dark, TERRAIN)
        rim = inside & (np.abs(x) > road.median / 2 - 0.2)
        colors[rim], labels[rim] = kerb, SIDEWALK
    return colors, labels


def _put(colors: Array, labels: Array, where: Array, source: Array, label: int) -> None:
    colors[where] = source[where]
    labels[where] = label


def _inside(z: Array, ranges: list[tuple[float, float]], margin: float) -> Array:
    found = np.zeros(z.shape, dtype=bool)
    for start, end in ranges:
        found |= (z >= start - margin) & (z <= end + margin)
    return found


def _dashes(z: Array, period: float, length: float) -> Array:
    return (np.mod(z, period) < length).astype(np.float32)


def _markings(road: Road, x: Array, z: Array, footprint: Array) -> Array:
    """White paint: lanes, edges, parking bays, stop lines and zebra crossings, as coverage."""
    clear = ~_inside(z, road.crossings, 3.5)
    paint = np.zeros(x.shape, dtype=np.float32)
    start = road.median / 2
    for side, part in road.sides.items():
        for lane in range(1, road.lanes):
            line = _stripe(x, side * (start + lane * road.lane_width), 0.13, footprint)
            paint += line * _dashes(z, 11.0, 4.5)
        edge = side * (start + road.lanes * road.lane_width)
        solid = _dashes(z, 1.5, 0.75) if part.parking else 1.0
        paint += _stripe(x, edge, 0.12, footprint) * solid * 0.8
    paint = paint * clear
    for zebra in road.zebras:
        on = (z >= zebra) & (z <= zebra + 3.2) & (np.abs(x) < road.half_width - 0.2)
        bars = np.clip(
            (0.25 - np.abs(np.mod(x, 1.0) - 0.5)) / np.maximum(footprint, 1e-3) + 0.5, 0, 1
        )
        paint = np.where(on, bars * fade(1.0, footprint) + 0.5 * (1 - fade(1.0, footprint)), paint)
        stop = (z >= zebra - 1.8) & (z <= zebra - 1.3) & (x > 0) & (x < road.half_width)
        paint = np.where(stop, 1.0, paint)
    return np.clip(paint, 0, 1)


def _repairs(
    brightness: Array, x: Array, z: Array, rng: np.random.Generator, texture: float
) -> Array:
    """Patched rectangles and tarred cracks, a little darker or lighter than the rest."""
    for _ in range(rng.integers(1, 6)):
        left, near = rng.uniform(-6, 5), rng.uniform(3, 30)
        width, length = rng.uniform(0.6, 2.5), rng.uniform(1.5, 9)
        inside = (x > left) & (x < left + width) & (z > near) & (z < near + length)
        brightness = brightness * (1 + inside * np.float32(rng.uniform(-0.12, 0.07) * texture))
    return brightness


def _slabs(x: Array, z: Array, footprint: Array) -> Array:
    """Joints between paving slabs, as a change of brightness."""
    across = np.abs(np.mod(x, 0.9) - 0.45) > 0.42
    ahead = np.abs(np.mod(z, 0.9) - 0.45) > 0.42
    return -0.10 * (across | ahead) * fade(0.5, footprint * 3)


def _shadow_mask(canvas: Canvas, shadows: list[Shadow], first: int) -> Array:
    """Light that the shadows of objects take, for rows from ``first`` on: float32 [h, w]."""
    camera = canvas.camera
    mask = Image.new("L", (camera.width, camera.height_px))
    draw = ImageDraw.Draw(mask)
    for strength, corners in sorted(shadows, key=lambda shadow: shadow[0]):
        if min(z for _, z in corners) > 0.8:
            points = [camera.project(x, 0.0, z) for x, z in corners]
            draw.polygon(points, fill=round(255 * strength))
    soft = mask.filter(ImageFilter.BoxBlur(camera.height_px / 300))
    return np.asarray(soft, dtype=np.float32)[first:] / 255


def _cast_by_buildings(road: Road, sun: tuple[float, float, float], x: Array, z: Array) -> Array:
    """1 where what stands along the sun's side keeps it off the ground."""
    side = 1 if sun[0] > 0 else -1
    if abs(sun[0]) < 0.05 or sun[1] <= 0:
        return np.zeros(x.shape, dtype=np.float32)
    distance = road.building_line(side) - x * side
    steps = distance / abs(sun[0])  # along the ray to the building line, in units of the vector
    at = np.clip((z + steps * sun[2]) * 2, 0, 511).astype(np.int32)
    blocked = road.sides[side].heights[at] > steps * sun[1]
    return (blocked & (distance > 0)).astype(np.float32)
