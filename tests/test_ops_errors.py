"""Bad input: a clear error that names the argument, what came and what was expected."""

from __future__ import annotations

import pytest
import torch
from torch.func import jvp

import pinmem
from pinmem import ops
from pinmem.ops import _check

from .op_cases import LABELLED, Shape, build, implementations

GOOD = Shape(2, 3, 5, 7, 9, classes=4, channels=4, labels="clean", extras=False, outputs=6)


def call(op: str, **changes):
    """An op on good arguments but for the changed ones."""
    case = build(op, GOOD).to(torch.float32, "cpu", torch.contiguous_format)
    good = dict(zip(case.arguments, case.inputs, strict=True)) | case.constants
    return getattr(ops, op)(**(good | changes))


BAD = [
    ("memory_read", {"query": torch.zeros(4, 3, 5)}, r"query: got shape \[4, 3, 5\]"),
    ("memory_read", {"query": torch.zeros(2, 4, 3, 5).long()}, r"query: got torch.int64"),
    ("memory_read", {"query": torch.zeros(2, 4, 0, 5)}, r"query: got an empty map"),
    ("memory_read", {"memory": torch.zeros(3, 5)}, r"memory: got shape \[3, 5\].*4\]"),
    ("memory_read", {"memory": torch.zeros(0, 4)}, r"memory: got shape \[0, 4\]"),
    ("memory_read", {"memory": torch.zeros(3, 4).double()}, r"memory: got torch.float64"),
    ("memory_read", {"memory": torch.zeros(3, 4, device="meta")}, r"memory: got device meta"),
    ("memory_read", {"gumbel": torch.zeros(2, 3, 3, 5)}, r"gumbel: got shape .*\[2, 4, 3, 5\]"),
    ("memory_read", {"gumbel": torch.zeros(2, 4, 3, 5, requires_grad=True)}, r"gumbel: .*grad"),
    ("memory_read_project", {"weight": torch.zeros(6, 4)}, r"weight: got shape .*\[6, 8\]"),
    ("memory_read_project", {"weight": torch.zeros(8)}, r"weight: got shape \[8\]"),
    ("upsampled_cross_entropy", {"target": torch.zeros(2, 7, 9)}, r"target: got torch.float32"),
    ("upsampled_cross_entropy", {"target": torch.zeros(3, 7, 9).byte()}, r"target: got shape"),
    ("upsampled_cross_entropy", {"temperature": 0.0}, r"temperature: got 0.0"),
    ("upsampled_cross_entropy", {"class_weight": torch.ones(5)}, r"class_weight: got shape \[5\]"),
    (
        "upsampled_cross_entropy",
        {"class_weight": torch.ones(4, requires_grad=True)},
        r"class_weight: .*grad",
    ),
    ("class_sums", {"num_classes": 0}, r"num_classes: got 0"),
    ("class_sums", {"labels": torch.zeros(2, 0, 9).byte()}, r"labels: got an empty map"),
    ("memory_update", {"sums": torch.zeros(3, 4)}, r"sums: got shape \[3, 4\].*\[4, 4\]"),
    ("memory_update", {"mass": torch.zeros(4).double()}, r"mass: got torch.float64"),
    ("memory_update", {"bias": torch.zeros(4, device="meta")}, r"bias: got device meta"),
    ("memory_update", {"momentum": 1.5}, r"momentum: got 1.5"),
    ("upsampled_confusion", {"logits": torch.zeros(2, 4, 3)}, r"logits: got shape"),
]


def bad_cases() -> list:
    """Each bad argument on every backend that runs here: a GPU's checks are the same code."""
    return [
        pytest.param(*case.values, changes, message, id=f"{case.id}-{next(iter(changes))}")
        for op, changes, message in BAD
        for case in implementations([op], reference=True)
        if case.values[2] == "cpu"
    ]


def test_every_op_has_bad_arguments() -> None:
    assert {op for op, _, _ in BAD} == set(ops.__all__)


