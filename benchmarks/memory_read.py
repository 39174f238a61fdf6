"""memory_read: normalise, score every slot, softmax, weigh the slots (docs/math.md 1).

Bytes: forward reads the query, the memory and writes the readout (twice the query) and the scores;
backward reads query, memory and the cotangents of both outputs, and writes two gradients.
"""

from __future__ import annotations

import torch

from benchmarks.inputs import Inputs, Source
from benchmarks.plan import BACKWARD, FORWARD, Size
from pinmem import ops, reference

PASSES = (BACKWARD, FORWARD)
OURS = ops.memory_read
EAGER = reference.memory_read


def make(size: Size, dtype: torch.dtype, source: Source, variant: str) -> Inputs:
    query = source.normal(size.batch, size.channels, *size.at(size.output_stride), dtype=dtype)
    memory = source.unit_rows(size.classes, size.channels, dtype=dtype)
    return Inputs([query, memory], {})


def moved(size: Size, itemsize: int, what: str, variant: str) -> int:
    pixels = size.pixels(size.output_stride)
    query, scores = pixels * size.channels, pixels * size.classes
    memory = size.classes * size.channels
    forward = query + memory + 2 * query + scores
    return itemsize * (forward if what == FORWARD else 2 * forward + query + memory)


def operations(size: Size, what: str, variant: str) -> int:
    pixels = size.pixels(size.output_stride)
    product, vector = 2 * pixels * size.channels * size.classes, pixels * size.channels
    softmax = 5 * pixels * size.classes
    forward = 2 * product + 3 * vector + softmax
    # Scores again, da, two for dM, one for dx.
    return forward if what == FORWARD else forward + 5 * product + 7 * vector + 2 * softmax


def test_speed(benchmark, call) -> None:
    benchmark(call)
