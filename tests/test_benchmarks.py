"""The benchmarks: a fair baseline, honest checks, timers that alternate, reports made by script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pinmem
from benchmarks import __main__ as program
from benchmarks import (
    class_sums,
    compile_report,
    peak_memory,
    published,
    report,
    runner,
    stream_check,
    table,
)
from benchmarks.case import FILES, OPS, OpCase, cases, title
from benchmarks.check import Truth
from benchmarks.inputs import Inputs, Source
from benchmarks.plan import BACKWARD, FORWARD, SECOND, SMOKE_SIZE, Plan, Size
from benchmarks.timing import alternate, summary
from pinmem.meta import LossWeights, gather_domains

from .test_golden import HERE, build, close, files, load_recipe, log_of, memory_name

ROOT = Path(__file__).resolve().parent.parent
PLAN = Plan("cpu", True, sizes=(SMOKE_SIZE,), dtypes=(torch.float32,), repetitions=2, seconds=0)


# --- the published procedure, told again ----------------------------------------------------------


@pytest.mark.parametrize("path", files("memory_*.npz"), ids=lambda p: p.stem)
def test_published_memory(path: Path) -> None:
    """The memory module alone: what the release computes, and its gradients."""
    golden = np.load(path)
    slots = torch.from_numpy(golden["memory"]).double()
    momentum, temperature = float(golden["momentum"]), float(golden["temperature"])
    module = pinmem.ClassMemory(*slots.shape, momentum, temperature)
    load_recipe(module, memory_name, torch.float64)
    labels = torch.from_numpy(golden["mask"]).long()
    query = torch.from_numpy(golden["query"]).double().requires_grad_()

    found = published.read(module, slots, query, labels)
    written = published.write(module, slots, query, labels)
    loss = (
        (found.features * torch.from_numpy(golden["w_query"])).mean()
        + 0.3 * found.loss
        + 0.4 * written.divergence
        + 0.2 * written.classification
        + (written.slots * torch.from_numpy(golden["w_memory"])).sum()
    )
    loss.backward()
    values = {
        "read_out": found.features,
        "score_query": found.over_pixels,
        "score_memory": found.over_slots,
        "read_loss": found.loss,
        "div_loss": written.divergence,
        "cls_loss": written.classification,
        "new_memory": written.slots,
        "loss": loss,
        "grad_query": query.grad,
    }
    values |= {f"grad/{memory_name(n)}": p.grad for n, p in module.named_parameters()}
    for name, value in values.items():
        assert value is not None, name
        close(name, value, golden[name], 1e-9)


def published_steps(iterations: int):
    """Run the golden meta-iterations with the published procedure."""
    golden = np.load(HERE / "meta_memory_mldg_r18.npz")
    model, config = build(golden, torch.float64)
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config["lr"], momentum=config["momentum"], weight_decay=5e-4
    )
    weights = LossWeights(
        aux=0.0 if config["no_aux_loss"] else 0.4,
        reading=config["mem_readloss"],
        divergence=config["mem_divloss"],
        classification=config["mem_clsloss"],
    )
    trainer = published.PublishedTrainer(model, optimizer, weights)
    for i in range(iterations):
        images = torch.from_numpy(golden["images"][i]).double()
        labels = torch.from_numpy(golden["labels"][i]).long()
        sides = [json.loads(str(golden[f"splits_{side}"][i])) for side in ("train", "test")]
        batches = [gather_domains(images, labels, side) for side in sides]
        with stream_check.CountHostReads() as reads:
            losses = trainer.step(*batches, config["inner_lr"])
        yield golden, [log_of(log) for log in losses], trainer.slots, reads.count


def test_published_step() -> None:
    """One iteration: both passes' losses and the memory after it."""
    golden, logs, slots, reads = next(published_steps(1))
    close("memory", slots, golden["memory"][0], 1e-7)
    for j, log in enumerate(logs):
        for name, value in log.items():
            close(f"log/{name}[{j}]", value, golden[f"log/{name}"][j], 1e-7, 1e-9)
    # It asks the host about each of 19 classes in each of three writes, and logs two losses.
    assert reads >= 3 * 19 + 2


