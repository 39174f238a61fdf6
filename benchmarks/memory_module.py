"""The whole memory module, forward and backward: read, reading loss, write, against the published.

Bytes: the sum over its parts of what each must read and write (two convolutions included).
The parameters of the module are differentiated for too; half precision means autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import class_sums, memory_read_project, published, upsampled_cross_entropy
from benchmarks.inputs import Inputs, Source
from benchmarks.plan import BACKWARD, Size
from pinmem.memory import ClassMemory

PASSES = (BACKWARD,)
KINKED = True  # its branches end in ReLU


def OURS(  # noqa: N802
    module: ClassMemory, query: Tensor, labels: Tensor, wide_labels: Tensor
) -> tuple[Tensor, ...]:
    with _autocast(query):
        features, scores = module.read(query)
        reading = module.reading_loss(scores, labels)
        written = module.write(query, labels)
    return features, reading, *written


EAGER = OURS


def _published(
    module: ClassMemory, query: Tensor, labels: Tensor, wide_labels: Tensor
) -> tuple[Tensor, ...]:
    with _autocast(query):
        found = published.read(module, module.memory, query, wide_labels)
        written = published.write(module, module.memory, query, wide_labels)
    return found.features, found.loss, *written


MORE = {"published": _published}


def _autocast(query: Tensor) -> torch.autocast:
    return torch.autocast(query.device.type, query.dtype, enabled=query.itemsize < 4)


def make(size: Size, dtype: torch.dtype, source: Source, variant: str) -> Inputs:
    query = source.normal(size.batch, size.channels, *size.at(size.output_stride), dtype=dtype)
    module = ClassMemory(size.classes, size.channels).to(query.device)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                values = source.normal(*parameter.shape, dtype=torch.float32)
                parameter.copy_(values * (2 / parameter.shape[1]) ** 0.5)
    module.store(source.unit_rows(size.classes, size.channels, dtype=torch.float32))
    labels = source.labels(size)
    # The release keeps its labels in int64.
    constants = {"labels": labels, "wide_labels": labels.long()}
    return Inputs([query, *module.parameters()], constants, module)


def moved(size: Size, itemsize: int, what: str, variant: str) -> int:
    pixels = size.pixels(size.output_stride)
    feature_map = itemsize * pixels * size.channels
    weight = 4 * size.channels**2
    # Normalise and rectify the projection: read and write it, forward and (two reads) backward.
    normalised = 5 * feature_map
    # The residual branch: convolve, normalise, add and rectify the query.
    branch = 2 * feature_map + weight + 3 * (feature_map + weight) + normalised + feature_map
    scores = upsampled_cross_entropy.VARIANTS[1]
    return (
        memory_read_project.moved(size, itemsize, what, "")
        + upsampled_cross_entropy.moved(size, itemsize, what, scores)
        + class_sums.moved(size, itemsize, what, "")
        + normalised
        + branch
    )


def operations(size: Size, what: str, variant: str) -> int:
    scores = upsampled_cross_entropy.VARIANTS[1]
    return (
        memory_read_project.operations(size, what, "")
        + upsampled_cross_entropy.operations(size, what, scores)
        + class_sums.operations(size, what, "")
        + 6 * size.pixels(size.output_stride) * size.channels**2
    )


def test_speed(benchmark, call) -> None:
    benchmark(call)
