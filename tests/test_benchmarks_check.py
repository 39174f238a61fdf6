"""Checks before timing, where a function has kinks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.case import OpCase
from benchmarks.check import Truth
from benchmarks.inputs import Inputs
from benchmarks.plan import BACKWARD, SMOKE_SIZE, Plan


def test_gradients_at_kinks_are_held_to_their_norm() -> None:
    exact = [torch.ones(4).double(), torch.ones(100).double()]
    truth = Truth(exact, exact, torch.bfloat16)
    jumped = torch.ones(100)
    jumped[3] = -1
    assert truth.fault([torch.ones(4), jumped], strict=True) != ""
    assert truth.fault([torch.ones(4), jumped], strict=True, kinked_from=1) == ""
    assert "norm" in truth.fault([torch.ones(4), -jumped], strict=True, kinked_from=1)
    assert "plain" in truth.fault([jumped[:4], jumped], strict=True, kinked_from=1)


def _kinked(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x)


def _slightly_wrong(x: torch.Tensor) -> torch.Tensor:
    """The value of a ReLU, and a gradient that is off by a hundredth."""
    y = F.relu(x)
    return y.detach() + 1.01 * (y - y.detach())


@pytest.mark.parametrize("ours, fault", [(_kinked, ""), (_slightly_wrong, "in float64: result 1")])
def test_ours_is_exact_in_float64(ours, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(size, dtype, source, variant) -> Inputs:
        return Inputs([source.normal(64, dtype=dtype)], {})

    file = SimpleNamespace(
        __name__="benchmarks.memory_module", OURS=ours, EAGER=_kinked, KINKED=True, make=make,
        moved=lambda *_: 1, operations=lambda *_: 1,
    )  # fmt: skip
    case = OpCase(file, Plan.of("cpu", True), SMOKE_SIZE, torch.bfloat16, BACKWARD, "")  # type: ignore[arg-type]
    found = case.check("auto")
    assert found.startswith(fault) and bool(found) == bool(fault)
