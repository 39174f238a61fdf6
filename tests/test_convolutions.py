"""Our 3x3 convolutions and their gradients against PyTorch's; and where they are taken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pinmem
from pinmem import convolutions
from pinmem.backends import unavailable
from pinmem.config import TrainConfig
from pinmem.convolutions import FastConvolutions, conv3x3, conv3x3_backward
from pinmem.evaluation import folded
from pinmem.evaluation.fusing import _added
from pinmem.losses import LossWeights
from pinmem.meta import mldg_step
from pinmem.models import build_model
from pinmem.passes import Batch, Passes
from pinmem.planner import Planner

aten = torch.ops.aten
ROOT = Path(__file__).parent.parent

# Batch, channels in and out, height and width; padding; dilation. Channels fill vectors, stripes
# and blocks or do not; maps are smaller than a tile, odd, and longer than a block of tiles.
CASES = [
    ((2, 16, 19, 7, 9), (1, 1), (1, 1)),
    ((1, 130, 70, 12, 5), (2, 0), (2, 1)),
    ((1, 300, 33, 30, 31), (0, 3), (1, 2)),
    ((3, 17, 16, 1, 1), (1, 1), (1, 1)),
    ((1, 1, 1, 3, 3), (0, 0), (1, 1)),
    ((2, 24, 40, 50, 65), (5, 1), (5, 1)),
    ((1, 64, 32, 2, 150), (2, 4), (1, 2)),
    ((1, 40, 300, 9, 11), (1, 1), (1, 1)),
]


def channels_last(*shape: int, spread: float = 1.0) -> Tensor:
    return (spread * torch.randn(*shape)).to(memory_format=torch.channels_last)


def maps_of(sizes, padding, dilation) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weight and cotangent."""
    torch.manual_seed(0)
    batch, ins, outs, *size = sizes
    out_size = [n + 2 * (p - d) for n, p, d in zip(size, padding, dilation, strict=True)]
    return (
        channels_last(batch, ins, *size),
        channels_last(outs, ins, 3, 3),
        channels_last(batch, outs, *out_size),
    )


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    return float((got - expected).abs().max() / expected.abs().max())


def errors(sizes, padding, dilation) -> list[float]:
    """Of the convolution, of its input's gradient and of its weight's, relative to the largest."""
    assert not unavailable("cpu")
    features, weight, cotangent = maps_of(sizes, padding, dilation)
    how = {"padding": padding, "dilation": dilation}
    wide = [tensor.double() for tensor in (cotangent, features, weight)]
    expected = aten.convolution_backward(
        *wide, None, [1, 1], padding, dilation, False, [0, 0], 1, [True, True, False]
    )
    return [
        relative_error(conv3x3(features, weight, **how), F.conv2d(*wide[1:], **how)),
        *map(relative_error, conv3x3_backward(cotangent, features, weight, **how), expected),
    ]


@pytest.mark.parametrize(("sizes", "padding", "dilation"), CASES)
def test_the_numbers_are_pytorchs(sizes, padding, dilation) -> None:
    assert max(errors(sizes, padding, dilation)) < 2e-6


SAY = """
import torch
from tests.test_convolutions import CASES, errors
worst = max(max(errors(*case)) for case in CASES)
print(torch.ops.pinmem_cpu.isa_level(), worst)
"""


