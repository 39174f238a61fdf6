"""Which convolutions are our own, in steps, evaluation and plans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pinmem
from pinmem import convolutions
from pinmem.backends import unavailable
from pinmem.config import TrainConfig
from pinmem.convolutions import FastConvolutions
from pinmem.evaluation import folded
from pinmem.evaluation.fusing import _added
from pinmem.losses import LossWeights
from pinmem.meta import mldg_step
from pinmem.models import build_model
from pinmem.passes import Batch, Passes
from pinmem.planner import Planner
from tests.test_convolutions import channels_last, maps_of

KINDS = {"_conv3x3", "input", "_weight_grad"}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The calls of the kernels, of KINDS."""
    assert not unavailable("cpu")
    if torch.ops.pinmem_cpu.isa_level() == 0:
        pytest.skip("this CPU has neither AVX2 nor AVX-512")
    found: list[str] = []
    for name in ("_conv3x3", "_weight_grad"):
        plain = getattr(convolutions, name)

        def spy(*args, name=name, plain=plain):
            found.append("input" if args[-2:] == (True, False) else name)
            return plain(*args)

        monkeypatch.setattr(convolutions, name, spy)
    return found


TAKEN = {
    "with bias": nn.Conv2d(64, 64, 3, padding=1),
    "dilated": nn.Conv2d(64, 96, 3, padding=2, dilation=2, bias=False),
    "one direction": nn.Conv2d(16, 64, 3, padding=(1, 0), bias=False),
    "wide": nn.Conv2d(16, 17, 3, padding=2, padding_mode="replicate"),
}
LEFT = {
    "strided": nn.Conv2d(64, 64, 3, 2, 1),
    "in groups": nn.Conv2d(64, 64, 3, padding=1, groups=2),
    "pointwise": nn.Conv2d(64, 64, 1),
    "rectangular": nn.Conv2d(64, 64, (1, 3)),
    "transposed": nn.ConvTranspose2d(64, 64, 3, padding=1),
    "few inputs": nn.Conv2d(15, 64, 3, padding=1),
    "few outputs": nn.Conv2d(64, 15, 3, padding=1),
    "much padding": nn.Conv2d(64, 64, 3, padding=3),
    "mostly padding": nn.Conv2d(64, 64, 3, padding=12, dilation=12),
    "contiguous": nn.Conv2d(64, 64, 3, padding=1),
    "few outputs in all": nn.Conv2d(64, 64, 3, padding=1),
    "other type": nn.Conv2d(64, 64, 3, padding=1, dtype=torch.float64),
}


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
def test_which_convolutions_are_taken(name: str, taken: list[str]) -> None:
    """Outputs, gradients and gradients of gradients are the same."""
    torch.manual_seed(0)
    layer = {**TAKEN, **LEFT}[name]
    if name != "contiguous":
        layer = layer.to(memory_format=torch.channels_last)
    size = (8, 10) if name == "few outputs in all" else (16, 23)
    features = channels_last(2, layer.in_channels, *size).to(layer.weight.dtype).requires_grad_()
    asked = [features, *layer.parameters()]
    cotangent: Tensor | None = None
    found = []
    for mode in (None, FastConvolutions()):
        with mode or torch.enable_grad():
            output = layer(features)
            cotangent = torch.randn_like(output) if cotangent is None else cotangent
            first = torch.autograd.grad(output, asked, cotangent, create_graph=True)
            kinds = set(taken)
            squares = sum((grad**2).sum() for grad in first)
            second = torch.autograd.grad(squares, asked[:2])
        found.append([output, *first, *second])
        assert mode is not None or not taken
    for got, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(got / expected.abs().max(), expected / expected.abs().max())
    # Of what is left, gradients of gradients hold other convolutions.
    assert kinds == (KINDS if name in TAKEN else set())


def test_one_number_for_both_directions_is_left_to_pytorch(taken: list[str]) -> None:
    features, weight, _ = maps_of((2, 64, 64, 16, 23), (0, 0), (1, 1))
    with FastConvolutions():
        got = torch.convolution(features, weight, None, [1], [0], [1], False, [0], 1)
    assert not taken
    assert torch.equal(got, F.conv2d(features, weight))


