"""Micro-batches, checkpoints and float16: the gradient and the memory of the plain step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import pinmem
from examples.study.run import WideConvolutions
from pinmem.loss_scale import LossScale
from pinmem.losses import Losses, LossWeights
from pinmem.meta import joint_step, mldg_step
from pinmem.models import Segmenter
from pinmem.passes import Batch, Passes
from pinmem.recompute import frozen_statistics

MODES = ["joint", "mldg", "memory-joint", "memory-mldg"]


def batch(seed: int, images: int = 4, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 19, (images, 48, 64), generator=generator, dtype=torch.uint8)
    # Micro-batches with many, few and no labelled pixels.
    labels[1], labels[2, :40] = 255, 255
    pictures = torch.randn(images, 3, 48, 64, generator=generator, dtype=torch.float64)
    return Batch(pictures.to(dtype), labels)


def network(mode: str, dtype: torch.dtype = torch.float64) -> Segmenter:
    torch.manual_seed(0)
    model = pinmem.build_model("deeplabv3plus_r18", memory=mode.startswith("memory"))
    return model.to(dtype).train()


def step(model: Segmenter, mode: str, optimizer: torch.optim.Optimizer, **how: Any) -> list[Losses]:
    dtype = next(model.parameters()).dtype
    if mode.endswith("joint"):
        return [joint_step(model, optimizer, batch(0, dtype=dtype), **how)]
    batches = batch(0, dtype=dtype), batch(1, dtype=dtype)
    return [*mldg_step(model, optimizer, *batches, inner_lr=0.05, **how)]


def sgd(model: Segmenter) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_give_the_step_of_the_batch(mode: str, accumulate: int) -> None:
    """With batch normalisation in evaluation mode and no dropout, which see a micro-batch."""
    plain = network(mode)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout2d):
            module.eval()
    start = copy.deepcopy(plain.state_dict())
    parts = copy.deepcopy(plain)
    wanted = step(plain, mode, sgd(plain))
    got = step(parts, mode, sgd(parts), accumulate=accumulate)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(torch.stack(one), torch.stack(other), rtol=1e-9, atol=1e-12)
        assert one.total > 0
    finals = plain.state_dict(), parts.state_dict()
    for name, before in start.items():
        moved = (finals[0][name] - before).double()
        error = (finals[1][name] - finals[0][name]).double().norm()
        assert error <= 1e-9 * moved.norm() + 1e-13, name
    assert not torch.equal(finals[0]["classifier.weight"], start["classifier.weight"])


def test_micro_batches_repeat_their_random_draws() -> None:
    """Noise and dropout are those of the run that found the class sums; the seed fixes all."""
    finals = []
    for _ in range(2):
        model = network("memory-mldg")
        model.memory.gumbel = "training"
        torch.manual_seed(3)
        step(model, "memory-mldg", sgd(model), accumulate=2)
        finals.append(model.state_dict())
        drawn = torch.rand(())
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])
    assert int(finals[0]["backbone.bn1.num_batches_tracked"]) == 2
    torch.manual_seed(3)
    assert drawn != torch.rand(())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_added_where_others_lie(accumulate: int) -> None:
    """In place, one by one; where the losses do not depend on a parameter they stay."""
    model = network("memory-mldg")
    others = nn.Parameter(torch.ones(3, dtype=torch.float64))
    parameters = [*model.parameters(), others]
    passes = Passes(model, LossWeights(), accumulate=accumulate)
    first = [torch.full_like(p, 0.1) for p in parameters]
    places = [grad.data_ptr() for grad in first]
    with frozen_statistics(model):
        torch.manual_seed(1)
        losses, plain = passes.gradients(batch(0), parameters)
        torch.manual_seed(1)
        same, summed = passes.gradients(batch(0), parameters, onto=first)
    assert torch.equal(torch.stack(losses), torch.stack(same))
    assert [grad.data_ptr() for grad in summed] == places
    for grad, wanted in zip(summed, plain, strict=True):
        assert torch.equal(grad, wanted + 0.1)
    assert not any(parameter.grad is not None for parameter in parameters)


def test_micro_batches_in_second_order_are_refused() -> None:
    model = network("memory-mldg")
    with pytest.raises(ValueError, match="accumulate: got 2, expected 1 in second order"):
        step(model, "memory-mldg", sgd(model), order=2, accumulate=2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "how", [{}, {"accumulate": 2}, {"amp_dtype": torch.bfloat16}], ids=["plain", "parts", "amp"]
)
def test_a_checkpoint_changes_no_bit(mode: str, how: dict[str, Any]) -> None:
    """Batch statistics, running statistics, dropout and noise on."""
    finals = []
    for checkpoint in (False, True):
        model = network(mode, torch.float32)
        if model.memory is not None:
            model.memory.gumbel = "training"
        torch.manual_seed(5)
        losses = step(model, mode, sgd(model), checkpoint=checkpoint, **how)
        finals.append({**model.state_dict(), "losses": torch.stack([x for y in losses for x in y])})
        finals[-1]["drawn"] = torch.rand(())
    different = [name for name in finals[0] if not torch.equal(finals[0][name], finals[1][name])]
    assert not different


@pytest.mark.parametrize("lean", [False, True])
def test_a_checkpoint_in_second_order(lean: bool) -> None:
    finals = []
    for checkpoint in (False, True):
        model = network("memory-mldg")
        torch.manual_seed(5)
        how: dict[str, Any] = {"order": 2, "lean": lean, "checkpoint": checkpoint}
        step(model, "memory-mldg", sgd(model), **how)
        finals.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(finals[1], finals[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("how", [{}, {"accumulate": 2}, {"order": 2}, {"order": 2, "lean": True}])
@pytest.mark.parametrize("mode", MODES)
def test_a_scale_changes_nothing_but_rounding(mode: str, how: dict[str, Any]) -> None:
    if "order" in how and mode.endswith("joint"):
        how = {}
    finals = []
    for scale in (None, LossScale(2.0**7)):
        model = network(mode)
        torch.manual_seed(5)
        losses = step(model, mode, sgd(model), scale=scale, **how)
        finals.append({**model.state_dict(), "losses": torch.stack([x for y in losses for x in y])})
    for name, wanted in finals[0].items():
        torch.testing.assert_close(finals[1][name], wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", ["memory-joint", "memory-mldg"])
def test_float16_is_close_to_float32(mode: str) -> None:
    losses = []
    for how in ({}, {"amp_dtype": torch.float16, "scale": LossScale(2.0**10)}):
        model = network(mode, torch.float32)
        for module in model.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0
        before = model.classifier.weight.detach().clone()
        with WideConvolutions():
            losses.append([loss.total for loss in step(model, mode, sgd(model), **how)])
        assert model.memory.memory.dtype == torch.float32
        assert not torch.equal(model.classifier.weight, before)
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("where", [0, 1], ids=["inner", "outer"])
def test_an_overflow_skips_the_whole_iteration(where: int, order: int) -> None:
    model = network("memory-mldg", torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    scale = LossScale(4.0, interval=1)
    how: dict[str, Any] = {"amp_dtype": torch.float16, "scale": scale, "order": order}
    with WideConvolutions():
        step(model, "memory-mldg", optimizer, **how)
    assert (scale.value, scale.skipped) == (8, 0)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    batches = [batch(0, dtype=torch.float32), batch(1, dtype=torch.float32)]
    batches[where] = Batch(batches[where].images * 1e30, batches[where].labels)
    with WideConvolutions():
        mldg_step(model, optimizer, *batches, inner_lr=0.05, **how)
    assert (scale.value, scale.skipped) == (4, 1)
    after = (model.state_dict(), optimizer.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
    other = LossScale()
    other.load_state_dict(scale.state_dict())
    assert other.state_dict() == scale.state_dict()
