"""Bytes that the Triton kernels move, counted while Triton's interpreter runs them.

Every load and store of every program counts towards what passes through the L2; each address of a
launch counts once towards what comes from memory, since a program looks at its pixels again soon
after. PyTorch's own products of small matrices do not count. Run as
``TRITON_INTERPRET=1 python -m benchmarks.bytes_moved OP``, it prints JSON.

The map is a small part of one of 8x1024x2048 at stride 8, and as few programs share it as have the
same work each as there: so the ratios are those of the large map.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from pinmem.kernels import launch, partials
from pinmem.kernels.memory_read import memory_gradient
from pinmem.kernels.memory_read_project import pixel_sums

SLOTS, CHANNELS = 19, 256
SIZE = (1, 32, 64)
LARGE_PIXELS = 8 * 128 * 256


class Launch:
    """What one kernel has loaded and stored."""

    def __init__(self, kernel: str) -> None:
        self.kernel, self.cache, self.places = kernel, 0, [np.zeros(0, np.uint64)]

    def add(self, places: Any, mask: Any, itemsize: int) -> None:
        """Elements of ``itemsize`` bytes at the places where the mask is true."""
        places = places[np.broadcast_to(mask, places.shape).astype(bool)]
        self.cache += places.size * itemsize
        # An address names its element, and times 8 it has room for the size, 2 or 4.
        self.places.append(np.unique(places) * np.uint64(8) + np.uint64(itemsize % 8))

    @property
    def memory(self) -> int:
        """Bytes of all different elements."""
        places = np.unique(np.concatenate(self.places))
        return int((places % np.uint64(8)).sum())


@contextlib.contextmanager
def counting() -> Iterator[list[Launch]]:
    """Inside, every launch is counted."""
    launches: list[Launch] = []
    run, load, store = (
        launch.Plan.__call__,
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
    )

    def counted_run(plan: launch.Plan, *tensors: Tensor | None) -> None:
        launches.append(Launch(plan.kernel.fn.__name__))
        run(plan, *tensors)

    def counted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].add(ptrs.data, mask.data, ptrs.get_element_ty().primitive_bitwidth // 8)
        return load(self, ptrs, mask, *rest)

    def counted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].add(ptrs.data, mask.data, ptrs.get_element_ty().primitive_bitwidth // 8)
        return store(self, ptrs, value, mask, *rest)

    with (
        mock.patch.object(launch.Plan, "__call__", counted_run),
        mock.patch.object(InterpreterBuilder, "create_masked_load", counted_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", counted_store),
    ):
        yield launches


def passes(op: str) -> Iterator[tuple[str, list[Tensor], Callable[..., Any]]]:
    """The passes of an op with kernels of their own: name, inputs, and the call."""
    batch, height, width = SIZE

    def new_map(depth: int) -> Tensor:
        map_ = torch.randn(batch, depth, height, width, dtype=torch.bfloat16)
        return map_.contiguous(memory_format=torch.channels_last)

    def new_matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, dtype=torch.bfloat16)

    module = importlib.import_module(f"pinmem.kernels.{op}")
    x, ds = new_map(CHANNELS), new_map(SLOTS)
    if op == "memory_read":
        inputs, grad = [x, new_matrix(SLOTS, CHANNELS)], new_map(2 * CHANNELS)
    else:
        weight = new_matrix(CHANNELS, 2 * CHANNELS)
        inputs, grad = [x, new_matrix(SLOTS, CHANNELS), weight], new_map(CHANNELS)
    yield "forward", inputs, lambda: getattr(module, op)(*inputs, None)
    needs = [True] * len(inputs)
    backward = getattr(module, f"{op}_backward")
    yield "backward", [grad, ds, *inputs], lambda: backward(grad, ds, *inputs, None, *needs)
    if op == "memory_read":
        second = module.memory_read_double_backward
        v = [torch.randn_like(each) for each in inputs]
        yield (
            "second order",
            [*v, grad, ds, *inputs],
            lambda: second(*v, grad, ds, *inputs, None),
        )


def count(op: str) -> Iterator[dict[str, Any]]:
    """A row per pass: its launches, and bytes from memory and through the L2 over the least."""
    share = SIZE[0] * SIZE[1] * SIZE[2] / LARGE_PIXELS
    with (
        mock.patch.object(partials, "_MOST_PROGRAMS", round(partials._MOST_PROGRAMS * share)),
        mock.patch.object(pixel_sums, "_PROGRAMS", round(pixel_sums._PROGRAMS * share)),
        mock.patch.dict(
            memory_gradient._PROGRAMS,
            {size: round(each * share) for size, each in memory_gradient._PROGRAMS.items()},
        ),
    ):
        for name, inputs, call in passes(op):
            with counting() as launches:
                outputs = call()
            least = sum(tensor.nbytes for tensor in (*inputs, *outputs))
            yield {
                "op": op,
                "pass": name,
                "launches": [each.kernel for each in launches],
                "memory": sum(each.memory for each in launches) / least,
                "cache": sum(each.cache for each in launches) / least,
            }


if __name__ == "__main__":
    print(json.dumps([row for op in sys.argv[1:] for row in count(op)]))
