"""Reading image and label files: what the file holds, or one line that says what is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pinmem.data.errors import DataError
from pinmem.data.png import check_png, is_png, png_bit_depth

__all__ = ["image_size", "read_image", "read_label"]

# What Pillow raises for files it cannot make sense of.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def _read_bytes(path: Path, kind: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {kind} file cannot be read: {error.strerror}") from error
    if not data:
        raise DataError(f"{path}: {kind} file is empty")
    if is_png(data):
        try:
            check_png(data)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
    return data


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def read_image(path: Path) -> Tensor:
    """The RGB image in a PNG or JPEG file: uint8 [3, H, W], in channels-last order in memory.

    Raises:
        DataError: the file is missing, empty, truncated, damaged, or not an 8-bit image.
    """
    data = _read_bytes(path, "image")
    if is_png(data) and png_bit_depth(data) == 16:
        raise DataError(f"{path}: image has 16 bits a sample, expected 8")
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(image.convert("RGB"))
    except _UNREADABLE as error:
        raise DataError(f"{path}: image cannot be decoded: {_one_line(error)}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_label(path: Path) -> np.ndarray:
    """The raw samples of a label PNG: uint8 [H, W] (indices of a palette, or grey values), or
    [H, W, C] for colour; uint16 for a 16-bit file.

    Raises:
        DataError: the file is missing, empty, truncated, damaged, or not a PNG.
    """
    data = _read_bytes(path, "label")
    if not is_png(data):
        raise DataError(f"{path}: label file is not a PNG")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if png_bit_depth(data) == 16 and image.mode in ("RGB", "RGBA"):
                return _sixteen_bit_color(image, data)
            return np.array(image)
    except _UNREADABLE as error:
        raise DataError(f"{path}: label cannot be decoded: {_one_line(error)}") from error


def _sixteen_bit_color(high: Image.Image, data: bytes) -> np.ndarray:
    """uint16 [H, W, C], of which Pillow gives the high bytes, or, told so, the low ones."""
    with Image.open(io.BytesIO(data)) as low:
        codec, extents, offset, raw_mode = low.tile[0]
        low.tile = [(codec, extents, offset, raw_mode.replace("16B", "16L"))]
        low_bytes = np.array(low)
    return np.array(high).astype(np.uint16) << 8 | low_bytes


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image or label file, from its header alone.

    Raises:
        DataError: the file is missing or its header is not that of an image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise DataError(f"{path}: header cannot be read: {_one_line(error)}") from error
