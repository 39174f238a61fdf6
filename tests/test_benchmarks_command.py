"""``python -m benchmarks`` and ``make gpu-check`` from end to end, rehearsed on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import peak_memory, plots, report
from benchmarks.case import FILES, OPS

# One rehearsal for all, whatever process runs them.
pytestmark = pytest.mark.xdist_group("rehearsal")
ROOT = Path(__file__).resolve().parent.parent


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
    document.write_text(f"Before.\n{report.BEGIN}\nbefore this run\n{report.END}\nAfter.\n")
    file = rehearsal[0] / "benchmarks.json"
    report.write([file], document)
    first = document.read_text()
    assert first.startswith("Before.\n") and first.endswith("\nAfter.\n")
    assert "before this run" not in first
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
    results = json.loads((rehearsal[0] / "benchmarks.json").read_text())
    made = plots.draw(results, tmp_path, "here")
    assert all((tmp_path / name).read_text().startswith("<?xml") for name in made)
    assert len(made) == (3 if any(row["ours"] for row in results["rows"]) else 2)


def test_pytest_benchmark_runs_a_file() -> None:
    """One file an op, under pytest-benchmark too."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--smoke"]
    command += ["--benchmark-disable", "benchmarks/upsampled_confusion.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


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