def test_published_step_leaves_its_copies_attached() -> None:
    """The outer gradient arrives at the trained network, not at the copies."""
    (case,) = cases(PLAN, ["training_step"])
    step = case.call("published")
    before = [p.detach().clone() for p in step.network.parameters()]
    memory = step.published.slots.clone()
    step()
    moved = [not torch.equal(a, b) for a, b in zip(before, step.network.parameters(), strict=True)]
    assert all(moved)
    assert not torch.equal(memory, step.published.slots)
    writer = dict(step.published.writer.named_parameters())
    assert {n for n, p in writer.items() if p.requires_grad} == {
        n for n in writer if n.startswith("memory.")
    }


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
    assert {*OPS} == {*pinmem.ops.__all__}
    assert {case.op for case in cases(PLAN)} == {*FILES}
    second = {case.op for case in cases(PLAN) if case.what == SECOND}
    assert {"upsampled_cross_entropy", "class_sums"} <= second
    for case in cases(Plan.of("cpu", False)):
        if case.op not in ("training_step", "memory_module"):
            assert 0 < case.moved < 2**31 and case.operations > 0, title(case)


def test_bytes_are_those_of_the_tensors() -> None:
    """The documented count, once by hand: 4 images of 768x768, float32."""
    size = Size(4, 768, 768, 16)
    pixels = 4 * 48 * 48
    features, sums = 4 * pixels * 256, 4 * 19 * 256
    assert class_sums.moved(size, 4, FORWARD, "") == features + 4 * pixels + sums
    assert class_sums.moved(size, 4, BACKWARD, "") == 3 * features + 8 * pixels + 2 * sums


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


