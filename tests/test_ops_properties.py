"""Any shape: the C++ library and Triton's kernels against plain PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pinmem
from pinmem import backends, ops

from .op_cases import (
    BASE,
    FORMATS,
    Shape,
    assert_near,
    build,
    everything,
    implementations,
    judge,
)

sizes = st.integers(1, 9)
shapes = st.builds(
    Shape,
    batch=st.integers(0, 3),
    height=sizes,
    width=sizes,
    full_height=st.integers(1, 20),
    full_width=st.integers(1, 20),
    classes=st.integers(1, 24),
    # One channel has no direction: all derivatives are zero, and what is compared is rounding.
    channels=st.integers(2, 40),
    labels=st.sampled_from(["mixed", "absent", "ignored", "clean"]),
    label_dtype=st.sampled_from([torch.uint8, torch.int64]),
    extras=st.booleans(),
)


def compare(op: str, backend: str, shape: Shape, layout: str, seed: int) -> None:
    case = build(op, shape, seed).to(torch.float64, "cpu", FORMATS[layout])
    with pinmem.backend("reference"):
        expected = everything(case, seed)
    with pinmem.backend(backend):
        got = everything(case, seed)
    for name, value in expected.items():
        scale = float(value.detach().abs().max()) if value.numel() else 0.0
        assert_near(name, got[name], value, 1e-9 * scale + 1e-12)


@pytest.mark.parametrize("op", ops.__all__)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=shapes, layout=st.sampled_from(sorted(FORMATS)), seed=st.integers(0, 2**20))
def test_cpu_library(op: str, shape: Shape, layout: str, seed: int) -> None:
    compare(op, "cpu", shape, layout, seed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: no interpreter")
@pytest.mark.parametrize("op", [op for op, own in backends.ON_GPU.items() if own == "triton"])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=shapes, layout=st.sampled_from(sorted(FORMATS)), seed=st.integers(0, 2**20))
def test_triton_interpreter(op: str, shape: Shape, layout: str, seed: int) -> None:
    small = replace(shape, height=min(shape.height, 4), width=min(shape.width, 4))
    judge(op, small, torch.float32, layout, "triton", "cpu", seed)


READS = ["memory_read", "memory_read_project"]


@pytest.mark.parametrize(
    "op, backend, device", implementations([*READS, "upsampled_cross_entropy"])
)
def test_large_values_stay_finite(op: str, backend: str, device: str) -> None:
    """Scores far apart: softmax must neither overflow nor lose the loss."""
    shape = replace(BASE, extras=False, height=3, width=4, full_height=7, full_width=9)
    case = build(op, shape).to(torch.float32, device, torch.contiguous_format)
    case.inputs[0] = case.inputs[0] * 3e3
    if op in READS:
        case.inputs[1] = case.inputs[1] * 3e2
    with pinmem.backend("reference"):
        expected = everything(case)
    with pinmem.backend(backend):
        got = everything(case)
    for name, value in expected.items():
        scale = float(value.detach().abs().max())
        assert_near(f"{op}, {name}", got[name], value, 1e-3 * scale + 1e-6)
