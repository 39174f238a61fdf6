"""Things with faces: placed on the road in any direction, lit, culled and painted back to front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from examples.streets.canvas import NEAR, Canvas, Color, Point3, mix, scale

__all__ = ["Decal", "Face", "Solid", "across", "along", "slab", "wheel"]

Decal = tuple[Sequence[Point3], Color]

_CIRCLE = [(math.cos(t), math.sin(t)) for t in (step * math.pi / 7 for step in range(14))]
_DETAIL = 7  # pixels of width under which decals are skipped


@dataclass
class Face:
    """A flat polygon in the solid's own coordinates: (metres from its rear, to its right, up)."""

    points: Sequence[Point3]
    color: Color
    decals: list[Decal] = field(default_factory=list)
    gloss: float = 0.0  # share of sky it mirrors when it faces up


@dataclass
class Solid:
    """A body made of faces, all of one class, as good as convex."""

    label: int
    length: float
    width: float
    faces: list[Face]

    def paint(self, canvas: Canvas, x: float, z: float, heading: float) -> None:
        """Paint it with its middle at (X, Z); heading 0 drives ahead, pi comes towards us."""
        camera, light = canvas.camera, canvas.light
        heading += math.atan(camera.curvature * z)  # the way the road goes there
        sine, cosine = math.sin(heading), math.cos(heading)
        shift = camera.bend(z)

        def world(point: Point3) -> Point3:
            ahead, right = point[0] - self.length / 2, point[1]
            wz = z + ahead * cosine - right * sine
            # canvas.world bends every point; a solid is bent as a whole, by its middle.
            return (x + ahead * sine + right * cosine + shift - camera.bend(wz), point[2], wz)

        middle = world((self.length / 2, 0.0, 0.8))
        visible = []
        for face in self.faces:
            points = [world(point) for point in face.points]
            if min(point[2] for point in points) < NEAR:
                return
            center = _mean(points)
            normal = _normal(points, center, middle)
            eye = (camera.x - camera.bend(center[2]), camera.height, 0.0)
            if sum(n * (e - c) for n, e, c in zip(normal, eye, center, strict=True)) > 0:
                visible.append((math.dist(center, eye), face, points, normal))
        visible.sort(key=lambda item: -item[0])
        for distance, face, points, normal in visible:
            brightness = light.on(normal)
            tone = mix(scale(face.color, brightness), light.haze, face.gloss * max(0.0, normal[1]))
            canvas.world(points, tone, self.label)
            if camera.focal * self.width / distance < _DETAIL:
                continue
            for decal, color in face.decals:
                lit = scale(color, 0.3 + 0.7 * brightness)
                canvas.world([world(point) for point in decal], lit, self.label)

    def footprint(
        self, x: float, z: float, heading: float, grow: float
    ) -> list[tuple[float, float]]:
        """(X, Z) of its corners on the ground, ``grow`` metres further out: where its shadow is."""
        sine, cosine = math.sin(heading), math.cos(heading)
        a, r = self.length / 2 + grow, self.width / 2 + grow
        corners = ((-a, -r), (a, -r), (a, r), (-a, r))
        return [(x + p * sine + q * cosine, z + p * cosine - q * sine) for p, q in corners]


def _mean(points: Sequence[Point3]) -> Point3:
    x, y, z = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return x, y, z


def _normal(points: Sequence[Point3], center: Point3, inside: Point3) -> Point3:
    """Unit normal of a face, pointing away from ``inside``."""
    a = [points[1][i] - points[0][i] for i in range(3)]
    b = [points[2][i] - points[0][i] for i in range(3)]
    cross = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    size = math.sqrt(sum(c * c for c in cross)) or 1.0
    outward = sum(c * (m - i) for c, m, i in zip(cross, center, inside, strict=True))
    size = math.copysign(size, outward)
    return cross[0] / size, cross[1] / size, cross[2] / size


def across(at: float, left: float, right: float, low: float, high: float) -> list[Point3]:
    """A rectangle across the solid, ``at`` metres from its rear."""
    return [(at, left, low), (at, right, low), (at, right, high), (at, left, high)]


def along(side: float, rear: float, front: float, low: float, high: float) -> list[Point3]:
    """A rectangle along the solid, ``side`` metres to its right."""
    return [(rear, side, low), (front, side, low), (front, side, high), (rear, side, high)]


def slab(a: tuple[float, float, float], b: tuple[float, float, float]) -> list[Point3]:
    """A rectangle (or trapezium) between two crossbars, each (from rear, height, half width)."""
    return [(a[0], -a[2], a[1]), (a[0], a[2], a[1]), (b[0], b[2], b[1]), (b[0], -b[2], b[1])]


def wheel(at: float, radius: float, side: float) -> list[Decal]:
    """A wheel with its arch, seen from the side."""

    def disc(share: float) -> list[Point3]:
        reach = radius * share
        return [(at + reach * cosine, side, radius + reach * sine) for cosine, sine in _CIRCLE]

    arch = [(a, s, max(h, 0.3)) for a, s, h in disc(1.2)]
    tyre: Color = (30, 30, 32)
    return [
        (arch, (16, 16, 17)),
        (disc(1.0), tyre),
        (disc(0.64), (136, 138, 142)),
        (disc(0.5), (92, 94, 98)),
        (disc(0.2), tyre),
    ]
