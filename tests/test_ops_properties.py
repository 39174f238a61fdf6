"""Any shape: the C++ library and Triton's kernels against plain PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pinmem
from pinmem import ops

from .op_cases import BASE, FORMATS, Shape, build, everything, judge

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
        torch.testing.assert_close(
            got[name], value, rtol=0, atol=1e-9 * scale + 1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("op", ops.__all__)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=shapes, layout=st.sampled_from(sorted(FORMATS)), seed=st.integers(0, 2**20))
def test_cpu_library(op: str, shape: Shape, layout: str, seed: int) -> None:
    compare(op, "cpu", shape, layout, seed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: no interpreter")
@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("op", ops.__all__)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=shapes, layout=st.sampled_from(sorted(FORMATS)), seed=st.integers(0, 2**20))
def test_triton_interpreter(op: str, backend: str, shape: Shape, layout: str, seed: int) -> None:
    small = replace(shape, height=min(shape.height, 4), width=min(shape.width, 4))
    judge(op, small, torch.float32, layout, backend, "cpu", seed)


@pytest.mark.parametrize("op", ["upsampled_cross_entropy", "memory_read"])
def test_large_values_stay_finite(op: str) -> None:
    """Scores far apart: softmax must neither overflow nor lose the loss."""
    case = build(op, replace(BASE, extras=False)).to(torch.float32, "cpu", torch.contiguous_format)
    case.inputs[0] = case.inputs[0] * 3e3
    with pinmem.backend("reference"):
        expected = everything(case)
    with pinmem.backend("cpu"):
        got = everything(case)
    for name, value in expected.items():
        scale = float(value.detach().abs().max())
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-3 * scale + 1e-6)


def test_ties_go_to_the_lowest_class() -> None:
    logits = torch.zeros(1, 5, 3, 3)
    target = torch.full((1, 9, 9), 2, dtype=torch.uint8)
    for backend in ("reference", "cpu"):
        with pinmem.backend(backend):
            counts = ops.upsampled_confusion(logits, target)
        assert counts[2, 0] == 81 and counts.sum() == 81, backend


def test_a_zero_feature_reads_the_mean_of_the_memory() -> None:
    query = torch.zeros(1, 4, 1, 2, requires_grad=True)
    memory = torch.randn(3, 4)
    for backend in ("reference", "cpu"):
        with pinmem.backend(backend):
            readout, scores = ops.memory_read(query, memory)
            (grad,) = torch.autograd.grad(
                (readout[:, 4:] * 1e-9).sum() + scores.sum() * 1e-13, query
            )
        assert scores.abs().max() == 0
        torch.testing.assert_close(readout[0, 4:, 0, 0], memory.mean(0))
        assert grad.isfinite().all()