@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_the_numbers_of_lesser_instructions_are_too(level: str) -> None:
    environment = {**os.environ, "PINMEM_CPU_ISA": level}
    done = subprocess.run(
        [sys.executable, "-c", SAY], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if "does not have" in done.stderr:
        pytest.skip(f"this CPU does not have {level}")
    assert done.returncode == 0, done.stderr
    number, worst = done.stdout.split()
    assert int(number) == ["baseline", "avx2"].index(level)
    assert float(worst) < 2e-6


def test_errors_are_smaller_than_onednns_but_for_the_weight() -> None:
    """Of 256 channels, as in a decoder."""
    case = ((1, 256, 256, 24, 24), (1, 1), (1, 1))
    features, weight, cotangent = maps_of(*case)
    how = {"padding": (1, 1), "dilation": (1, 1)}
    found = []
    for dtype in (torch.float32, torch.float64):
        maps = [each.to(dtype) for each in (cotangent, features, weight)]
        backward = aten.convolution_backward(
            *maps, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
        )
        found.append([F.conv2d(*maps[1:], **how), *backward[:2]])
    theirs = list(map(relative_error, *found))
    ours = errors(*case)
    assert ours[0] < theirs[0]
    assert ours[1] < theirs[1]
    assert ours[2] < 1e-6


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_what_follows_is_done_as_it_writes(added: bool, rectify: bool) -> None:
    features, weight, _ = maps_of((2, 20, 37, 9, 11), (1, 1), (1, 1))
    bias = torch.randn(2).expand(37, 2)[:, 1]  # any stride
    other = channels_last(2, 37, 9, 11, spread=20) if added else None
    how = {"padding": (1, 1), "dilation": (1, 1)}
    got = conv3x3(features, weight, bias, other, **how, rectify=rectify)
    expected = F.conv2d(features.double(), weight.double(), bias.double(), **how)
    if other is not None:
        expected = expected + other
    assert relative_error(got, expected.relu() if rectify else expected) < 2e-6


def test_a_nan_is_not_rectified_away() -> None:
    features, weight, _ = maps_of((1, 16, 16, 8, 8), (1, 1), (1, 1))
    features[0, 3, 4, 4] = torch.nan
    got = conv3x3(features, weight, padding=(1, 1), dilation=(1, 1), rectify=True)
    assert bool(got[:, :, 3:6, 3:6].isnan().all())
    assert not bool(got[:, :, 6:].isnan().any())


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    case = ((2, 70, 90, 41, 57), (1, 1), (1, 1))
    features, weight, cotangent = maps_of(*case)
    how = {"padding": case[1], "dilation": case[2]}
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 20):
            torch.set_num_threads(threads)
            made = conv3x3(features, weight, **how)
            found.append([made, *conv3x3_backward(cotangent, features, weight, **how)])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


WRONG = {
    "no image": ({"features": channels_last(0, 4, 5, 6)}, "features: expected at least one image"),
    "contiguous": ({"features": torch.ones(1, 4, 5, 6)}, "features: expected channels_last"),
    "other kernel": ({"weight": channels_last(3, 4, 1, 3)}, "weight: expected kernels of 3x3"),
    "other channels": ({"weight": channels_last(3, 5, 3, 3)}, "weight: expected 4 input channels"),
    "no map": ({"features": channels_last(1, 4, 1, 6)}, "the kernel is larger than the padded map"),
    "one padding": ({"padding": (1,)}, "padding, dilation: expected two numbers each"),
    "no dilation": ({"dilation": (0, 1)}, "padding: expected at least 0, dilation: at least 1"),
    "no output": ({"weight": channels_last(0, 4, 3, 3)}, "at least one output channel"),
    "short bias": ({"bias": torch.ones(2)}, r"bias: expected \[3\]"),
    "small other": ({"other": channels_last(1, 3, 2, 4)}, r"other: expected \[1,3,3,4\]"),
    "type": ({"features": channels_last(1, 4, 5, 6).double()}, "of another type"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name: str) -> None:
    given, message = WRONG[name]
    arguments = {
        "features": channels_last(1, 4, 5, 6), "weight": channels_last(3, 4, 3, 3),
        "padding": (0, 0), "dilation": (1, 1),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        conv3x3(**{**arguments, **given})


def test_a_wrong_cotangent_is_refused() -> None:
    features, weight, cotangent = maps_of((1, 4, 3, 5, 6), (0, 0), (1, 1))
    with pytest.raises(RuntimeError, match=r"cotangent: expected \[1,3,5,6\]"):
        conv3x3_backward(cotangent, features, weight, padding=(1, 1), dilation=(1, 1))


# --- Where they are taken -------------------------------------------------------------------------


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
