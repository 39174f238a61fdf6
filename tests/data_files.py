"""Small data sets on disk, in any layout, for the tests of the data side."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from examples.streets.png16 import encode_png16
from pinmem.data.cityscapes_classes import LABELS, TRAIN_ID_TO_LABEL_ID

HEIGHT, WIDTH = 6, 10


def write(path: Path, array: np.ndarray, **options: object) -> Path:
    """An image file of uint8 [H, W] or [H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def picture(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Random colours, uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def target(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Random trainIds, some ignored, uint8 [H, W]."""
    ids = np.random.default_rng(seed).integers(0, 20, size).astype(np.uint8)
    return np.where(ids == 19, 255, ids).astype(np.uint8)


def label_ids(train_ids: np.ndarray) -> np.ndarray:
    """Cityscapes labelIds of trainIds; ignored becomes 0."""
    return np.vectorize(lambda t: TRAIN_ID_TO_LABEL_ID.get(int(t), 0), otypes=[np.uint8])(train_ids)


def write_palette(path: Path, indices: np.ndarray, **options: object) -> Path:
    """A palette PNG in Cityscapes' colours."""
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette([channel for row in LABELS for channel in row.color])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def write_synthia(path: Path, codes: np.ndarray) -> Path:
    """A 16-bit colour PNG: the class in channel 0, an instance number in channel 1."""
    samples = np.zeros((*codes.shape, 3), dtype=np.uint16)
    samples[:, :, 0] = codes
    samples[:, :, 1] = np.arange(codes.size, dtype=np.uint16).reshape(codes.shape) * 37
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png16(samples))
    return path


def filtered_png16(samples: np.ndarray) -> bytes:
    """A 16-bit RGB PNG whose rows use the five filters of the format in turn."""
    height, width = samples.shape[:2]
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1).astype(int)
    packed = b""
    for number, row in enumerate(rows):
        up = rows[number - 1] if number else np.zeros_like(row)
        left = np.concatenate([np.zeros(6, int), row[:-6]])
        corner = np.concatenate([np.zeros(6, int), up[:-6]])
        by_left, by_up, by_corner = (
            abs(up - corner),
            abs(left - corner),
            abs(left + up - 2 * corner),
        )
        paeth = np.where(by_up <= by_corner, up, corner)
        paeth = np.where((by_left <= by_up) & (by_left <= by_corner), left, paeth)
        predicted = (0 * row, left, up, (left + up) // 2, paeth)[number % 5]
        packed += bytes([number % 5]) + ((row - predicted) % 256).astype(np.uint8).tobytes()

    return png_of(width, height, 16, 2, packed)


def gtav_tree(root: Path, count: int = 3, split: str = "train") -> Path:
    """A GTAV split whose images and labels are ``picture(i)`` and ``target(i)``."""
    for index in range(count):
        write(root / f"images/{split}/a/{index + 1:05d}.png", picture(index))
        write_palette(root / f"labels/{split}/a/{index + 1:05d}.png", label_ids(target(index)))
    return root


_ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def interlaced_png(samples: np.ndarray) -> bytes:
    """A PNG in seven passes of uint8 or uint16 [H, W] or [H, W, 3]."""
    depth, color = 8 * samples.itemsize, 0 if samples.ndim == 2 else 2
    rows = b""
    for top, left, down, across in _ADAM7:
        part = samples[top::down, left::across]
        if part.shape[1]:
            rows += b"".join(b"\0" + row.astype(f">u{samples.itemsize}").tobytes() for row in part)
    return png_of(samples.shape[1], samples.shape[0], depth, color, rows, interlace=1)


def grey_png(samples: np.ndarray, depth: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits a sample."""
    rows = b""
    for row in samples:
        bits = "".join(format(int(value), f"0{depth}b") for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    return png_of(samples.shape[1], samples.shape[0], depth, 0, rows)


def png_of(
    width: int, height: int, depth: int, color: int, rows: bytes, interlace: int = 0
) -> bytes:
    """A PNG of rows that are filtered already."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def put(path: Path, data: bytes) -> Path:
    """A file of these bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
