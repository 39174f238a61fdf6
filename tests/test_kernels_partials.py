"""Sums over more pixels than a program or a launch takes at once."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from pinmem.kernels import partials
from pinmem.kernels.memory_read import double_backward, memory_gradient
from pinmem.kernels.memory_read_project import pixel_sums

from .op_cases import TRITON_ON, Shape, judge

PLANS = (memory_gradient._plan, double_backward._plan, pixel_sums._plan)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: no interpreter")
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("op", ["memory_read", "memory_read_project"])
def test_several_blocks_per_program(op: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partials, "_MOST_PROGRAMS", 2)
    monkeypatch.setattr(pixel_sums, "_PROGRAMS", 2)
    monkeypatch.setattr(memory_gradient, "_PROGRAMS", {4: 2})
    for plan in PLANS:
        plan.cache_clear()
    shape = Shape(2, 9, 20, 9, 20, classes=3, channels=6)
    try:
        judge(op, shape, torch.float32, layout, "triton", "cpu")
        layout = memory_gradient.layout_of(torch.zeros(2, 6, 9, 20))
        _, split = memory_gradient._plan(layout, 3, "bf16x6")
        assert split.steps > 1 and split.programs == 2
    finally:
        for plan in PLANS:
            plan.cache_clear()


@pytest.mark.parametrize("device", TRITON_ON)
@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_every_program_is_added(count: int, device: str) -> None:
    parts = torch.randn(count, 57, device=device)[:, :51]
    total = torch.full((3, 20), torch.nan, device=device)
    partials.add_partials(parts, total[:, :17])
    torch.testing.assert_close(total[:, :17], parts.sum(0).view(3, 17))
    assert total[:, 17:].isnan().all()
