"""memory_update: the momentum update of the memory and its two losses (docs/math.md 4).

Bytes: forward reads the five inputs and writes the new memory; backward reads the inputs and its
cotangent and writes five gradients. All of it is tiny: what counts is the number of launches.
The op always runs in the accumulation type, whatever the type of the maps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from benchmarks.case import OpCase
from benchmarks.inputs import Inputs, Source
from benchmarks.plan import BACKWARD, Plan, Size
from pinmem import ops, reference

OURS = ops.memory_update
EAGER = reference.memory_update


def cases(plan: Plan, size: Size, dtype: torch.dtype) -> Iterator[OpCase]:
    if (dtype, size) == (plan.dtypes[0], plan.sizes[0]):
        case = OpCase(sys.modules[__name__], plan, size, torch.float32, BACKWARD, "")
        case.size = f"{size.classes} slots of {size.channels}"
        yield case


def make(size: Size, dtype: torch.dtype, source: Source, variant: str) -> Inputs:
    memory = source.unit_rows(size.classes, size.channels, dtype=dtype)
    mass = 100 * source.uniform(size.classes, dtype=dtype) + 1
    mass[-1] = 0  # one class is absent
    sums = source.unit_rows(size.classes, size.channels, dtype=dtype) * mass[:, None]
    weight = source.normal(size.classes, size.channels, dtype=dtype, scale=0.1)
    bias = source.normal(size.classes, dtype=dtype)
    return Inputs([memory, sums, mass, weight, bias], {"momentum": 0.8})


def moved(size: Size, itemsize: int, what: str, variant: str) -> int:
    matrix = size.classes * size.channels
    inputs, output = 3 * matrix + 2 * size.classes, matrix
    return itemsize * (3 * inputs + 2 * output)


def operations(size: Size, what: str, variant: str) -> int:
    product = 2 * size.classes * size.classes * size.channels
    return 6 * product + 20 * size.classes * size.channels


def test_speed(benchmark, call) -> None:
    benchmark(call)
