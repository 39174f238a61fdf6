"""What the golden numbers do not reach of the class memory: noise, another ignored label."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pinmem import ClassMemory, memory, ops


def noises(module: ClassMemory, monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """What is added to the scores of a read in training, and of one in evaluation."""
    given: list[Tensor | None] = []
    read = ops.memory_read_project

    def watched(*arguments: Any, gumbel: Tensor | None) -> tuple[Tensor, Tensor]:
        given.append(gumbel)
        return read(*arguments, gumbel=gumbel)

    monkeypatch.setattr(memory.ops, "memory_read_project", watched)
    for training in (True, False):
        module.train(training).read(torch.randn(2, 8, 32, 32))
    return given


@pytest.mark.parametrize(
    ("when", "drawn"),
    [("never", [False, False]), ("training", [True, False]), ("always", [True, True])],
)
def test_gumbel_noise(when: Any, drawn: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mean is Euler's constant and its variance pi^2 / 6; the other way up it is not."""
    given = noises(ClassMemory(5, 8, gumbel=when), monkeypatch)
    assert [noise is not None for noise in given] == drawn
    for noise in given:
        if noise is not None:
            assert noise.shape == (2, 5, 32, 32) and not noise.requires_grad
            assert noise.mean().item() == pytest.approx(0.5772, abs=0.06)
            assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.15)


def test_another_ignored_label() -> None:
    module = ClassMemory(5, 8)
    query, labels = torch.randn(2, 8, 6, 6), torch.randint(0, 5, (2, 24, 24))
    marked = labels.masked_fill(labels == 2, 255)
    for got, expected in zip(
        module.write(query, labels, ignore_index=2), module.write(query, marked), strict=True
    ):
        assert torch.equal(got, expected)
    assert torch.equal(module.write(query, marked).memory[2], module.memory[2])
    _, scores = module.read(query)
    losses = [module.reading_loss(scores, labels, 2), module.reading_loss(scores, marked)]
    assert torch.equal(*losses) and not torch.equal(losses[0], module.reading_loss(scores, labels))


def test_a_memory_of_another_shape_is_not_stored() -> None:
    module = ClassMemory(5, 8)
    with pytest.raises(ValueError, match=r"memory: got shape \[5, 1\], expected \[5, 8\]"):
        module.store(torch.zeros(5, 1))
