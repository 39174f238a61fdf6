"""Reading image and label files: what the file holds, or one line that says what is wrong."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pinmem.data.errors import DataError

__all__ = ["Polygons", "Raw", "image_size", "read_image", "read_label"]

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0
_TAIL = 1 << 17  # bytes: what a PNG has behind its pixels, EXIF of 64 KiB included
# How Pillow calls what a TIFF may be packed with that changes values.
_LOSSY = ("tiff_jpeg", "jpeg", "webp")


class Raw(NamedTuple):
    """The samples of a label file, as they are stored.

    ``samples`` is [H, W] (indices of a palette, or grey) or [H, W, C], uint8, uint16 or int32;
    ``palette`` uint8 [N, 3] the colours of the indices, where the file has a palette.
    """

    samples: np.ndarray
    palette: np.ndarray | None = None


class Polygons(NamedTuple):
    """A label drawn as named polygons, later ones over earlier ones; points are (x, y)."""

    height: int
    width: int
    objects: list[tuple[str, list[tuple[float, float]]]]


def _read_bytes(path: Path, kind: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {kind} file cannot be read: {error.strerror}") from error
    if not data:
        raise DataError(f"{path}: {kind} file is empty")
    return data


def _open(data: bytes) -> Image.Image:
    """The image, its checksums verified: decoding a PNG looks at none of its pixels'."""
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    return Image.open(io.BytesIO(data))


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def read_image(path: Path) -> Tensor:
    """The RGB image in a file: uint8 [3, H, W], in channels-last order in memory.

    Turned as its EXIF orientation says, as viewers show it.

    Raises:
        DataError: the file is missing, empty, truncated, damaged, or not an 8-bit image.
    """
    data = _read_bytes(path, "image")
    try:
        with _open(data) as image:
            bits = _bits(image, data)
            if bits <= 8:
                ImageOps.exif_transpose(image, in_place=True)
                pixels = np.array(image.convert("RGB"))
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise DataError(f"{path}: image cannot be decoded: {_one_line(error)}") from error
    if bits > 8:
        raise DataError(f"{path}: image has {bits} bits a sample, expected 8")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_label(path: Path) -> Raw | Polygons:
    """The samples of a label file (PNG or TIFF), or the polygons of a ``.json`` as Cityscapes has.

    Raises:
        DataError: the file is missing, empty, truncated, damaged, or of another format.
    """
    data = _read_bytes(path, "label")
    if path.suffix.lower() == ".json":
        try:
            return _polygons(data)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}: no polygons of Cityscapes' form: {error!r}") from error
    try:
        with _open(data) as image:
            kind = image.format
            raw = _samples(image, data) if kind in ("PNG", "TIFF") else None
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise DataError(f"{path}: label cannot be decoded: {_one_line(error)}") from error
    if raw is None:
        raise DataError(f"{path}: label is a {kind} file, expected PNG or TIFF")
    return raw


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits a sample, as stored."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))  # type: ignore[attr-defined]
    return {"I": 32, "F": 32}.get(image.mode, 16 if image.mode.startswith("I;16") else 8)


def _samples(image: Image.Image, data: bytes) -> Raw:
    bits, mode = _bits(image, data), image.mode
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"it has {image.n_frames} pages")  # type: ignore[attr-defined]
    if image.format == "TIFF":
        if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
            raise ValueError("a TIFF whose zero is white, which is read inverted")
        if mode == "F" or (bits > 8 and not mode.startswith("I")):
            raise ValueError(f"a TIFF of mode {mode} with {bits} bits a sample")
        if (packed := str(image.info.get("compression")).lower()) in _LOSSY:
            raise ValueError(f"a TIFF compressed as {packed}, which changes values")
    elif bits == 16 and mode in ("RGB", "RGBA"):
        return Raw(_sixteen_bit_color(image, data))
    ImageOps.exif_transpose(image, in_place=True)
    samples = np.array(image)
    if mode == "P":
        colors = image.getpalette("RGB") or []
        return Raw(samples, np.array(colors, np.uint8).reshape(-1, 3))
    if mode == "1":
        return Raw(samples.astype(np.uint8))
    if mode == "L" and bits < 8:  # Pillow stretches grey of fewer bits to 0..255
        return Raw(samples // (255 // ((1 << bits) - 1)))
    return Raw(samples)


def _sixteen_bit_color(high: Image.Image, data: bytes) -> np.ndarray:
    """uint16 [H, W, C], of which Pillow gives the high bytes, or, told so, the low ones."""
    with Image.open(io.BytesIO(data)) as low:
        codec, extents, offset, raw_mode = low.tile[0]
        if not raw_mode.startswith("RGB"):
            raise ValueError("16-bit grey with alpha")
        low.tile = [(codec, extents, offset, raw_mode.replace("16B", "16L"))]
        low_bytes = np.array(low)
    return np.array(high).astype(np.uint16) << 8 | low_bytes


def _polygons(data: bytes) -> Polygons:
    content = json.loads(data)
    height, width = int(content["imgHeight"]), int(content["imgWidth"])
    if not (height > 0 and width > 0 and height * width <= 2 * (Image.MAX_IMAGE_PIXELS or 0)):
        raise ValueError(f"size {width}x{height}")
    objects = []
    for item in content["objects"]:
        points = [(float(x), float(y)) for x, y in item["polygon"]]
        if not all(math.isfinite(n) and abs(n) < 1e6 for point in points for n in point):
            raise ValueError("a point far outside the image")
        if not item.get("deleted") and len(points) >= 3:
            objects.append((str(item["label"]), points))
    return Polygons(height, width, objects)


def _end(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        return file.read()


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image or label file, from its header alone, turned as EXIF says.

    Raises:
        DataError: the file is missing or its header is not that of an image.
    """
    if path.suffix.lower() == ".json":
        polygons = read_label(path)
        assert isinstance(polygons, Polygons)
        return polygons.height, polygons.width
    try:
        with Image.open(path) as image:
            height, width = image.height, image.width
            turned = 1
            if image.format != "TIFF":  # whose orientation Pillow has applied
                # The plain method does not decode a PNG, to look for EXIF behind its pixels.
                late = image.format == "PNG" and b"eXIf" in _end(path)
                exif = image.getexif() if late else Image.Image.getexif(image)
                turned = exif.get(_ORIENTATION, 1)
    except Exception as error:  # damaged files make Pillow raise nearly anything
        reason = getattr(error, "strerror", None) or _one_line(error)
        raise DataError(f"{path}: header cannot be read: {reason}") from error
    return (width, height) if turned in (5, 6, 7, 8) else (height, width)
