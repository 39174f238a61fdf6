"""The benchmarks: honest checks, timers that alternate, memory that is counted once."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pinmem
from benchmarks import __main__ as program
from benchmarks import class_sums, dispatch, peak_memory, runner, stream_check, table
from benchmarks.case import FILES, OPS, OpCase, cases, title
from benchmarks.check import Truth
from benchmarks.inputs import Inputs, Source
from benchmarks.plan import BACKWARD, FORWARD, SECOND, SMOKE_SIZE, Plan, Size
from benchmarks.timing import alternate, summary
from pinmem import process_memory

ROOT = Path(__file__).resolve().parent.parent
PLAN = Plan("cpu", True, sizes=(SMOKE_SIZE,), dtypes=(torch.float32,), repetitions=2, seconds=0)


# --- checks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [FORWARD, BACKWARD, SECOND])
def test_a_wrong_implementation_is_refused(what, monkeypatch) -> None:
    """Wrong by a tenth of a percent in one output: no figures, status 1, and the reason."""

    def wrong(features, labels, num_classes):
        sums, mass = class_sums.EAGER(features, labels, num_classes)
        return sums * 1.001, mass

    monkeypatch.setattr(class_sums, "OURS", wrong)
    case = OpCase(class_sums, PLAN, SMOKE_SIZE, torch.float32, what, "")
    case.ours = ("cpu",)
    row = runner.measure(PLAN, case, 0, lambda *_: {"bytes": 0})
    assert row["results"]["cpu"].keys() == {"refused"}
    assert "off by" in row["results"]["cpu"]["refused"]
    assert row["results"]["eager"]["median"] > 0
    results = {"rows": [row]}
    (line,) = runner.refused(results)
    assert line.startswith("class_sums, ") and "off by" in line

    monkeypatch.setattr(runner, "run", lambda *_: results)
    monkeypatch.setattr(table, "text", lambda _: "")
    assert program.main(["--smoke"]) == 1


def test_an_implementation_that_raises_is_refused(monkeypatch) -> None:
    def raising(*_, **constants):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(class_sums, "OURS", raising)
    case = OpCase(class_sums, PLAN, SMOKE_SIZE, torch.float32, FORWARD, "")
    case.ours = ("cpu",)
    row = runner.measure(PLAN, case, 0, lambda *_: {"bytes": 0})
    assert row["results"]["cpu"] == {"refused": "RuntimeError: no such kernel"}


def test_the_measure() -> None:
    """Twice plain PyTorch's error passes, more does not; NaN, shapes and counts are looked at."""
    exact, dtype = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.float32
    truth = Truth([exact], [(exact + 1e-3).float()], dtype)
    assert truth.fault([(exact + 1.9e-3).float()], strict=True) == ""
    assert "off by" in truth.fault([(exact + 2.1e-3).float()], strict=True)
    assert truth.fault([exact.float() * float("nan")], strict=True) == "result 0: not finite"
    assert "shape" in truth.fault([exact[:1]], strict=True)
    assert truth.fault([], strict=True) == "0 results, expected 1"
    counts = torch.tensor([[10**6, 0]])
    truth = Truth([counts], [counts], dtype)
    assert truth.fault([counts + torch.tensor([[-3, 3]])], strict=True) == ""
    assert truth.fault([counts + torch.tensor([[-30, 30]])], strict=True) != ""


def test_every_op_has_a_file_and_a_row() -> None:
    assert {case.op for case in cases(PLAN)} == {*FILES}
    second = {case.op for case in cases(PLAN) if case.what == SECOND}
    assert {"upsampled_cross_entropy", "class_sums"} <= second
    for case in cases(Plan.of("cpu", False)):
        if case.op not in ("training_step", "memory_module", "evaluation"):
            assert 0 < case.moved < 2**31 and case.operations > 0, title(case)


def test_bytes_are_those_of_the_tensors() -> None:
    """The documented count, once by hand: 4 images of 768x768, float32."""
    size = Size(4, 768, 768, 16)
    pixels = 4 * 48 * 48
    features, sums = 4 * pixels * 256, 4 * 19 * 256
    assert class_sums.moved(size, 4, FORWARD, "") == features + 4 * pixels + sums
    assert class_sums.moved(size, 4, BACKWARD, "") == 3 * features + 8 * pixels + 2 * sums


def test_backward_passes_at_the_large_size_come_first() -> None:
    # One op has no backward pass, one has two rows.
    rows = [*cases(Plan.of("cuda", False), OPS)][: len(OPS)]
    assert {case.op for case in rows} == {*OPS} - {"upsampled_confusion"}
    assert all(case.what == BACKWARD for case in rows)
    assert {case.size for case in rows if " slots" not in case.size} == {"8x1024x2048, stride 8"}


