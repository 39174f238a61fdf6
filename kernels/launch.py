"""Launching a kernel, or doing all of our host's work but the launch.

What a launch needs beside its tensors is a :class:`Plan`. An op makes one per shape, type and
memory format and keeps it, so that a call costs a few look-ups and no arithmetic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Launch = tuple["Plan", tuple[Tensor | None, ...]]


class _Mode:
    """Where launches are written down instead of run, and whether they reach the GPU's driver."""

    recorded: list[Launch] | None = None
    launching = True


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside the block launches run nothing (meta tensors do); they end up in the list."""
    _Mode.recorded = []
    try:
        yield _Mode.recorded
    finally:
        _Mode.recorded = None


@contextlib.contextmanager
def without_launching() -> Iterator[None]:
    """Inside the block a launch does our part of the host's work, and none of Triton's."""
    _Mode.launching = False
    try:
        yield
    finally:
        _Mode.launching = True


class Plan:
    """A launch but for its tensors.

    A kernel's arguments come in this order: tensors (or None), sizes known at run time, constants.

    Args:
        kernel: the ``triton.jit`` function.
        grid: the number of programs; none run for 0.
        sizes: integers, in the kernel's order.
        warps, stages: Triton's ``num_warps`` and ``num_stages``.
        constants: everything known at compile time, by name and in the kernel's order.
    """

    def __init__(
        self, kernel: Any, grid: int, sizes: tuple[int, ...], warps: int, stages: int = 1,
        **constants: Any,
    ) -> None:  # fmt: skip
        self.kernel, self.grid, self.sizes, self.constants = kernel, grid, sizes, constants
        self.options = {"num_warps": warps, "num_stages": stages}
        if torch.version.hip:
            self.constants, self.options = for_amd(self.constants, self.options)
        self._rest = (*sizes, *self.constants.values())
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        """Run the kernel on the device of its first tensor."""
        if _Mode.recorded is not None:
            _Mode.recorded.append((self, tensors))
            return
        if self.grid == 0:
            return
        # What Triton compiles on its own: an absent tensor, a type, an address divisible by 16.
        key = [None if t is None else (t.dtype, t.data_ptr() % 16 == 0) for t in tensors]
        first = tensors[0]
        assert first is not None
        index = first.get_device()
        compiled = self._compiled.get((index, *key))
        if not _Mode.launching:
            return
        # Triton launches on the current device, wherever the tensors are.
        elsewhere = index >= 0 and index != torch.cuda.current_device()
        with torch.cuda.device(index) if elsewhere else contextlib.nullcontext():
            if compiled is None:
                self._compiled[(index, *key)] = self._first(tensors)
            else:
                compiled[self.grid, 1, 1](*tensors, *self._rest)

    def _first(self, tensors: tuple[Tensor | None, ...]) -> Any:
        """Compile and run; returns the compiled kernel, or None from the interpreter."""
        run = self.kernel[(self.grid,)]
        for options in attempts(self.options):
            compiled = run(*tensors, *self._rest, **options)
            if torch.version.hip or not getattr(compiled, "n_spills", 0):
                break
        return compiled


def attempts(options: dict[str, int]) -> tuple[dict[str, int], ...]:
    """Options for NVIDIA's GPUs, to be tried one after the other until a kernel does not spill.

    The assembler spills a few registers where that makes room for one more program on a
    multiprocessor, which a limit of all registers keeps it from. Where those are too few (block
    sizes are an H200's), twice the warps have twice as many.
    """
    everything = options | {"maxnreg": 255}
    return options, everything, everything | {"num_warps": 2 * options["num_warps"]}


def for_amd(
    constants: dict[str, Any], options: dict[str, int]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Constants and options as AMD's GPUs take them; those of a plan are for NVIDIA's.

    Warps have 64 lanes instead of 32, so half of them are as many threads; a pipeline of loads does
    not fit the shared memory, a third of NVIDIA's; and the matrix units take float32 as it is.
    """
    warps = options["num_warps"]
    options = {"num_warps": warps // 2 if warps > 4 else warps, "num_stages": 1}
    exact = {name: "ieee" for name in ("PRECISION", "WIDE") if name in constants}
    return constants | exact, options
