"""Noise that surfaces, leaves and clouds are made of."""

from __future__ import annotations

from functools import cache

import numpy as np

__all__ = ["Array", "fade", "grit", "noise_tile", "rgb", "sample"]

Array = np.ndarray
_SIZE = 256


def rgb(color: tuple[float, float, float]) -> Array:
    """A colour as float32 [3], to compute with."""
    return np.array(color, dtype=np.float32)


@cache
def noise_tile(power: float) -> Array:
    """A tile of Gaussian noise whose amplitude falls as frequency^-power: float32 [256, 256].

    It repeats without a seam, has mean 0 and deviation 1, and is always the same.
    """
    rng = np.random.default_rng(round(power * 100))
    spectrum = np.fft.rfft2(rng.standard_normal((_SIZE, _SIZE)))
    frequency = np.hypot(np.fft.fftfreq(_SIZE)[:, None], np.fft.rfftfreq(_SIZE)[None, :])
    frequency[0, 0] = np.inf
    tile = np.fft.irfft2(spectrum * frequency**-power, s=(_SIZE, _SIZE))
    return (tile / tile.std()).astype(np.float32)


def sample(tile: Array, y: Array, x: Array) -> Array:
    """The tile at real-valued coordinates (in its own pixels), bilinear, repeating."""
    y, x = np.broadcast_arrays(y, x)
    y0, x0 = np.floor(y).astype(np.int32), np.floor(x).astype(np.int32)
    fy, fx = (y - y0).astype(np.float32), (x - x0).astype(np.float32)
    y1, x1 = (y0 + 1) % _SIZE, (x0 + 1) % _SIZE
    y0, x0 = y0 % _SIZE, x0 % _SIZE
    top = tile[y0, x0] * (1 - fx) + tile[y0, x1] * fx
    bottom = tile[y1, x0] * (1 - fx) + tile[y1, x1] * fx
    return top * (1 - fy) + bottom * fy


def fade(period: float, footprint: Array) -> Array:
    """How much of a pattern of this period a pixel of this footprint (same unit) still shows."""
    return np.clip(period / (2 * footprint) - 0.25, 0.0, 1.0)


def grit(y: Array, x: Array, footprint: Array) -> Array:
    """Surface roughness in metres' space: stains of half a metre and grain of centimetres.

    Args:
        y, x: coordinates on the surface in metres.
        footprint: metres a pixel there; what is finer fades away.
    """
    stains = sample(noise_tile(1.2), y * 6.0, x * 6.0)
    grain = noise_tile(0.4)[
        np.floor(y * 40).astype(np.int32) % _SIZE, np.floor(x * 40).astype(np.int32) % _SIZE
    ]
    return 0.6 * stains * fade(2.0, footprint) + 0.5 * grain * fade(0.06, footprint)
