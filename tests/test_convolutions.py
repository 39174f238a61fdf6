"""Our 3x3 convolutions and their gradients against PyTorch's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pinmem.backends import unavailable
from pinmem.convolutions import conv3x3, conv3x3_backward

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


@pytest.fixture(autouse=True, scope="module")
def library() -> None:
    """Asking loads it."""
    assert not unavailable("cpu")


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
