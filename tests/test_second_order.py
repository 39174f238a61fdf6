"""Convolution and batch normalisation with a second derivative of our own, against PyTorch's."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from pinmem.recompute import Stage, recomputing
from pinmem.second_order import TwiceDifferentiable

LAYERS = {
    "strided with bias": lambda: nn.Conv2d(4, 6, 3, 2, 1),
    "dilated in groups": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False),
    "padding by name": lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False),
    "pointwise": lambda: nn.Conv2d(4, 6, 1, bias=False),
    "normalised": lambda: nn.BatchNorm2d(4, eps=1e-3),
    "without running statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "without weight": lambda: nn.BatchNorm2d(4, affine=False),
}


def layer_of(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    layer = LAYERS[name]().to(dtype).train()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


def second_order(layer: nn.Module, features: Tensor, mode: bool) -> list[Tensor]:
    """The output, the gradients, and their derivative along a direction of every input."""
    inputs = [features.clone().requires_grad_(), *layer.parameters()]
    generator = torch.Generator().manual_seed(1)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)

    if mode:
        with TwiceDifferentiable():
            output = layer(inputs[0])
    else:
        output = layer(inputs[0])
    cotangent = draw(output).requires_grad_()
    grads = torch.autograd.grad(output, inputs, cotangent, create_graph=True)
    bent = torch.autograd.grad(
        grads, [cotangent, *inputs], [draw(grad) for grad in grads], materialize_grads=True
    )
    return [output.detach(), *(grad.detach() for grad in grads), *bent]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_second_derivative_is_pytorchs(name: str, memory_format: torch.memory_format) -> None:
    features = torch.randn(3, 4, 7, 6, dtype=torch.float64) + 2
    features = features.to(memory_format=memory_format)
    layers = layer_of(name), layer_of(name)
    wanted = second_order(layers[0], features, mode=False)
    got = second_order(layers[1], features, mode=True)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    statistics = [dict(layer.named_buffers()) for layer in layers]
    torch.testing.assert_close(*statistics)


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_recorded(name: str) -> None:
    """Functions of our own, but for what falls back to PyTorch's."""
    features = torch.randn(3, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    with TwiceDifferentiable():
        node = layer_of(name)(features).grad_fn
    if name == "strided with bias":
        node = node.next_functions[0][0]  # before the sum
    own = name not in ("padding by name", "without weight")
    assert (type(node).__name__ in ("_ConvolutionBackward", "_BatchNormBackward")) == own


@pytest.mark.parametrize("name", ["strided with bias", "normalised"])
def test_parts_of_the_second_derivative(name: str) -> None:
    """One tangent at a time: what is not asked for is not needed either."""
    features = torch.randn(2, 4, 5, 4, dtype=torch.float64)
    layer = layer_of(name)
    found: list[dict[int, Tensor]] = []
    for mode in (False, True):
        inputs = [features.clone().requires_grad_(), *layer.parameters()]
        with TwiceDifferentiable() if mode else torch.enable_grad():
            output = layer(inputs[0])
        grads = torch.autograd.grad(output, inputs, output.detach().cos(), create_graph=True)
        found.append({})
        for i, grad in enumerate(grads):
            if grad.requires_grad:
                bent = torch.autograd.grad(
                    grad, inputs, torch.ones_like(grad), retain_graph=True,
                    allow_unused=True, materialize_grads=True,
                )  # fmt: skip
                found[-1][i] = torch.cat([b.flatten() for b in bent])
    plain, ours = found
    assert {0, 1} <= ours.keys() <= plain.keys()
    # What needs no graph with ours is constant with PyTorch's.
    for i, wanted in plain.items():
        got = ours.get(i, torch.zeros_like(wanted))
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["strided with bias", "normalised"])
def test_bfloat16_under_autocast_is_near_float64(name: str) -> None:
    features = torch.randn(4, 4, 8, 8, dtype=torch.float64) + 1
    wanted = second_order(layer_of(name), features, mode=False)
    plain, ours = [], []
    with torch.autocast("cpu", torch.bfloat16):
        plain = second_order(layer_of(name, torch.float32), features.bfloat16().float(), mode=False)
        ours = second_order(layer_of(name, torch.float32), features.bfloat16().float(), mode=True)
    for exact, theirs, got in zip(wanted, plain, ours, strict=True):
        assert got.dtype == theirs.dtype
        allowed = 1.5 * (theirs.double() - exact).norm() + 0.01 * exact.norm()
        assert (got.double() - exact).norm() <= allowed


def test_sides_may_be_one_number() -> None:
    features = torch.randn(1, 2, 7, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    sides = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    with TwiceDifferentiable():
        found = torch.conv2d(features, weight, None, **sides)
    torch.testing.assert_close(found, torch.conv2d(features, weight, None, **sides))


def test_one_value_a_channel_has_no_variance() -> None:
    layer = nn.BatchNorm2d(3)
    with TwiceDifferentiable(), pytest.raises(ValueError, match="expected several values a chann"):
        layer(torch.randn(1, 3, 1, 1))
    assert layer.running_var.isfinite().all()


def test_standardised_weights_are_the_same_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's standardised convolutions normalise weights with F.batch_norm; not images."""
    module = sys.modules["pinmem.batch_norm"]
    monkeypatch.setattr(module, "active", lambda: object())
    weight = torch.randn(1, 4, 9)
    found = module.batch_norm(weight, None, None, training=True)
    torch.testing.assert_close(found, nn.functional.batch_norm(weight, None, None, training=True))
    with pytest.raises(ValueError, match=r"batch_norm: got \[2, 4, 9\], no weight"):
        module.batch_norm(torch.randn(2, 4, 9), None, None, training=True)


def test_a_third_derivative_of_a_checkpoint_raises() -> None:
    layer = nn.Sequential(nn.Linear(2, 2), nn.Tanh()).double()
    features = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    with recomputing([Stage(layer, "forward")]):
        output = layer(features)
    (grad,) = torch.autograd.grad(output.sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match="checkpoint: third derivatives"):
        torch.autograd.grad(grad.square().sum(), features, create_graph=True)


def test_a_third_derivative_of_batch_norm_raises() -> None:
    layer = layer_of("normalised")
    features = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    with TwiceDifferentiable():
        output = layer(features)
    (grad,) = torch.autograd.grad(output, features, output.detach().sin(), create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(grad.square().sum(), features, create_graph=True)