def test_another_layout_of_what_is_added_is_left_to_onednn(taken: list[str]) -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    features = channels_last(2, 64, 16, 23)
    with torch.no_grad():
        for other in (channels_last(2, 64, 16, 23), torch.randn(2, 64, 16, 23)):
            got = _added(layer, features, other)
            torch.testing.assert_close(got, (layer(features) + other).relu())
            assert bool(taken) == other.is_contiguous(memory_format=torch.channels_last)
            taken.clear()


def test_only_what_is_asked_for_is_computed(taken: list[str]) -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    features = channels_last(2, 64, 16, 23).requires_grad_()
    for asked, kind in ((features, "input"), (layer.weight, "_weight_grad")):
        output = layer(features).sum()
        with FastConvolutions():
            torch.autograd.grad(output, asked)
        assert taken == [kind]
        taken.clear()


def network_and_batches() -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    network = build_model("deeplabv3plus_r18", num_classes=4).train()
    network.to(memory_format=torch.channels_last)
    images = [channels_last(2, 3, 64, 64) for _ in range(2)]
    return network, [Batch(each, torch.randint(0, 4, (2, 64, 64))) for each in images]


@pytest.mark.parametrize("order", [1, 2])
def test_a_step_takes_them(order: int, taken: list[str]) -> None:
    network, batches = network_and_batches()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, fused=True)
    losses = mldg_step(network, optimizer, *batches, 0.001, order=order)
    assert all(torch.isfinite(loss.total) for loss in losses)
    assert set(taken) == KINDS


def test_a_networks_gradients_are_those_of_plain_pytorch(taken: list[str]) -> None:
    """With normalisation by running statistics: over so few pixels its own magnify rounding."""
    found = {}
    for backend in ("reference", "auto", "cpu"):
        network, (batch, _) = network_and_batches()
        passes = Passes(network.eval(), LossWeights())
        with pinmem.backend(backend):
            losses, grads = passes.gradients(batch, [*network.parameters()])
        found[backend] = losses.total, torch.cat([grad.flatten() for grad in grads])
        assert set(taken) == (set() if backend == "reference" else KINDS)
    for backend in ("auto", "cpu"):
        for got, expected in zip(found[backend], found["reference"], strict=True):
            assert (got - expected).norm() < 1e-3 * expected.norm()


def test_a_compiled_network_takes_them_backwards_alone(taken: list[str]) -> None:
    network, (batch, _) = network_and_batches()
    network.compile(backend="aot_eager")
    passes = Passes(network, LossWeights())
    passes.gradients(batch, [*network.parameters()])
    assert "_conv3x3" not in taken


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_evaluation_takes_them_likewise(backend: str, taken: list[str]) -> None:
    network, (batch, _) = network_and_batches()
    network.eval()
    with torch.no_grad(), pinmem.backend(backend):
        expected = network(batch.images).logits
        assert not taken
        with folded(network):
            taken.clear()  # folding tries
            got = network(batch.images).logits
    assert bool(taken) == (backend == "auto")
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_plan_of_fake_tensors_goes_without(taken: list[str]) -> None:
    config = TrainConfig(
        sources=["gtav=absent", "synthia=absent"], model="deeplabv3plus_r18", num_classes=19,
        batch_size=2, crop_size=64,
    )  # fmt: skip
    Planner(config, torch.device("cpu")).peak()
    assert not taken


@pytest.mark.usefixtures("taken")
def test_nothing_is_taken_on_a_gpu_or_of_compiled_networks() -> None:
    network = nn.Sequential(nn.Conv2d(64, 64, 3))
    cpu = torch.device("cpu")
    assert isinstance(convolutions.fast_convolutions(cpu, network), FastConvolutions)
    other = convolutions.fast_convolutions(torch.device("cuda"), network)
    assert not isinstance(other, FastConvolutions)
    network[0].compile()
    assert not isinstance(convolutions.fast_convolutions(cpu, network), FastConvolutions)


def test_an_older_library_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
    convolutions._available.cache_clear()
    features, weight, _ = maps_of((2, 64, 64, 16, 16), (1, 1), (1, 1))
    try:
        assert not convolutions.gains(features, weight, (1, 1), (1, 1), (1, 1), 1)
    finally:
        convolutions._available.cache_clear()
