"""Everything a GPU is for, in ten minutes: ``make gpu-check``, or with ``--smoke`` its rehearsal.

Builds, runs the tests that need a GPU, compute-sanitizer's four tools over the CUDA library,
looks for synchronisations, records every op as a CUDA graph, and measures. Needs Python, torch,
Triton, pytest and, for the CUDA library, nvcc: no network and nothing else. Where something is
missing the step says so; what fails does not stop the rest. The figures and logs lie in ``--out``
(``$OUT``, else build/gpu-check), the table comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks import table

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Tests of the CUDA library that run its kernels and little else: sanitizers are slow.
SANITIZED = "cuda-gpu and (test_same_bits_every_time or test_inputs_are_not_written)"
# pytest's status where a selection is empty.
NOTHING_COLLECTED = 5


@dataclass
class Step:
    """A command, how long it may take, and what runs in its place where there is no GPU."""

    name: str
    command: list[str]
    seconds: float
    rehearsal: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    verdict: str
    seconds: float
    note: str = ""


def steps(out: Path, arch: str) -> Iterator[Step]:
    """All of them, in order."""
    python = sys.executable
    install = [python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"]
    yield Step(
        "build",
        [*install, "-e", "."],
        200,
        # Nothing is changed: other tests run beside it.
        [*install, "--dry-run", "-e", "."],
        {"TORCH_CUDA_ARCH_LIST": arch, "MAX_JOBS": str(os.cpu_count() or 1)},
        "" if find_spec("pip") else "pip is not installed",
    )
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests = [str(path.relative_to(ROOT)) for path in gpu_tests()]
    workers = min(os.cpu_count() or 1, 12)
    parallel = ["-n", str(workers)] if find_spec("xdist") else []
    yield Step(
        "tests",
        [*pytest, "-m", "gpu", *parallel, *tests],
        200,
        [*pytest, "-m", "gpu", "--collect-only", *tests],
    )
    tool = shutil.which("compute-sanitizer", path=_search_path())
    checked = [*pytest, "-m", "gpu", "-k", SANITIZED, "tests/test_ops.py"]
    for name in SANITIZERS:
        options = ["--tool", name, "--error-exitcode", "9", "--print-limit", "20"]
        if name != "initcheck":
            # initcheck has to see who wrote what; the others need our kernels alone.
            options += ["--kernel-name", "kns=pinmem"]
        yield Step(
            name,
            [tool or "compute-sanitizer", *options, *checked],
            60,
            # One selection for all four.
            [*checked, "--collect-only"] if name == SANITIZERS[0] else None,
            # Otherwise an allocation inside a larger one hides where it ends.
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            _sanitizer_missing(tool),
        )
    stream_check = [python, "-m", "benchmarks.stream_check", "--device"]
    yield Step("streams", [*stream_check, "cuda"], 90, [*stream_check, "cpu"])
    measure = [python, "-m", "benchmarks", "--json", str(out / "benchmarks.json"), "--device"]
    yield Step(
        "benchmarks",
        [*measure, "cuda", "--seconds", "2", "--budget"],
        float("inf"),
        [*measure, "cpu", "--smoke"],
    )


def gpu_tests() -> list[Path]:
    """The test files in which something carries the marker."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [path for path in files if "mark.gpu" in path.read_text()]


def _search_path() -> str:
    homes = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    places = [f"{home}/{sub}" for home in homes if home for sub in ("bin", "compute-sanitizer")]
    return os.pathsep.join([os.environ.get("PATH", ""), *places])


def _sanitizer_missing(tool: str | None) -> str:
    if tool is None:
        return "compute-sanitizer was not found"
    return "" if (ROOT / "pinmem/_cuda.so").exists() else "pinmem/_cuda.so was not built"


