"""Any shape: the C++ library and Triton's kernels against plain PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pinmem
from pinmem import backends, ops

from .op_cases import (
    BASE,
    FORMATS,
    LABELLED,
    Case,
    Shape,
    assert_bitwise,
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


@pytest.mark.parametrize(
    "op, backend, device", implementations(["upsampled_confusion"], reference=True)
)
def test_ties_go_to_the_lowest_class(op: str, backend: str, device: str) -> None:
    logits = torch.zeros(1, 5, 3, 3, device=device)
    logits[:, 0] = -1
    logits[:, 4] = -1
    target = torch.full((1, 9, 9), 2, dtype=torch.uint8, device=device)
    with pinmem.backend(backend):
        counts = getattr(ops, op)(logits, target)
    assert counts[2, 1] == 81
    assert counts.sum() == 81


@pytest.mark.parametrize("op, backend, device", implementations(READS, reference=True))
def test_a_zero_feature_reads_the_mean_of_the_memory(op: str, backend: str, device: str) -> None:
    query = torch.zeros(1, 4, 1, 2, requires_grad=True, device=device)
    memory = torch.randn(3, 4, device=device)
    # The projection that leaves the readout as it is.
    weight = [torch.eye(8, device=device)] if op == "memory_read_project" else []
    with pinmem.backend(backend):
        readout, scores = getattr(ops, op)(query, memory, *weight)
        loss = (readout[:, 4:] * 1e-9).sum() + scores.sum() * 1e-13
        (grad,) = torch.autograd.grad(loss, query)
    assert scores.abs().max() == 0
    torch.testing.assert_close(readout[0, 4:, 0, 0], memory.mean(0))
    assert grad.isfinite().all()


LITTLE = replace(
    BASE, batch=1, height=2, width=3, full_height=5, full_width=4, classes=3, channels=6,
    labels="clean",
)  # fmt: skip


def assert_as_reference(case: Case, backend: str) -> None:
    """All outputs and gradients, to 1e-4: those of plain PyTorch in float64."""
    with pinmem.backend("reference"):
        expected = everything(case.to(torch.float64, "cpu", torch.contiguous_format))
    with pinmem.backend(backend):
        got = everything(case)
    for name, value in expected.items():
        assert_near(name, got[name], value, 1e-4 * float(value.detach().abs().max()) + 1e-6)


@pytest.mark.parametrize("norm", [1e-10, 1e-13])
@pytest.mark.parametrize("op, backend, device", implementations([*READS, "class_sums"]))
def test_a_short_feature(op: str, backend: str, device: str, norm: float) -> None:
    """Divided by its norm, and where that is below 1e-12 by 1e-12, which is linear."""
    case = build(op, LITTLE)
    case.inputs[0] = norm * torch.nn.functional.normalize(case.inputs[0], dim=1)
    assert_as_reference(case.to(torch.float32, device, torch.contiguous_format), backend)


@pytest.mark.parametrize("op, backend, device", implementations(["memory_update"]))
def test_slots_at_right_angles(op: str, backend: str, device: str) -> None:
    """A similarity of zero pulls at nothing."""
    case = build(op, LITTLE)
    slots = torch.eye(3, 6, dtype=torch.float64)
    case.inputs[:3] = slots, torch.zeros_like(slots), torch.zeros(3, dtype=torch.float64)
    assert_as_reference(case.to(torch.float32, device, torch.contiguous_format), backend)


@pytest.mark.parametrize("op, backend, device", implementations(LABELLED, reference=True))
def test_an_ignored_class_counts_for_nothing(op: str, backend: str, device: str) -> None:
    """A class that is ignored is ignored as 255 is."""
    case = build(op, LITTLE).to(torch.float32, device, torch.contiguous_format)
    name = LABELLED[op]
    labels = case.constants[name]
    assert (labels == 1).any()
    marked = case.constants | {name: labels.masked_fill(labels == 1, 255)}
    with pinmem.backend(backend):
        expected = everything(Case(op, case.inputs, marked))
        got = everything(Case(op, case.inputs, case.constants | {"ignore_index": 1}))
    assert_bitwise(got, expected)


@pytest.mark.parametrize(
    "op, backend, device", implementations(["upsampled_confusion"], reference=True)
)
def test_the_first_nan_is_the_largest_logit(op: str, backend: str, device: str) -> None:
    """As torch.argmax says, whether one lane of a GPU has it or another, once or several times."""
    for classes, where in ((5, 3), (5, 0), (70, 50), (70, slice(3, 60, 9))):
        logits = torch.randn(1, classes, 4, 6, device=device)
        logits[:, where, :2] = torch.nan
        target = torch.zeros(1, 9, 11, dtype=torch.uint8, device=device)
        full = F.interpolate(logits, size=(9, 11), mode="bilinear", align_corners=True)
        wanted = torch.bincount(full.argmax(1).flatten(), minlength=classes)
        with pinmem.backend(backend):
            assert torch.equal(ops.upsampled_confusion(logits, target)[0], wanted)