@pytest.mark.parametrize("op, backend, device, changes, message", bad_cases())
def test_bad_arguments(op: str, backend: str, device: str, changes: dict, message: str) -> None:
    with pinmem.backend(backend), pytest.raises(ValueError, match=message):
        call(op, **changes)


ON_A_CPU = [case for case in implementations(LABELLED, reference=True) if case.values[2] == "cpu"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("op, backend, device", ON_A_CPU)
def test_a_label_out_of_range_is_named(op, backend, device, dtype) -> None:
    argument = LABELLED[op]
    labels = torch.zeros(2, 7, 9, dtype=dtype)
    labels[1, 6, 8] = 4
    with pinmem.backend(backend):
        with pytest.raises(ValueError, match=f"{argument}: got label 4, expected 0 to 3 or ignore"):
            call(op, **{argument: labels})
        call(op, **{argument: labels}, ignore_index=4)
        if dtype == torch.int64:
            labels[1, 6, 8] = -100
            with pytest.raises(ValueError, match=f"{argument}: got label -100"):
                call(op, **{argument: labels})
            call(op, **{argument: labels}, ignore_index=-100)


@pytest.mark.parametrize("label", [-1, 4, 300])
def test_without_the_library_a_label_out_of_range_is_named(label: int, monkeypatch) -> None:
    monkeypatch.setattr(_check, "unavailable", lambda name: "not built")
    labels = torch.zeros(2, 7, 9, dtype=torch.int64)
    labels[1, 6, 8] = label
    with pinmem.backend("reference"):
        with pytest.raises(ValueError, match=f"labels: got label {label}, expected 0 to 3"):
            call("class_sums", labels=labels)
        call("class_sums", labels=labels, ignore_index=label)


ON_A_GPU = [case for case in implementations(LABELLED) if case.values[2] == "cuda"]


@pytest.mark.parametrize("op, backend, device", ON_A_GPU)
def test_on_a_gpu_a_label_out_of_range_counts_as_ignored(op, backend, device, monkeypatch):
    argument = LABELLED[op]
    labels = torch.zeros(2, 7, 9, dtype=torch.uint8, device="cuda")
    wrong, ignored = labels.clone(), labels.clone()
    wrong[:, 3], ignored[:, 3] = 77, 255  # a row that features of three rows read
    first = "features" if op == "class_sums" else "logits"
    features = torch.randn(2, 4, 3, 5, device="cuda")
    with pinmem.backend(backend):
        one = call(op, **{first: features, argument: wrong})
        other = call(op, **{first: features, argument: ignored})
        torch.testing.assert_close(one, other)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(one, call(op, **{first: features, argument: labels}))
        monkeypatch.setenv("PINMEM_CHECK", "1")
        with pytest.raises(ValueError, match=f"{argument}: got label 77"):
            call(op, **{first: features, argument: wrong})


@pytest.mark.parametrize("op, backend, device", implementations(["class_sums"], reference=True))
def test_every_label_fits_when_there_are_256_classes(op, backend, device) -> None:
    labels = torch.arange(256, dtype=torch.uint8, device=device).view(1, 16, 16)
    features = torch.randn(1, 3, 16, 16, device=device)
    with pinmem.backend(backend):
        _, mass = ops.class_sums(features, labels, 256, ignore_index=-1)
    torch.testing.assert_close(mass, torch.ones(256, device=device))


@pytest.mark.parametrize(
    ("op", "argument"), [("memory_read", "gumbel"), ("upsampled_cross_entropy", "class_weight")]
)
def test_forward_mode_along_what_has_no_derivative_raises(op: str, argument: str) -> None:
    """A tangent of zeros would be wrong."""
    value = torch.ones(4) if argument == "class_weight" else torch.zeros(2, 4, 3, 5)
    with pytest.raises(NotImplementedError, match=rf"{op}: only its first \d arguments have"):
        jvp(lambda value: call(op, **{argument: value}), (value,), (torch.ones_like(value),))
