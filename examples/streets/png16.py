"""PNG with 16 bits per sample, which Pillow does not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode_png16(samples: np.ndarray, level: int = 6) -> bytes:
    """A 16-bit RGB PNG of uint16 [H, W, 3] samples.

    Raises:
        ValueError: another dtype or shape.
    """
    if samples.dtype != np.uint16 or samples.ndim != 3 or samples.shape[2] != 3:
        raise ValueError(
            f"samples: expected uint16 [H, W, 3], got {samples.dtype} {list(samples.shape)}"
        )
    height, width = samples.shape[:2]
    rows = np.zeros((height, 1 + 6 * width), dtype=np.uint8)  # column 0: filter type "none"
    rows[:, 1:] = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), level)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
