"""From painted colours to what the domain's camera records."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from examples.streets.style import Style
from examples.streets.texture import Array, rgb

__all__ = ["develop"]


def develop(painted: Array, style: Style, rng: np.random.Generator) -> Array:
    """Headlights, blur, exposure, grading, vignette and noise: uint8 [H, W, 3] -> same."""
    height, width = painted.shape[:2]
    blurred = Image.fromarray(np.ascontiguousarray(painted)).filter(
        ImageFilter.GaussianBlur(style.blur)
    )
    colors = np.asarray(blurred, dtype=np.float32)
    colors = colors * (rgb(style.tint) * np.float32(rng.uniform(*style.gain)))
    # Not a matrix product: those may round differently with the number of threads.
    grey = 0.299 * colors[:, :, 0] + 0.587 * colors[:, :, 1] + 0.114 * colors[:, :, 2]
    colors = grey[:, :, None] + (colors - grey[:, :, None]) * np.float32(style.saturation)
    colors = 118 + (colors - 118) * np.float32(style.contrast)
    v = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    u = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    if style.headlights:
        spot = np.exp(-np.square(u / 0.5) - np.square((v - 0.35) / 0.4))
        colors *= (1 + np.float32(style.headlights) * spot)[:, :, None]
    if style.vignette:
        colors *= (1 - np.float32(style.vignette) * (u * u + v * v))[:, :, None]
    colors += np.float32(style.noise) * rng.standard_normal(colors.shape, dtype=np.float32)
    # A soft shoulder instead of a hard clip: highlights keep some of their colour.
    colors = np.where(colors > 225, 225 + (colors - 225) * np.float32(0.45), colors)
    return np.clip(colors + 0.5, 0, 255).astype(np.uint8)
