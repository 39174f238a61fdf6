"""The configurations of the two reading ops that ``auto`` can choose, as tensors without data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_LARGE = (8, 128, 256)
_TYPICAL = (8, 48, 48)
# dtype, channels_last, slots, channels, batch and size. The first is the typical one.
_SHAPES = [
    (torch.bfloat16, False, 19, 256, _TYPICAL),
    (torch.bfloat16, True, 19, 256, _LARGE),
    (torch.float16, False, 19, 256, _LARGE),
    (torch.float32, False, 19, 256, _LARGE),
    (torch.float32, True, 19, 256, _TYPICAL),
    (torch.float64, False, 19, 256, _LARGE),
    (torch.bfloat16, False, 19, 2048, _LARGE),
    (torch.float32, True, 2, 5, (3, 7, 9)),
    *(
        (dtype, False, slots, 256, _LARGE)
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
        for slots in (64, 128, 256)
    ),
]


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
    for number, (dtype, channels_last, slots, channels, (batch, height, width)) in enumerate(
        _SHAPES
    ):
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def new_map(depth: int, dtype=dtype, size=(batch, height, width), layout=layout) -> Tensor:
            like = torch.empty((size[0], depth, *size[1:]), dtype=dtype, device="meta")
            return like.contiguous(memory_format=layout)

        outputs = min(channels, 256)
        name = str(dtype).removeprefix("torch.")
        kind = "nhwc" if channels_last else "nchw"
        yield Reading(
            f"{name} {kind} K={slots} C={channels} {batch}x{height}x{width}",
            number == 0,
            new_map(channels),
            torch.empty((slots, channels), dtype=dtype, device="meta"),
            torch.empty((outputs, 2 * channels), dtype=dtype, device="meta"),
            new_map(2 * channels),
            new_map(slots),
            new_map(outputs),
        )
