"""Upright surfaces: house fronts, walls, fences, hedges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from examples.streets.canvas import Color, Shader, scale
from examples.streets.style import Style
from examples.streets.texture import Array, fade, grit, rgb

__all__ = ["Facade", "brick_wall", "fence", "hedge", "random_facade"]


@dataclass(frozen=True)
class Facade:
    """The pattern of a house front, and a shader of it."""

    wall: Color
    trim: Color
    glass: Color
    floor: float  # height of a floor, metres
    bay: float  # distance between windows
    window: tuple[float, float]  # share of the bay and of the floor that is glass
    ground: float  # height of the ground floor
    shop: Color | None  # colour of its sign, if there is a shop
    height: float
    balconies: bool
    bands: bool
    table: Array  # [16, 64] brightness of a window
    texture: float
    brightness: float = 1.0

    def __call__(self, s: Array, y: Array, footprint_s: Array, footprint_y: Array) -> Array:
        """Colours float [h, w, 3], see ``Canvas.wall``."""
        footprint = np.maximum(footprint_s, footprint_y)
        rough = 0.055 * self.texture * grit(y, s, footprint)
        grime = -0.10 * np.exp(-y / 1.2) - 0.05 * self.texture * (y > self.height - 0.8)
        colors = rgb(self.wall) * (1 + rough + grime)[..., None]
        self._bands(colors, y, footprint_y)

        column = s / self.bay
        row = (y - self.ground) / self.floor
        inside = np.where((row >= 0) & (y < self.height - 0.5), np.float32(1), np.float32(0))
        du = np.abs(column - np.floor(column) - 0.5) * self.bay
        dv = np.abs(row - np.floor(row) - 0.5) * self.floor
        half_w, half_h = self.window[0] * self.bay / 2, self.window[1] * self.floor / 2
        frame = _box(du, dv, half_w + 0.13, half_h + 0.15, footprint_s, footprint_y) * inside
        pane = _box(du, dv, half_w, half_h, footprint_s, footprint_y) * inside
        _blend(colors, rgb(self.trim), frame * np.float32(0.75))
        index = np.floor(row).astype(np.int32) % 16, np.floor(column).astype(np.int32) % 64
        shine = self.table[index] * (1 + 0.25 * (row - np.floor(row) - 0.5))
        _blend(colors, rgb(self.glass) * shine[..., None], pane)
        bars = np.where(np.minimum(du, np.abs(dv - 0.25)) < 0.04, pane * 0.6, 0)
        _blend(colors, rgb(self.trim), bars * fade(0.12, footprint))
        if self.balconies:
            rail = (dv > half_h * 0.55) & (row - np.floor(row) < 0.5) & (du < half_w + 0.35)
            odd = np.floor(column) % 3 != 1
            _blend(colors, rgb(scale(self.wall, 0.55)), rail * odd * inside * 0.85)
        if self.shop is not None:
            self._shop(colors, s, y, footprint_s, footprint_y)
        return colors * np.float32(self.brightness)

    def _bands(self, colors: Array, y: Array, footprint_y: Array) -> None:
        cornice = np.clip((y - (self.height - 0.45)) / footprint_y + 0.5, 0, 1)
        _blend(colors, rgb(self.trim), cornice * np.float32(0.8))
        if self.bands:
            offset = np.mod(y - self.ground + 0.15, self.floor)
            _blend(colors, rgb(scale(self.wall, 0.82)), (offset < 0.3) * fade(0.6, footprint_y))

    def _shop(
        self, colors: Array, s: Array, y: Array, footprint_s: Array, footprint_y: Array
    ) -> None:
        width = 4.6
        place = np.floor(s / width).astype(np.int32) % 64
        across = np.abs(np.mod(s, width) - width / 2)
        glass = (across < width * 0.43) & (y > 0.45) & (y < self.ground - 1.0)
        shine = self.table[3, place] * (0.8 + 0.5 * self.table[5, (place * 7) % 64])
        shine = shine * (1 - 0.16 * (np.abs(across - 0.9) < 0.06))
        _blend(colors, rgb(self.glass) * shine[..., None], glass * np.float32(0.95))
        sign = (y > self.ground - 0.95) & (y < self.ground - 0.25) & (across < width * 0.47)
        assert self.shop is not None
        hue = np.roll(rgb(self.shop), 1)
        tint = np.where((place % 3 == 0)[..., None], rgb(self.shop), hue)
        _blend(colors, tint * np.float32(0.9), sign * np.float32(0.9))
        letters = sign & (np.abs(y - self.ground + 0.6) < 0.16) & (np.mod(s * 2.3, 1) < 0.6)
        letters = letters & (across < width * 0.3)
        fine = fade(0.4, np.maximum(footprint_s, footprint_y))
        _blend(colors, rgb((235, 232, 225)), letters * fine * np.float32(0.8))


def _box(
    du: Array, dv: Array, half_w: float, half_h: float, footprint_s: Array, footprint_y: Array
) -> Array:
    """Share of a pixel inside a rectangle, at distances du, dv from its middle."""
    horizontal = np.clip((half_w - du) / footprint_s + 0.5, 0, 1)
    return horizontal * np.clip((half_h - dv) / footprint_y + 0.5, 0, 1)


def _blend(colors: Array, other: Array, amount: Array) -> None:
    colors += (other - colors) * amount[..., None]


def random_facade(rng: np.random.Generator, style: Style, height: float) -> Facade:
    """A house front of this height, as the domain has them."""
    base = style.facades[rng.integers(len(style.facades))]
    red, green, blue = (c * rng.uniform(0.88, 1.1) + rng.uniform(-7, 7) for c in base)
    wall = (red, green, blue)
    modern = rng.random() < style.glass_chance
    bright = np.clip(rng.normal(1.0, 0.3, (16, 64)), 0.45, 2.1).astype(np.float32)
    curtains = rng.random((16, 64)) < 0.18
    bright[curtains] *= np.float32(1.7)
    shop = (30.0, 60.0, 110.0), (150.0, 36.0, 34.0), (40.0, 90.0, 60.0), (190.0, 150.0, 50.0)
    return Facade(
        wall=wall,
        trim=scale(wall, float(rng.choice((0.68, 1.22, 1.3)))),
        glass=(96.0, 120.0, 140.0) if modern else (62.0, 70.0, 78.0),
        floor=rng.uniform(2.9, 3.6),
        bay=rng.uniform(1.5, 2.2) if modern else rng.uniform(2.1, 3.6),
        window=(0.86, 0.78) if modern else (rng.uniform(0.34, 0.52), rng.uniform(0.46, 0.62)),
        ground=rng.uniform(3.4, 4.4),
        shop=shop[rng.integers(len(shop))] if rng.random() < style.shop_chance else None,
        height=height,
        balconies=not modern and rng.random() < 0.25,
        bands=rng.random() < 0.5,
        table=bright,
        texture=style.texture,
    )


def brick_wall(color: Color, height: float, texture: float, brightness: float) -> Shader:
    """Shader of a free-standing wall with a coping stone."""

    def shader(s: Array, y: Array, footprint_s: Array, footprint_y: Array) -> Array:
        footprint = np.maximum(footprint_s, footprint_y)
        course = np.floor(y / 0.3)
        joint = np.minimum(np.mod(y, 0.3), np.mod(s + 0.35 * (course % 2), 0.7)) < 0.04
        rough = 0.10 * texture * grit(y, s, footprint) - 0.22 * joint * fade(0.3, footprint)
        colors = rgb(color) * (1 + rough - 0.12 * np.exp(-y / 0.5))[..., None]
        colors[np.broadcast_to(y > height - 0.14, colors.shape[:2])] *= np.float32(1.2)
        return colors * np.float32(brightness)

    return shader


def fence(color: Color, height: float, brightness: float, bars: float) -> Shader:
    """Open-work shader of a fence: posts, two rails, and bars ``bars`` metres apart."""

    def shader(s: Array, y: Array, footprint_s: Array, footprint_y: Array) -> Array:
        rail = np.minimum(np.abs(y - 0.2), np.abs(y - height + 0.1)) < 0.05
        post = np.mod(s, 2.4) < 0.1
        bar = np.mod(s, bars) < bars * 0.3
        visible = fade(bars, footprint_s)
        share = np.where(rail | post, 1.0, np.where(bar, 1.0, 0.0) * visible + 0.4 * (1 - visible))
        out = np.empty((*share.shape, 4), dtype=np.float32)
        out[..., :3] = rgb(color) * np.float32(brightness)
        out[..., 3] = np.clip(share + 0.08, 0, 1)
        return out

    return shader


def hedge(color: Color, brightness: float) -> Shader:
    """Shader of a clipped hedge."""

    def shader(s: Array, y: Array, footprint_s: Array, footprint_y: Array) -> Array:
        rough = grit(y * 1.5, s * 1.5, np.maximum(footprint_s, footprint_y))
        shade = 0.62 + 0.28 * np.clip(y, 0, 1.5) + 0.22 * rough
        return rgb(color) * (shade * np.float32(brightness))[..., None]

    return shader