@pytest.mark.parametrize("sizes", [(5, 7, 17, 26), (1, 1, 9, 4), (9, 8, 5, 3)])
def test_the_lean_class_sums_are_right_and_lean(sizes: tuple[int, ...]) -> None:
    h, w, height, width = sizes
    features = torch.randn(2, 4, h, w, dtype=torch.float64)
    labels = torch.randint(0, 19, (2, height, width), dtype=torch.uint8)
    labels[torch.rand(labels.shape) < 0.2] = 255
    expected = pinmem.reference.class_sums(features, labels, 19)
    torch.testing.assert_close(class_sums.MORE["scatter_add"](features, labels, 19), expected)

    class NothingLarge(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            assert not isinstance(result, torch.Tensor) or result.numel() < 19 * 600 * 600
            return result

    with NothingLarge():
        class_sums.MORE["scatter_add"](features, labels.new_zeros(2, 600, 600), 19)
        with pytest.raises(AssertionError):
            class_sums.EAGER(features, labels.new_zeros(2, 600, 600), 19)


# --- the table ------------------------------------------------------------------------------------


def test_floors_images_and_dispatch_are_in_the_table() -> None:
    timing = {"median": 0.5, "low": 0.4, "high": 0.6, "peak": 10**6}
    row = {
        "op": "class_sums", "variant": "", "pass": BACKWARD, "size": "one", "dtype": "float32",
        "moved": 10**9, "operations": 10**9, "images": None, "ours": ["cpu"], "skipped": {},
        "results": {"cpu": timing, "eager": timing, "scatter_add": timing},
    }  # fmt: skip
    step = row | {"op": "step", "moved": None, "operations": None, "images": 4, "size": "two"}
    passes = {FORWARD: 10.0, BACKWARD: 50.0}
    found = {"cpu": {"PyTorch": passes, "ours": {FORWARD: 12.5}}}
    results = {
        "ceilings": {"copy": 1e10, "matrix": 5e9}, "rows": [row, step],
        "dispatch": {"class_sums": found},
    }  # fmt: skip
    (_, ops), (_, steps), (_, calls) = table.tables(results)
    place = {name: i for i, name in reversed([*enumerate(table.HEADERS)])}
    # A tenth of a second for the bytes, a fifth for the arithmetic.
    assert ops[1][place["floor"]] == "200 ms (40%)"
    assert ops[2][0] == "  scatter_add" and "(1.00x)" in ops[2][place["eager"]]
    assert steps[1][place["ours"]] == "500 ms ±20%, 8 images/s cpu"
    assert calls[1] == ("class_sums", "cpu", "10", "12.5", "2.5", "50", "-", "-")


@pytest.mark.parametrize("op", OPS)
def test_pytorchs_own_dispatch_allocates_what_an_op_does(op: str) -> None:
    tiny = dispatch._tiny("cpu")[op]
    own = dispatch._of_pytorch(op, tiny)

    def made(result) -> list:
        tensors = result if isinstance(result, tuple) else (result,)
        return [(tensor.shape, tensor.dtype) for tensor in tensors]

    assert made(own.forward()) == made(tiny.forward())
    for leaf in tiny.tensors[: tiny.leaves]:
        leaf.requires_grad_()
    if tiny.leaves:
        assert made(own.backward()) == [(t.shape, t.dtype) for t in tiny.tensors[: tiny.leaves]]


# --- timing and memory ----------------------------------------------------------------------------


def test_implementations_are_timed_in_turn() -> None:
    order: list[str] = []
    calls = {name: (lambda n=name: order.append(n)) for name in "ab"}
    now = count()
    plan = Plan("cpu", repetitions=6, seconds=1e9)
    chosen: list[str] = []

    def choose(name: str):
        chosen.append(name)
        return pinmem.backend("reference")

    timings = alternate(calls, choose, plan, lambda: float(next(now)))
    assert all(t.repetitions == 6 for t in timings.values())
    # After the warm-up of each, strictly one after the other.
    assert chosen[2:] == ["a", "b"] * 6
    shortened = Plan("cpu", repetitions=50, seconds=0)
    assert alternate(calls, choose, shortened, lambda: float(next(now)))["a"].repetitions == 5


def test_summary() -> None:
    assert summary([3.0, 1.0, 2.0, 10.0, 4.0]) == (3.0, 2.0, 4.0, 5)
    assert summary([1.0]) == (1.0, 1.0, 1.0, 1)


MEGABYTES = """
import sys, torch
from benchmarks import peak_memory
torch.set_num_threads(1)
class Case:
    keeps_state = False
    def backend_of(self, name): return "reference"
    def call(self, name):
        def work():
            a = torch.ones(40_000_000, dtype=torch.uint8)
            b = a + 1
            del a
            return (b[:10_000_000].clone(),)
        return work
print(peak_memory.on_cpu(Case(), ""))
"""


@pytest.mark.skipif(not process_memory.supported(), reason="no high-water mark to reset here")
def test_peak_memory() -> None:
    """Two arrays of 40 MB at once, of which the 10 MB that stay do not count."""
    done = subprocess.run(
        [sys.executable, "-c", MEGABYTES],
        cwd=ROOT,
        env={**os.environ, **process_memory.ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 68e6 < int(done.stdout) < 76e6


def test_views_are_held_once() -> None:
    tensor = torch.zeros(1000)
    assert peak_memory.held([tensor, tensor[:10], torch.zeros(10)]) == 4040


def test_float64_inputs_are_the_same_numbers() -> None:
    inputs = class_sums.make(SMOKE_SIZE, torch.bfloat16, Source(PLAN, 0), "")
    wide = inputs.double()
    assert wide.leaves[0].dtype == torch.float64 and wide.leaves[0].requires_grad
    assert torch.equal(wide.leaves[0].bfloat16(), inputs.leaves[0])
    assert wide.constants["labels"].dtype == torch.uint8
    assert isinstance(wide, Inputs)


# --- waiting for the host -------------------------------------------------------------------------


def test_a_call_that_waits_is_found() -> None:
    class Waiting:
        def backend_of(self, name):
            return "reference"

        def call(self, name):
            def work():
                x = torch.ones(3)
                return (x * float(x.sum()),)

            return work

    fault = stream_check.check(Waiting(), "", "cpu", graph=True)
    assert fault == "HostRead: _local_scalar_dense reads a value"
