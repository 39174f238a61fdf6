"""A picture and its labels as one image, and the camera that looks at the street.

World coordinates are metres: X to the right of the road's axis, Y up from the ground, Z ahead of
the camera. The road bends: everything at Z moves sideways by ``bend(Z)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from examples.streets.texture import Array, rgb

__all__ = ["NEAR", "Camera", "Canvas", "Color", "Light", "Point3", "Shader", "mix", "scale"]

Color = tuple[float, float, float]
Point3 = tuple[float, float, float]
Shader = Callable[[Array, Array, Array, Array], Array]
"""Colours of a wall for (s, y, footprint along, footprint up), see ``Canvas.wall``."""

NEAR = 1.2  # metres: what is closer is cut off


def mix(a: Color, b: Color, amount: float) -> Color:
    """``a`` with ``amount`` (0..1) of ``b``."""
    return (
        a[0] + (b[0] - a[0]) * amount,
        a[1] + (b[1] - a[1]) * amount,
        a[2] + (b[2] - a[2]) * amount,
    )


def scale(color: Color, factor: float) -> Color:
    """A colour made brighter or darker."""
    return (color[0] * factor, color[1] * factor, color[2] * factor)


@dataclass(frozen=True)
class Camera:
    """A pinhole at X = ``x``, ``height`` above the road, with its vanishing point at (cx, cy)."""

    width: int
    height_px: int
    focal: float
    cx: float
    cy: float
    x: float
    height: float
    curvature: float

    def bend(self, z: float) -> float:
        """Sideways shift of the road at ``z``."""
        return 0.5 * self.curvature * z * z

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Pixel coordinates of a world point."""
        scale_at = self.focal / z
        return (
            self.cx + (x - self.x + self.bend(z)) * scale_at,
            self.cy + (self.height - y) * scale_at,
        )


@dataclass(frozen=True)
class Light:
    """A sun (unit vector towards it) and an ambient light, as factors on colours; and the haze."""

    sun: Point3
    sun_strength: float
    ambient: float
    haze: Color
    visibility: float

    def on(self, normal: Point3) -> float:
        """Brightness of a surface of this normal."""
        facing = sum(a * b for a, b in zip(self.sun, normal, strict=True))
        return self.ambient * (0.9 + 0.1 * normal[1]) + self.sun_strength * max(0.0, facing)

    def hazy(self, z: float) -> float:
        """Share of haze in what is seen at ``z``."""
        return 1.0 - math.exp(-z / self.visibility)