class Check:
    """One run: a deadline, a folder, and what became of the steps so far."""

    def __init__(self, out: Path, smoke: bool, minutes: float, arch: str) -> None:
        self.out, self.smoke, self.arch = out, smoke, arch
        self.deadline = time.monotonic() + 60 * minutes
        self.outcomes: list[Outcome] = []

    def run(self) -> int:
        """Run all steps; 1 where one failed."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "benchmarks.json").unlink(missing_ok=True)
        for step in steps(self.out, self.arch):
            # What the build makes decides what later steps need: they are made one by one.
            outcome = self._rehearse(step) if self.smoke else self._run(step)
            self.outcomes.append(outcome)
            print(f"{outcome.verdict:<9}{outcome.name:<12}{outcome.seconds:6.1f} s  {outcome.note}")
            sys.stdout.flush()
        failed = any(outcome.verdict == "FAILED" for outcome in self.outcomes)
        summary = {"smoke": self.smoke, "steps": [vars(outcome) for outcome in self.outcomes]}
        (self.out / "gpu-check.json").write_text(json.dumps(summary, indent=1) + "\n")
        self._print_table()
        return int(failed)

    def _run(self, step: Step) -> Outcome:
        if step.missing:
            return Outcome(step.name, "left out", 0, step.missing)
        left = self.deadline - time.monotonic()
        if left < 5:
            return Outcome(step.name, "FAILED", 0, "no time was left")
        command = step.command
        if command[-1] == "--budget":
            # No row begins in the last part, so that the table is always printed.
            command = [*command, f"{max(left - 60, 1):.0f}"]
        return self._execute(step, command, min(step.seconds, left))

    def _rehearse(self, step: Step) -> Outcome:
        line = shlex.join(step.command)
        assert shlex.split(line) == step.command
        print(f"here would run: {line}")
        if step.rehearsal is None:
            return Outcome(step.name, "ok", 0, "rehearsed by the step before")
        if step.name == "build" and step.missing:
            return Outcome(step.name, "left out", 0, step.missing)
        return self._execute(step, step.rehearsal, 600)

    def _execute(self, step: Step, command: list[str], seconds: float) -> Outcome:
        log = self.out / f"{step.name}.log"
        begun = time.monotonic()
        # At the module's folder, so that `benchmarks` and `pinmem` are those of this tree.
        environment = {**os.environ, **step.environment, "PYTHONUNBUFFERED": "1"}
        with log.open("w") as file:
            try:
                status = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=seconds,
                ).returncode
            except subprocess.TimeoutExpired:
                status = -1
        taken = time.monotonic() - begun
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")[:150]
        if status == 0:
            return Outcome(step.name, "ok", taken, self._left_out(step) or _counts(lines))
        if status == -1:
            return Outcome(step.name, "FAILED", taken, f"stopped after {seconds:.0f} s: {last}")
        why = "no test fits the selection" if status == NOTHING_COLLECTED else last
        return Outcome(step.name, "FAILED", taken, f"status {status}, see {log}: {why}")

    def _left_out(self, step: Step) -> str:
        notes = ROOT / "pinmem/_build.txt"
        if step.name != "build" or not notes.exists():
            return ""
        return "; ".join(f"left out {line}" for line in notes.read_text().splitlines())

    def _print_table(self) -> None:
        file = self.out / "benchmarks.json"
        if file.exists():
            # Whatever rows there are, also where the run was stopped.
            print(table.text(json.loads(file.read_text())))
        print("\n".join(f"{o.verdict:<9}{o.name:<12}{o.note}" for o in self.outcomes))


def _counts(lines: list[str]) -> str:
    """pytest's last line, or a sanitizer's."""
    marks = (" passed", "tests collected", "ERROR SUMMARY", "RACECHECK SUMMARY", " checked, ")
    found = [line for line in lines if any(mark in line for mark in marks)]
    return " / ".join(line.strip("= ") for line in found[-2:])[:150]


def main(arguments: list[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="rehearse on a CPU")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of it")
    default = os.environ.get("OUT") or str(ROOT / "build/gpu-check")
    parser.add_argument("--out", type=Path, default=Path(default), help="logs and figures")
    args = parser.parse_args(arguments)
    arch = "9.0"
    if not args.smoke:
        import torch

        if not torch.cuda.is_available():
            parser.error("no CUDA device here; --smoke rehearses on a CPU")
        arch = os.environ.get("TORCH_CUDA_ARCH_LIST") or "{}.{}".format(
            *torch.cuda.get_device_capability()
        )
    return Check(args.out.absolute(), args.smoke, args.minutes, arch).run()


if __name__ == "__main__":
    sys.exit(main())
