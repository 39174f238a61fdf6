"""Weights' gradients as matrix products, against oneDNN's; and where they are taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from pinmem import weight_gradients
from pinmem.config import TrainConfig
from pinmem.meta import mldg_step
from pinmem.models import build_model
from pinmem.passes import Batch
from pinmem.planner import Planner
from pinmem.weight_gradients import ByMatrixProducts, weight_gradient

aten = torch.ops.aten


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("kernel", "padding", "dilation"),
    [((3, 3), (1, 1), (1, 1)), ((3, 3), (0, 0), (1, 1)), ((1, 5), (3, 2), (2, 1)),
     ((3, 2), (2, 4), (2, 3)), ((1, 1), (0, 0), (1, 1))],
)  # fmt: skip
def test_the_gradient_is_pytorchs(
    kernel: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    batch: int,
    memory_format: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    features = torch.randn(batch, 4, 9, 11, dtype=torch.float64).to(memory_format=memory_format)
    weight = torch.randn(5, 4, *kernel, dtype=torch.float64)
    shape = (None, [1, 1], padding, dilation, False, [0, 0], 1)
    cotangent = torch.randn_like(aten.convolution(features, weight, *shape))
    mask = [False, True, False]
    wanted = aten.convolution_backward(cotangent, features, weight, *shape, mask)[1]
    got = weight_gradient(cotangent, features, kernel, padding, dilation)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the maps whose weight gradients were matrix products."""
    found: list[tuple[int, ...]] = []

    def spy(*args: torch.Tensor) -> torch.Tensor:
        found.append(tuple(args[1].shape))
        return weight_gradient(*args)

    monkeypatch.setattr(weight_gradients, "weight_gradient", spy)
    return found


TAKEN = {
    "with bias": nn.Conv2d(64, 64, 3, padding=1),
    "dilated": nn.Conv2d(64, 96, 3, padding=2, dilation=2, bias=False),
    "rectangular": nn.Conv2d(64, 64, (1, 5), bias=False),
}
LEFT = {
    "strided": nn.Conv2d(64, 64, 3, 2, 1),
    "in groups": nn.Conv2d(64, 64, 3, padding=1, groups=2),
    "pointwise": nn.Conv2d(64, 64, 1),
    "transposed": nn.ConvTranspose2d(64, 64, 3, padding=1),
    "few inputs": nn.Conv2d(63, 64, 3, padding=1),
    "few outputs": nn.Conv2d(64, 63, 3, padding=1),
    "much padding": nn.Conv2d(64, 64, 3, padding=3, dilation=3),
    "narrow": nn.Conv2d(64, 64, 3),
    "contiguous": nn.Conv2d(64, 64, 3, padding=1),
    "other type": nn.Conv2d(64, 64, 3, padding=1, dtype=torch.float64),
}


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
@pytest.mark.parametrize("first", [False, True])
def test_which_convolutions_are_taken(name: str, first: bool, taken: list[tuple[int, ...]]) -> None:
    """Gradients are the same; ``first``: the images need none."""
    torch.manual_seed(0)
    layer = {**TAKEN, **LEFT}[name]
    if name != "contiguous":
        layer = layer.to(memory_format=torch.channels_last)
    channels = layer.in_channels
    features = torch.randn(2, channels, 16, 17 if name == "narrow" else 23).requires_grad_(
        not first
    )
    features = features.to(layer.weight.dtype, memory_format=torch.channels_last)
    output = layer(features)
    asked = [*layer.parameters(), *([] if first else [features])]
    cotangent = torch.randn_like(output)
    wanted = torch.autograd.grad(output, asked, cotangent, retain_graph=True)
    with ByMatrixProducts():
        got = torch.autograd.grad(output, asked, cotangent)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)
    assert bool(taken) == (name in TAKEN)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_step_takes_them_where_this_cpu_gains(
    capability: str, order: int, taken: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    torch.manual_seed(0)
    network = build_model("deeplabv3plus_r18", num_classes=4).train()
    network.to(memory_format=torch.channels_last)
    batches = [Batch(torch.randn(2, 3, 64, 64), torch.randint(0, 4, (2, 64, 64))) for _ in range(2)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, fused=True)
    losses = mldg_step(network, optimizer, *batches, 0.001, order=order)
    assert all(torch.isfinite(loss.total) for loss in losses)
    assert bool(taken) == (capability == "AVX2")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plan_counts_them_on_a_cpu_alone(
    device: str, taken: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    config = TrainConfig(
        sources=["gtav=absent", "synthia=absent"], model="deeplabv3plus_r18", num_classes=19,
        batch_size=2, crop_size=64,
    )  # fmt: skip
    Planner(config, torch.device(device)).peak()
    assert bool(taken) == (device == "cpu")


def test_nothing_is_taken_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert isinstance(weight_gradients.fast_weight_gradients(torch.device("cpu")), ByMatrixProducts)
    other = weight_gradients.fast_weight_gradients(torch.device("cuda"))
    assert not isinstance(other, ByMatrixProducts)
