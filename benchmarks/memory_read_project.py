"""memory_read_project: reading and the projection of the readout in one (docs/math.md 1).

Bytes: forward reads query, memory and weight and writes the projection and the scores; backward
reads the three inputs and the cotangents of both outputs, and writes three gradients.
"""

from __future__ import annotations

import torch

from benchmarks.inputs import Inputs, Source
from benchmarks.plan import BACKWARD, FORWARD, PROJECTED, Size
from pinmem import ops, reference

PASSES = (BACKWARD, FORWARD)
OURS = ops.memory_read_project
EAGER = reference.memory_read_project


def make(size: Size, dtype: torch.dtype, source: Source, variant: str) -> Inputs:
    query = source.normal(size.batch, size.channels, *size.at(size.output_stride), dtype=dtype)
    memory = source.unit_rows(size.classes, size.channels, dtype=dtype)
    scale = size.channels**-0.5
    weight = source.normal(PROJECTED, 2 * size.channels, dtype=dtype, scale=scale)
    return Inputs([query, memory, weight], {})


def moved(size: Size, itemsize: int, what: str, variant: str) -> int:
    pixels = size.pixels(size.output_stride)
    inputs = (pixels + size.classes) * size.channels + 2 * size.channels * PROJECTED
    outputs = pixels * (PROJECTED + size.classes)
    return itemsize * (inputs + outputs) * (1 if what == FORWARD else 2) + (
        0 if what == FORWARD else itemsize * inputs
    )


def operations(size: Size, what: str, variant: str) -> int:
    pixels = size.pixels(size.output_stride)
    wide = 2 * pixels * size.channels * PROJECTED
    slots = 2 * pixels * size.channels * size.classes
    projected_slots = 2 * pixels * PROJECTED * size.classes
    rest = 3 * pixels * size.channels + 5 * pixels * size.classes
    forward = wide + slots + projected_slots + rest
    # Two wide products for dx and dW, da and dP, scores again, ds M and ds^T q.
    return forward if what == FORWARD else 3 * forward + slots


def test_speed(benchmark, call) -> None:
    benchmark(call)