class Canvas:
    """What has been painted so far. The class travels as the fourth channel of the colour, so a
    pixel cannot get one without the other.
    """

    def __init__(self, camera: Camera, light: Light) -> None:
        self.camera = camera
        self.light = light
        self.image = Image.new("RGBA", (camera.width, camera.height_px))
        self._draw = ImageDraw.Draw(self.image)

    def _fill(self, color: Color, label: int, z: float) -> tuple[int, int, int, int]:
        hazy = self.light.hazy(z)
        red, green, blue = (
            min(255, max(0, round(c + (h - c) * hazy)))
            for c, h in zip(color, self.light.haze, strict=True)
        )
        return red, green, blue, label

    def polygon(
        self, points: Sequence[tuple[float, float]], color: Color, label: int, z: float
    ) -> None:
        """Fill a polygon in pixel coordinates, hazed as at ``z``."""
        self._draw.polygon(points, fill=self._fill(color, label, z))

    def ellipse(
        self, box: tuple[float, float, float, float], color: Color, label: int, z: float
    ) -> None:
        """Fill an ellipse given by its pixel bounds (left, top, right, bottom)."""
        if box[2] >= box[0] and box[3] >= box[1]:
            self._draw.ellipse(box, fill=self._fill(color, label, z))

    def line(
        self,
        points: Sequence[tuple[float, float]],
        width: float,
        color: Color,
        label: int,
        z: float,
    ) -> None:
        """Draw a line ``width`` pixels wide, at least one."""
        self._draw.line(
            points, fill=self._fill(color, label, z), width=max(1, round(width)), joint="curve"
        )

    def world(self, points: Sequence[Point3], color: Color, label: int) -> None:
        """Fill a polygon given in the world; nothing if a corner is closer than ``NEAR``."""
        if min(point[2] for point in points) < NEAR:
            return
        depth = sum(point[2] for point in points) / len(points)
        self.polygon([self.camera.project(*point) for point in points], color, label, depth)

    def beneath(self, left: int, top: int, width: int, height: int) -> Array:
        """The colours painted so far in a box: float32 [height, width, 3]."""
        box = self.image.crop((left, top, left + width, top + height))
        return np.asarray(box, dtype=np.float32)[:, :, :3]

    def paste(self, left: int, top: int, colors: Array, mask: Array, label: int | Array) -> None:
        """Paint colours (float [h, w, 3], already hazed) where ``mask`` (bool [h, w]) is true."""
        height, width = mask.shape
        block = np.empty((height, width, 4), dtype=np.uint8)
        block[:, :, :3] = np.clip(colors + 0.5, 0, 255)
        block[:, :, 3] = label
        where = Image.fromarray(mask.astype(np.uint8) * 255)
        self.image.paste(Image.fromarray(block), (left, top), where)

    def haze(self, colors: Array, z: Array) -> Array:
        """Colours float [h, w, 3] as seen at ``z`` (broadcast over [h, w])."""
        share = (1.0 - np.exp(-z / self.light.visibility))[..., None]
        return colors + (rgb(self.light.haze) - colors) * share

    def wall(
        self,
        a: tuple[float, float],
        b: tuple[float, float],
        height: float,
        shader: Shader,
        label: int,
        *,
        along: float = 0.0,
        open_work: bool = False,
    ) -> None:
        """Paint an upright wall from ``a`` to ``b`` (X, Z of its ends), ``height`` metres high.

        ``shader(s, y, footprint_s, footprint_y)`` gives its colours: float [h, w, 3] for metres
        along (``along`` plus the distance from ``a``) and above ground, and the metres a pixel
        spans either way; with ``open_work``, [h, w, 4], the fourth the share of the wall's own
        colour against what is behind it.
        """
        camera = self.camera
        length = math.hypot(b[0] - a[0], b[1] - a[1])
        clipped = _clip_near(a, b)
        if clipped is None or length == 0:
            return
        (xa, za), (xb, zb), t0, t1 = clipped
        xa, xb = xa - camera.x + camera.bend(za), xb - camera.x + camera.bend(zb)
        ends = (camera.cx + camera.focal * xa / za, camera.cx + camera.focal * xb / zb)
        left = max(0, math.ceil(min(ends) - 0.5))
        right = min(camera.width, math.ceil(max(ends) - 0.5))
        if left >= right:
            return
        u = np.arange(left, right, dtype=np.float64) + 0.5 - camera.cx
        numerator = u * za - camera.focal * xa
        denominator = camera.focal * (xb - xa) - u * (zb - za)
        t = np.clip(numerator / denominator, 0.0, 1.0)
        z = za + t * (zb - za)
        slope = np.abs((za * denominator + numerator * (zb - za)) / denominator**2)
        top = camera.cy + camera.focal * (camera.height - height) / z
        bottom = camera.cy + camera.focal * camera.height / z
        first = max(0, math.floor(float(np.min(top))))
        last = min(camera.height_px, math.ceil(float(np.max(bottom))))
        if first >= last:
            return
        v = (np.arange(first, last, dtype=np.float64) + 0.5)[:, None]
        mask = (v >= top) & (v < bottom)
        s = (along + (t0 + t * (t1 - t0)) * length)[None, :]
        y = camera.height - (v - camera.cy) * (z / camera.focal)
        footprint_s = np.maximum(slope * (t1 - t0) * length, 1e-3)[None, :]
        footprint_y = (z / camera.focal)[None, :]
        where = (s, y, footprint_s, footprint_y)
        colors = shader(*(part.astype(np.float32) for part in where))
        hazed = self.haze(colors[..., :3], z[None, :].astype(np.float32))
        if open_work:
            behind = self.beneath(left, first, right - left, last - first)
            hazed = behind + (hazed - behind) * colors[..., 3:]
        self.paste(left, first, hazed, mask, label)


def _clip_near(
    a: tuple[float, float], b: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float], float, float] | None:
    """The part of a segment beyond ``NEAR`` and the shares of its length where it starts, ends."""
    if a[1] < NEAR and b[1] < NEAR:
        return None
    t0, t1 = 0.0, 1.0
    if a[1] < NEAR:
        t0 = (NEAR - a[1]) / (b[1] - a[1])
    elif b[1] < NEAR:
        t1 = (NEAR - a[1]) / (b[1] - a[1])

    def at(t: float) -> tuple[float, float]:
        return (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]))

    return at(t0), at(t1), t0, t1
