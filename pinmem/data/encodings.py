"""Label encodings: raw samples of a label file -> uint8 trainIds. One function a dataset family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from pinmem.data.cityscapes_classes import (
    IGNORE_INDEX,
    LABEL_ID_TO_TRAIN_ID,
    LABELS,
    NUM_CLASSES,
)

__all__ = [
    "MAPILLARY_TO_TRAIN_ID",
    "SYNTHIA_TO_TRAIN_ID",
    "Encoding",
    "cityscapes_label_ids",
    "gtav",
    "mapillary",
    "synthia",
    "train_ids",
]

Encoding = Callable[[np.ndarray], np.ndarray]
"""Raw samples [H, W] or [H, W, C] -> trainIds uint8 [H, W]; ValueError on a value it lacks."""

_UNKNOWN = 254

SYNTHIA_TO_TRAIN_ID: dict[int, int] = dict.fromkeys(range(23), IGNORE_INDEX) | {
    1: 10,
    2: 2,
    3: 0,
    4: 1,
    5: 4,
    6: 8,
    7: 5,
    8: 13,
    9: 7,
    10: 11,
    11: 18,
    12: 17,
    15: 6,
    16: 9,
    17: 12,
    18: 14,
    19: 15,
    20: 16,
    21: 3,
}
"""SYNTHIA RAND-CITYSCAPES class (0..22) -> trainId."""

MAPILLARY_TO_TRAIN_ID: dict[int, int] = dict.fromkeys(range(66), IGNORE_INDEX) | {
    code: train_id
    for train_id, codes in enumerate(
        (
            (13, 24, 41),  # road, with its markings and manholes
            (2, 15),
            (17,),
            (6,),
            (3,),
            (45, 47),
            (48,),
            (50,),
            (30,),
            (29,),
            (27,),
            (19,),
            (20, 21, 22),
            (55,),
            (61,),
            (54,),
            (58,),
            (57,),
            (52,),
        )
    )
    for code in codes
}
"""Mapillary Vistas v1.2 class (0..65) -> trainId."""


def _table(codes: Mapping[int, int]) -> bytes:
    table = bytearray([_UNKNOWN]) * 256
    for code, train_id in codes.items():
        table[code] = train_id
    table[IGNORE_INDEX] = IGNORE_INDEX  # -1 ("license plate") ends as 255 in an unsigned file
    return bytes(table)


_LABEL_IDS = _table(LABEL_ID_TO_TRAIN_ID)
_GTAV_INDICES = _table(LABEL_ID_TO_TRAIN_ID | {34: IGNORE_INDEX})  # 34: GTAV's licence plate
_SYNTHIA = _table(SYNTHIA_TO_TRAIN_ID)
_MAPILLARY = _table(MAPILLARY_TO_TRAIN_ID)
_TRAIN_IDS = _table({train_id: train_id for train_id in range(NUM_CLASSES)})


def _single_channel(raw: np.ndarray) -> np.ndarray:
    if raw.ndim != 2:
        raise ValueError(f"expected one channel, got shape {list(raw.shape)}")
    return raw


def _lookup(raw: np.ndarray, table: bytes) -> np.ndarray:
    if raw.dtype != np.uint8:
        if int(raw.max()) > 255:
            raise ValueError(f"values outside the encoding: {_some(raw[raw > 255])}")
        raw = raw.astype(np.uint8)
    # bytes.translate is the fastest 8-bit lookup there is here: 1 ms for two million pixels.
    out = np.frombuffer(bytearray(raw.tobytes().translate(table)), np.uint8).reshape(raw.shape)
    unknown = out == _UNKNOWN
    if unknown.any():
        raise ValueError(f"values outside the encoding: {_some(raw[unknown])}")
    return out


def _some(values: np.ndarray) -> str:
    distinct = np.unique(values, axis=0).tolist()
    return ", ".join(str(value) for value in distinct[:5]) + (", ..." if len(distinct) > 5 else "")


def cityscapes_label_ids(raw: np.ndarray) -> np.ndarray:
    """Cityscapes labelIds (0..33) -> trainIds."""
    return _lookup(_single_channel(raw), _LABEL_IDS)


def synthia(raw: np.ndarray) -> np.ndarray:
    """SYNTHIA's classes (0..22), in channel 0 of a 16-bit colour file -> trainIds."""
    return _lookup(raw[:, :, 0] if raw.ndim == 3 else raw, _SYNTHIA)


def mapillary(raw: np.ndarray) -> np.ndarray:
    """Mapillary Vistas v1.2 classes (0..65) -> trainIds."""
    return _lookup(_single_channel(raw), _MAPILLARY)


def train_ids(raw: np.ndarray) -> np.ndarray:
    """Files that hold trainIds already (IDD as csTrainIds, BDD100K)."""
    return _lookup(_single_channel(raw), _TRAIN_IDS)


def gtav(raw: np.ndarray) -> np.ndarray:
    """GTAV: palette indices that are Cityscapes labelIds, or RGB in Cityscapes' colours."""
    return _lookup(raw, _GTAV_INDICES) if raw.ndim == 2 else _colors(raw)


@cache
def _color_table() -> np.ndarray:
    """uint8 [2^24]: colour as one number -> trainId; 16 MiB, made on the first RGB label."""
    table = np.full(1 << 24, _UNKNOWN, dtype=np.uint8)
    # Reversed and trained last: where two labels share a colour, the trained one names it.
    for row in sorted(LABELS, key=lambda r: r.train_id, reverse=True):
        red, green, blue = row.color
        table[red << 16 | green << 8 | blue] = row.train_id
    table[20 << 16 | 20 << 8 | 20] = IGNORE_INDEX  # "static" in GTAV's own palette
    return table


def _colors(raw: np.ndarray) -> np.ndarray:
    if raw.dtype != np.uint8 or raw.shape[2] not in (3, 4):
        raise ValueError(f"expected 8-bit colour, got {raw.dtype} of shape {list(raw.shape)}")
    key = raw[:, :, 0].astype(np.int32)
    key = key << 16 | raw[:, :, 1].astype(np.int32) << 8 | raw[:, :, 2]
    out = _color_table()[key]
    unknown = out == _UNKNOWN
    if unknown.any():
        raise ValueError(f"colours outside the encoding: {_some(raw[unknown])}")
    return out