@pytest.mark.skipif(not peak_memory.supported(), reason="no high-water mark to reset here")
def test_peak_memory() -> None:
    """Two arrays of 40 MB at once, of which the 10 MB that stay do not count."""
    done = subprocess.run(
        [sys.executable, "-c", MEGABYTES],
        cwd=ROOT,
        env={**os.environ, **peak_memory.ENVIRONMENT},
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


# --- the whole command, as make gpu-check rehearses it --------------------------------------------


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of ``make gpu-check`` with ``--smoke``."""
    out = tmp_path_factory.mktemp("gpu-check")
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    logs = "\n".join(f"--- {p.name}\n{p.read_text()[-2000:]}" for p in out.glob("*.log"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    return out, done.stdout


def test_gpu_check_rehearses_every_step(rehearsal: tuple[Path, str]) -> None:
    out, text = rehearsal
    steps = json.loads((out / "gpu-check.json").read_text())["steps"]
    names = ["build", "tests", "memcheck", "racecheck", "initcheck", "synccheck"]
    assert [step["name"] for step in steps] == [*names, "streams", "benchmarks"]
    assert {step["verdict"] for step in steps} <= {"ok", "left out"}
    assert "--tool racecheck" in text and "test_same_bits_every_time" in text
    # The table of the ops comes after the steps.
    assert text.index("here would run") < text.index("training_step") < text.rindex("benchmarks")


def test_the_results_hold_every_row(rehearsal: tuple[Path, str]) -> None:
    results = json.loads((rehearsal[0] / "benchmarks.json").read_text())
    assert {row["op"] for row in results["rows"]} == {*FILES}
    assert results["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert results["ceilings"]["copy"] > 0 and results["left_out"] == {}
    assert results["dispatch"].keys() == {"x * w", *OPS}
    for row in results["rows"]:
        for name, found in row["results"].items():
            assert "refused" not in found, (row["op"], row["pass"], name, found)
            assert 0 < found["low"] <= found["median"] <= found["high"]
    if peak_memory.supported():
        (step,) = [row for row in results["rows"] if row["op"] == "training_step"]
        # Three networks against one.
        assert step["results"]["auto"]["peak"] < step["results"]["published"]["peak"]


def test_report(rehearsal: tuple[Path, str], tmp_path: Path) -> None:
    """Tables between the markers, everything else untouched, the same text every time."""
    document = tmp_path / "performance.md"
    document.write_text(f"Before.\n{report.BEGIN}\nold\n{report.END}\nAfter.\n")
    file = rehearsal[0] / "benchmarks.json"
    report.write([file], document)
    first = document.read_text()
    assert first.startswith("Before.\n") and first.endswith("\nAfter.\n") and "old" not in first
    assert "| class_sums | fwd+bwd | bfloat16 |" in first
    report.write([file], document)
    assert document.read_text() == first
    document.write_text("no markers")
    with pytest.raises(SystemExit, match="expected one line"):
        report.write([file], document)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit, match="got no benchmark results"):
        report.load(tmp_path / "other.json")


def test_the_document_has_its_markers() -> None:
    text = report.DOCUMENT.read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1


def test_plots(rehearsal: tuple[Path, str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks import plots

    results = json.loads((rehearsal[0] / "benchmarks.json").read_text())
    made = plots.draw(results, tmp_path, "here")
    assert all((tmp_path / name).read_text().startswith("<?xml") for name in made)
    assert len(made) == (3 if any(row["ours"] for row in results["rows"]) else 2)


def test_pytest_benchmark_runs_a_file() -> None:
    """One file an op, under pytest-benchmark too."""
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--smoke"]
    command += ["--benchmark-disable", "benchmarks/upsampled_confusion.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_compile_report(monkeypatch, capsys, tmp_path: Path) -> None:
    """A line a kernel; one that does not compile is said, and makes the status 1."""
    kernels = [SimpleNamespace(name=name, num_warps=4) for name in ("read float32", "broken")]

    def build(case, target):
        if case.name == "broken":
            raise RuntimeError("out of\nregisters")
        values = {"registers": 64, "spills": 0, "shared": 4096, "occupancy": 0.5}
        return Report(**values, loads={128: 3, 32: 1}, matrix=2)

    Report = namedtuple("Report", "registers spills shared occupancy loads matrix")
    offline = SimpleNamespace(OPS=("memory_read",), TARGETS={"sm_90": None}, build=build)
    package = SimpleNamespace(offline=offline)
    monkeypatch.setitem(sys.modules, "pinmem.kernels", package)
    monkeypatch.setitem(sys.modules, "pinmem.kernels.offline", offline)
    read = SimpleNamespace(compile_cases=lambda: kernels)
    monkeypatch.setitem(sys.modules, "pinmem.kernels.memory_read", read)
    monkeypatch.setattr(compile_report, "find_spec", lambda name: name)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    file = tmp_path / "kernels.json"
    assert program.main(["--compile-report", "--json", str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    words = [
        "read",
        "float32",
        "sm_90",
        "4",
        "64",
        "0",
        "4096",
        "50%",
        "32:",
        "1,",
        "128:",
        "3",
        "2",
    ]
    assert lines[1].split() == words
    assert "FAILED" in lines[2] and "out of registers" in lines[2]
    assert len(json.loads(file.read_text())["kernels"]) == 2
    assert program.main(["--compile-report", "sm_1"]) == 1
    assert "got sm_1, expected sm_90" in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert program.main(["--compile-report"]) == 1
    assert "unset it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--ops", "memory_reed"], "--ops: got memory_reed, expected some of memory_read"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        program.parse(arguments)
    assert message in capsys.readouterr().err


def test_cuda_is_refused_without_a_gpu(capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        program.parse(["--device", "cuda"])
    assert "there is no CUDA device" in capsys.readouterr().err
