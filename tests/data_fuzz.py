"""Damage to files, and a decoder of PNG by the book to compare with."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data_files import filtered_png16, grey_png, interlaced_png, label_ids, write_palette
from tests.data_trees import polygons, scene

SIGNATURE = 8
DAMAGES = ("flip", "zero", "cut", "insert", "repeat", "random")


def bases(folder: Path) -> dict[str, bytes]:
    """A file of every kind, by its name."""
    pixels, target = scene(1)
    ids = label_ids(target)
    made = {"palette.png": write_palette(folder / "p.png", ids).read_bytes()}
    for name, array, options in (
        ("grey.png", ids, {}),
        ("rgb.png", pixels, {}),
        ("photo.jpg", pixels, {"quality": 90}),
        ("progressive.jpg", pixels, {"progressive": True}),
        ("photo.webp", pixels, {}),
        ("grey.tif", ids, {"compression": "tiff_lzw"}),
        ("sixteen.tif", ids.astype(np.uint16), {}),
        ("rgb.tif", pixels, {}),
        ("photo.bmp", pixels, {}),
    ):
        path = folder / name
        Image.fromarray(array).save(path, **options)
        made[name] = path.read_bytes()
    made["four_bits.png"] = grey_png(ids % 16, 4)
    made["interlaced.png"] = interlaced_png(ids)
    made["sixteen.png"] = filtered_png16(np.dstack([ids.astype(np.uint16) * 7] * 3))
    made["polygons.json"] = polygons(folder / "p.json", target).read_bytes()
    return made


def damaged(data: bytes, steps: list[tuple[str, float, int, int]]) -> bytes:
    """The data after some damages: (kind, place in 0..1, byte, length)."""
    out = bytearray(data)
    for kind, place, byte, length in steps:
        at = int(place * len(out))
        if kind == "flip" and out:
            out[min(at, len(out) - 1)] ^= byte or 1
        elif kind == "zero":
            out[at : at + length] = bytes(len(out[at : at + length]))
        elif kind == "cut":
            del out[at:]
        elif kind == "insert":
            out[at:at] = bytes([byte]) * length
        elif kind == "repeat":
            out[at:at] = out[at : at + length]
        elif kind == "random":
            noise = np.random.default_rng(byte).integers(0, 256, length, dtype=np.uint8).tobytes()
            out[at : at + length] = noise[: len(out[at : at + length])]
    return bytes(out)


def with_header(data: bytes, field: int, value: int) -> bytes:
    """A PNG with another width, height, depth, colour type or interlacing, its checksum right."""
    values = list(struct.unpack(">IIBBBBB", data[16:29]))
    values[field] = value
    header = struct.pack(">IIBBBBB", *values)
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


def reference_samples(data: bytes) -> np.ndarray | None:
    """Samples [H, W, C] of a PNG by the specification; None where there is no telling."""
    position, body, header = SIGNATURE, b"", b""
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        chunk = data[position + 8 : position + 8 + length]
        header = chunk if kind == b"IHDR" else header
        body += chunk if kind == b"IDAT" else b""
        position += 12 + length
    width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", header)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color)
    if channels is None or interlace:
        return None
    packed = zlib.decompressobj().decompress(body)
    stride, reach = -(-width * depth * channels // 8), max(1, depth * channels // 8)
    if len(packed) < height * (stride + 1):
        return None
    before = [0] * stride
    rows = []
    for y in range(height):
        line = packed[y * (stride + 1) : (y + 1) * (stride + 1)]
        before = _unfiltered(line[0], line[1:], before, reach)
        rows.append(before)
    raw = np.array(rows, dtype=np.uint8)
    if depth == 16:
        samples = raw.view(">u2")
    elif depth == 8:
        samples = raw
    else:
        bits = np.unpackbits(raw, axis=1).reshape(height, -1, depth)
        samples = bits @ (1 << np.arange(depth)[::-1])
    return samples[:, : width * channels].reshape(height, width, channels).astype(int)


def _unfiltered(kind: int, line: bytes, up: list[int], reach: int) -> list[int]:
    out = [0] * len(line)
    for x, value in enumerate(line):
        a = out[x - reach] if x >= reach else 0
        b, c = up[x], up[x - reach] if x >= reach else 0
        nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
        out[x] = (value + (0, a, b, (a + b) // 2, nearest)[kind]) & 255
    return out
