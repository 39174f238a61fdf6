"""The configurations of the two reading ops that ``auto`` can choose, as tensors without data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_LARGE = (8, 128, 256)
_TYPICAL = (8, 48, 48)
_HALF, _FLOAT, _DOUBLE = torch.bfloat16, torch.float32, torch.float64
# dtype of the maps and of the parameters, channels_last, slots, channels, batch and size.
_SHAPES = [
    # What training meets: mixed precision in channels_last.
    (_HALF, _FLOAT, True, 19, 256, _TYPICAL),
    (_HALF, _HALF, False, 19, 256, _LARGE),
    (torch.float16, _FLOAT, False, 19, 256, _LARGE),
    (_FLOAT, _FLOAT, False, 19, 256, _LARGE),
    (_FLOAT, _FLOAT, True, 19, 256, _TYPICAL),
    (_DOUBLE, _DOUBLE, False, 19, 256, _LARGE),
    (_HALF, _FLOAT, False, 19, 2048, _LARGE),
    (_FLOAT, _FLOAT, True, 19, 2048, _LARGE),
    (_FLOAT, _FLOAT, True, 2, 5, (3, 7, 9)),
    # The wide columns of the table of block sizes, at their fullest and part empty.
    *((dtype, dtype, False, slots, 256, _LARGE)
      for dtype in (_HALF, _FLOAT, _DOUBLE) for slots in (64, 128, 256)),
    *((dtype, parameters, True, slots, 768, _LARGE)
      for dtype, parameters in ((torch.float16, _FLOAT), (_FLOAT, _FLOAT), (_DOUBLE, _DOUBLE))
      for slots in (33, 65, 150)),
]  # fmt: skip


class Reading(NamedTuple):
    """Arguments of one configuration; ``outputs`` is what the projection's half of them needs."""

    label: str
    typical: bool
    query: Tensor
    memory: Tensor
    weight: Tensor
    readout: Tensor
    scores: Tensor
    projected: Tensor


def readings() -> Iterator[Reading]:
    """Every configuration, on the meta device: with noise, all cotangents and directions."""
    for number, (dtype, parameters, channels_last, slots, channels, size) in enumerate(_SHAPES):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        batch, height, width = size

        def new_map(depth: int, dtype=dtype, size=size, layout=layout) -> Tensor:
            like = torch.empty((size[0], depth, *size[1:]), dtype=dtype, device="meta")
            return like.contiguous(memory_format=layout)

        def new_matrix(rows: int, columns: int, dtype=parameters) -> Tensor:
            return torch.empty((rows, columns), dtype=dtype, device="meta")

        outputs = min(channels, 256)
        name = str(dtype).removeprefix("torch.")
        if parameters != dtype:
            name += f" with {str(parameters).removeprefix('torch.')} slots"
        kind = "nhwc" if channels_last else "nchw"
        yield Reading(
            f"{name} {kind} K={slots} C={channels} {batch}x{height}x{width}",
            number == 0,
            new_map(channels),
            new_matrix(slots, channels),
            new_matrix(outputs, 2 * channels),
            new_map(2 * channels),
            new_map(slots),
            new_map(outputs),
        )
