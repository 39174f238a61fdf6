"""Trees, palms and bushes."""

from __future__ import annotations

import math

import numpy as np

from examples.streets.canvas import Canvas, Color, scale
from examples.streets.texture import noise_tile, rgb, sample

__all__ = ["bush", "palm", "tree"]

VEGETATION = 8
_BARK: Color = (74, 62, 52)


def _trunk(canvas: Canvas, x: float, z: float, top: float, width: float, lean: float) -> None:
    points = ((x - width / 2, 0), (x + width / 2, 0), (x + lean + width / 3, top))
    corners = [(px, py, z) for px, py in (*points, (x + lean - width / 3, top))]
    canvas.world(corners, scale(_BARK, canvas.light.ambient), VEGETATION)
    lit = [(x + width * 0.1, 0, z), (x + width / 2, 0, z), (x + lean + width / 3, top, z)]
    canvas.world(lit, scale(_BARK, canvas.light.on((0.7, 0, -0.7)) * 1.1), VEGETATION)


def _leaves(
    canvas: Canvas,
    blobs: list[tuple[float, float, float]],
    z: float,
    color: Color,
    rng: np.random.Generator,
    ragged: float,
) -> None:
    """A crown: the union of discs (X, Y, radius) with an edge of leaves."""
    camera, light = canvas.camera, canvas.light
    pixels = camera.focal / z
    margin = 1.25
    u0, v0 = camera.project(
        min(x - r * margin for x, _, r in blobs), max(y + r * margin for _, y, r in blobs), z
    )
    u1, v1 = camera.project(
        max(x + r * margin for x, _, r in blobs), min(y - r * margin for _, y, r in blobs), z
    )
    left, top = max(0, math.floor(u0)), max(0, math.floor(v0))
    right, bottom = min(camera.width, math.ceil(u1)), min(camera.height_px, math.ceil(v1))
    if left >= right or top >= bottom:
        return
    u = (np.arange(left, right, dtype=np.float32) + 0.5)[None, :]
    v = (np.arange(top, bottom, dtype=np.float32) + 0.5)[:, None]
    x = (u - np.float32(camera.cx)) / np.float32(pixels)
    y = np.float32(camera.height) - (v - np.float32(camera.cy)) / np.float32(pixels)
    off = rng.uniform(0, 256, 4)
    clusters = sample(noise_tile(1.1), y * 9 + off[0], x * 9 + off[1])
    # Leaves are as fine as the picture can show, down to four centimetres.
    density = float(np.clip(pixels * 0.45, 6, 26))
    fine = sample(noise_tile(0.4), y * density + off[2], x * density + off[3])
    best = np.full(clusters.shape, -9, dtype=np.float32)
    light_on = np.zeros_like(best)
    sun_x, sun_y, _ = light.sun
    for bx, by, radius in blobs:
        dx = (x - np.float32(bx - camera.x + camera.bend(z))) / np.float32(radius)
        dy = (y - np.float32(by)) / np.float32(radius)
        field = 1 - dx * dx - dy * dy
        nearer = field > best
        best = np.where(nearer, field, best)
        light_on = np.where(nearer, dx * np.float32(sun_x) + dy * np.float32(sun_y), light_on)
    mask = best + np.float32(ragged) * (0.5 * clusters + 0.6 * fine) > 0.15
    shade = light.ambient * (0.62 + 0.15 * clusters + 0.2 * fine)
    shade = shade + (0.16 + light.sun_strength * 0.55) * light_on + light.sun_strength * 0.28
    colors = rgb(color) * np.clip(shade, 0.18, 1.7)[..., None]
    colors[..., 0] += 8 * np.clip(light_on, 0, 1)
    canvas.paste(left, top, canvas.haze(colors, np.full((1, 1), z, np.float32)), mask, VEGETATION)


def tree(
    canvas: Canvas, x: float, z: float, height: float, color: Color, rng: np.random.Generator
) -> None:
    """A broad-leaved tree with a round or a narrow crown."""
    clear = height * rng.uniform(0.22, 0.36)
    lean = rng.uniform(-0.25, 0.25)
    _trunk(canvas, x, z, clear + height * 0.25, 0.05 * height * rng.uniform(0.6, 1.0), lean)
    spread = (height - clear) * rng.uniform(0.34, 0.52)
    middle = clear + (height - clear) * 0.5
    blobs = [(x + lean, middle, spread * 0.8)]
    for angle in np.linspace(0, 2 * math.pi, 7, endpoint=False) + rng.uniform(0, 1):
        reach = rng.uniform(0.5, 0.8)
        blobs.append(
            (
                x + lean + spread * reach * math.cos(angle),
                middle + (height - clear) * 0.42 * reach * math.sin(angle),
                spread * rng.uniform(0.38, 0.58),
            )
        )
    _leaves(canvas, blobs, z, color, rng, 0.42)


def palm(
    canvas: Canvas, x: float, z: float, height: float, color: Color, rng: np.random.Generator
) -> None:
    """A palm: a tall trunk and a head of hanging fronds."""
    lean = rng.uniform(-0.6, 0.6)
    _trunk(canvas, x, z, height, 0.34, lean)
    for angle in np.linspace(0, 2 * math.pi, 13, endpoint=False) + rng.uniform(0, 0.5):
        reach = rng.uniform(1.5, 2.3)
        out, rise = math.cos(angle) * reach, math.sin(angle) * 0.55
        tip = (x + lean + out, height + rise - 0.75 - 0.25 * abs(out), z)
        bow = (x + lean + out * 0.55, height + rise + 0.35, z)
        under = (x + lean + out * 0.55, height + rise - 0.05, z)
        bright = canvas.light.on((0.3 * math.cos(angle), 0.8, -0.5)) * rng.uniform(0.6, 1.05)
        canvas.world([(x + lean, height, z), bow, tip, under], scale(color, bright), VEGETATION)


def bush(
    canvas: Canvas, x: float, z: float, size: float, color: Color, rng: np.random.Generator
) -> None:
    """A low shrub of about this width."""
    blobs = [
        (
            x + rng.uniform(-0.5, 0.5) * size,
            size * rng.uniform(0.2, 0.45),
            size * rng.uniform(0.3, 0.45),
        )
        for _ in range(4)
    ]
    _leaves(canvas, blobs, z, color, rng, 0.35)
