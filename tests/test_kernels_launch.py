"""Launches of Triton kernels: what is compiled on its own, and what a launch is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from pinmem.kernels.launch import Plan, recording, without_launching

ONE = torch.zeros(4)


class Kernel:
    """Stands for a kernel and for what it compiles to: counts both."""

    def __init__(self, spills: int = 0) -> None:
        self.n_spills = spills
        self.options: list[dict[str, Any]] = []
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, **options: Any) -> Kernel:
            if options:
                self.options.append(options)
            self.launched.append(arguments)
            return self

        return run


@pytest.mark.parametrize(
    ("first", "second", "compilations"),
    [
        ((ONE, ONE), (ONE, ONE + 1), 1),
        ((ONE, None), (ONE, ONE), 2),
        ((ONE, ONE), (ONE, None), 2),
        ((ONE, ONE), (ONE, ONE.bfloat16()), 2),
        ((ONE, torch.zeros(8)[1:]), (ONE, ONE), 2),
    ],
)
def test_what_triton_compiles_on_its_own(first: Any, second: Any, compilations: int) -> None:
    """An absent tensor, a type, an address that 16 does not divide: none runs another's kernel."""
    kernel = Kernel()
    plan = Plan(kernel, 3, (7,), 4, BLOCK=16)
    for tensors in (first, second, first, second):
        plan(*tensors)
        assert kernel.launched[-1][-2:] == (7, 16)
        assert all(a is b for a, b in zip(kernel.launched[-1], tensors, strict=False))
    assert len(kernel.options) == compilations


def test_a_kernel_that_spills_gets_all_registers_then_more_warps() -> None:
    kernel = Kernel(spills=2)
    plan = Plan(kernel, 3, (), 4)
    plan(ONE)
    plan(ONE)
    tried = [(options["num_warps"], options.get("maxnreg")) for options in kernel.options]
    assert tried == [(4, None), (4, 255), (8, 255)]
    assert len(kernel.launched) == 4


def test_nothing_runs_where_nothing_should() -> None:
    kernel = Kernel()
    Plan(kernel, 0, (), 4)(ONE)
    with without_launching():
        Plan(kernel, 1, (), 4)(ONE)
    with recording() as launches:
        Plan(kernel, 1, (), 4)(ONE, None)
    assert kernel.launched == []
    assert [tensors for _, tensors in launches] == [(ONE, None)]
