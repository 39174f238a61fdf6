"""``python -m benchmarks --compile-report``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("pinmem.kernels")

from pinmem.kernels import offline

from benchmarks import __main__ as program
from benchmarks import compile_report

ROOT = Path(__file__).resolve().parent.parent


def test_compile_report(tmp_path: Path) -> None:
    """A line a kernel and target, with registers, loads and matrix units; figures in the JSON."""
    file = tmp_path / "kernels.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--smoke", "--json", str(file)]
    command += ["--ops", "upsampled_confusion", "--compile-report", "sm_90", "gfx942"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    header, *lines, last = done.stdout.splitlines()
    assert header.split()[:4] == ["kernel", "target", "warps", "registers"]
    assert last == f"{len(lines)} kernels, 0 that do not compile, spill or do not fit"
    rows = json.loads(file.read_text())["kernels"]
    assert len(rows) == len(lines) == 8
    assert [row["target"] for row in rows] == ["sm_90", "gfx942"] * 4
    for row, line in zip(rows, lines, strict=True):
        assert line.startswith(row["kernel"]) and str(row["registers"]) in line.split()
        assert row["spills"] == 0 < row["registers"] and 0 < row["occupancy"] <= 1
    assert rows[0]["loads"]


ROW = {
    "kernel": "class_sums bfloat16 _sum", "target": "sm_90", "warps": 8, "typical": True,
    "registers": 64, "spills": 0, "shared": 4096, "occupancy": 0.5,
    "loads": {128: 3, 32: 1}, "matrix": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "change, fault",
    [
        ({}, ""),
        ({"spills": 8}, "8 bytes a thread spilled"),
        ({"shared": 232449}, "232449 bytes of shared memory"),
        ({"failed": "CompilationError: no"}, "CompilationError: no"),
    ],
)
def test_what_is_wrong_is_said(change: dict, fault: str, monkeypatch, capsys) -> None:
    """In the table, below it, and by the status."""
    monkeypatch.setattr(compile_report, "compiled", lambda *_: iter([{**ROW, **change}]))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert program.main(["--compile-report", "sm_90"]) == bool(fault)
    lines = capsys.readouterr().out.splitlines()
    assert "failed" in change or lines[1].split()[-6:] == ["50%", "32:", "1,", "128:", "3", "2"]
    assert lines[2].startswith(f"1 kernels, {int(bool(fault))} ")
    assert lines[3:] == ([f"sm_90 class_sums bfloat16 _sum: {fault}"] if fault else [])


def test_refusals(monkeypatch, capsys) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert program.main(["--compile-report"]) == 1
    assert "unset it" in capsys.readouterr().err
    monkeypatch.delenv("TRITON_INTERPRET")
    assert program.main(["--compile-report", "sm_1"]) == 1
    assert "got sm_1, expected sm_80, sm_90, sm_100, gfx942" in capsys.readouterr().err
    assert tuple(offline.TARGETS) == compile_report.ALL_TARGETS
