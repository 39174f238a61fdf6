"""``python -m benchmarks`` and ``make gpu-check`` from end to end, rehearsed on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import gpu_steps, plots, report
from benchmarks.case import FILES, OPS
from pinmem import backends, process_memory

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/amd-epyc-2-cores.json"
# What a bare GPU machine lacks, and nothing of `make gpu-check` needs.
ABSENT = ("torchvision", "jsonargparse", "matplotlib", "PIL", "rich", "tensorboard")
BARE = f"""
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {ABSENT} else found(name, path, target)
PathFinder.find_spec = classmethod(find_spec)
"""


def rehearsed(module: str, *arguments: object, **more: str) -> str:
    """What a module prints with ``--smoke``."""
    command = [sys.executable, "-m", module, "--smoke", *map(str, arguments)]
    # Kernels that are interpreted have no launch to leave out.
    usual = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=usual | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_gpu_check_rehearses_every_step(tmp_path: Path) -> None:
    """With nothing installed but what a bare GPU machine has."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    out = tmp_path / "out"
    bare = {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    text = rehearsed("benchmarks.gpu_check", "--out", out, **bare)
    steps = json.loads((out / "gpu-check.json").read_text())["steps"]
    assert tuple(step["name"] for step in steps) == gpu_steps.NAMES
    assert {step["verdict"] for step in steps} <= {"ok", "skipped"}
    log = (out / "gpu-check.log").read_text()
    assert "--tool racecheck" in log and "test_same_bits_every_time" in log
    assert "ncu --clock-control none" in log and "class_sums: " in log
    assert "test_ops_errors" in log and "test_data_transforms" not in log
    # The table of the steps comes last, after that of the ops.
    last = text.splitlines()[-len(steps) :]
    assert [line[9:].split()[0] for line in last] == [step["name"] for step in steps]
    assert text.index("upsampled_confusion") < text.rindex(last[0])
    assert len([*out.iterdir()]) <= 6

    results = report.load(out / "benchmarks.json")
    missing = {"training_step", "evaluation"}
    assert results["skipped"] == dict.fromkeys(missing, "No module named 'torchvision'")
    assert {row["op"] for row in results["rows"]} == {*FILES} - missing
    assert results["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert results["ceilings"]["copy"] > 0
    nothing_is_refused(results)
    sums = [row for row in results["rows"] if row["op"] == "class_sums"]
    assert all("scatter_add" in row["results"] for row in sums)
    every_op_is_called(results["dispatch"])


def nothing_is_refused(results: dict[str, Any]) -> None:
    for row in results["rows"]:
        for name, found in row["results"].items():
            assert "refused" not in found, (row["op"], row["pass"], name, found)
            assert 0 < found["low"] <= found["median"] <= found["high"]


def every_op_is_called(dispatch: dict[str, Any]) -> None:
    """C++ where it was built, Triton also without a GPU."""
    assert dispatch.keys() == {*OPS}
    for op, found in dispatch.items():
        own = backends.ON_GPU[op] == "triton"
        assert ("triton" in found) == (bool(find_spec("triton")) and own)
        for backend, passes in found.items():
            assert passes["PyTorch"].keys() == passes["ours"].keys(), (op, backend)
            assert min(*passes["PyTorch"].values(), *passes["ours"].values(), 1e9) > 0


def test_a_training_step_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    text = rehearsed("benchmarks", "--ops", "training_step", "--json", file)
    assert " images/s auto" in text
    results = report.load(file)
    nothing_is_refused(results)
    (row,) = results["rows"]
    if process_memory.supported():
        # Three networks against one.
        assert row["results"]["auto"]["peak"] < row["results"]["published"]["peak"]


def test_an_evaluation_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    assert " images/s auto" in rehearsed("benchmarks", "--ops", "evaluation", "--json", file)
    results = report.load(file)
    nothing_is_refused(results)
    assert {*results["rows"][0]["results"]} == {"auto", "plain", "contiguous", "network"}


def test_report(tmp_path: Path) -> None:
    report.write([RESULTS], tmp_path / "pages")
    text = (tmp_path / "pages" / f"{RESULTS.stem}.md").read_text()
    assert "| class_sums | fwd+bwd | bfloat16 |" in text
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit, match="got no benchmark results"):
        report.load(tmp_path / "other.json")


@pytest.mark.parametrize("file", sorted(RESULTS.parent.glob("*.json")), ids=lambda f: f.stem)
def test_a_page_is_the_generated_one(file: Path, tmp_path: Path) -> None:
    report.write([file], tmp_path)
    page = f"{file.stem}.md"
    assert (tmp_path / page).read_text() == (report.PAGES / page).read_text(), (
        "run python -m benchmarks --report benchmarks/results/*.json"
    )
    assert page in (report.PAGES.parent / "performance.md").read_text()


def test_plots(tmp_path: Path) -> None:
    made = plots.draw(report.load(RESULTS), tmp_path, "here")
    assert len(made) == 3
    assert all((tmp_path / name).read_text().startswith("<?xml") for name in made)


def test_pytest_benchmark_runs_a_file() -> None:
    """One file an op, under pytest-benchmark too."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--smoke"]
    command += ["--benchmark-disable", "benchmarks/upsampled_confusion.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--ops", "memory_reed"], "--ops: got memory_reed, expected some of class_sums"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        program.parse(arguments)
    assert message in capsys.readouterr().err


def test_cuda_is_refused_without_a_gpu(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        program.parse(["--device", "cuda"])
    assert "there is no CUDA device" in capsys.readouterr().err
