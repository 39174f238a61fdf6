"""Everything a GPU is for, in nine minutes: ``make gpu-check``, or with ``--smoke`` its rehearsal.

Builds, asks every op on the GPU in both orders, looks for synchronisations, records CUDA graphs,
measures, runs compute-sanitizer's four tools and ncu, and what is left of the tests. Needs Python,
torch, Triton, pytest and, for the CUDA library, nvcc: no network. Where something is missing the
step says so; what fails or takes too long does not stop the rest. In ``--out`` (``$OUT``, else
build/gpu-check) gpu-check.json has every step that ended, gpu-check.log what they printed,
benchmarks.json the figures; the table comes last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import kernel_profile, report, table
from benchmarks.gpu_steps import NAMES, PROFILING, ROOT, SANITIZING, Step, search_path, steps

# pytest's status where a selection is empty.
NOTHING_COLLECTED = 5
COUNTS = re.compile(r"(\d+)(?:/\d+)? (passed|failed|errors?|checked|tests? collected)\b")


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    verdict: str
    seconds: float = 0
    note: str = ""
    lines: list[str] = field(default_factory=list)


class Check:
    """One run: a deadline, a folder, and what became of the steps so far."""

    def __init__(self, out: Path, smoke: bool, minutes: float, arch: str) -> None:
        self.out, self.smoke, self.arch = out, smoke, arch
        self.deadline = time.monotonic() + 60 * minutes
        self.outcomes: list[Outcome] = []

    def run(self, only: str | None = None) -> int:
        """Run all steps, or one; 1 where one failed."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name in ("benchmarks.json", "gpu-check.log"):
            (self.out / name).unlink(missing_ok=True)
        # What the build makes decides what later steps need: they are made one by one.
        later = 0 if only else SANITIZING + PROFILING
        for step in steps(self.out, self.arch, lambda: self._left() - later):
            if only not in (None, step.name):
                continue
            if only:
                step.seconds = self._left()
            try:
                outcome = self._rehearse(step) if self.smoke else self._run(step)
            except OSError as error:
                outcome = Outcome(step.name, "FAILED", 0, str(error))
            self.outcomes.append(outcome)
            summary = {"smoke": self.smoke, "steps": [asdict(each) for each in self.outcomes]}
            report.save(self.out / "gpu-check.json", summary)
            print(f"{step.name}: {outcome.verdict} after {outcome.seconds:.0f} s", flush=True)
        self._print_table()
        return int(any(outcome.verdict == "FAILED" for outcome in self.outcomes))

    def _run(self, step: Step) -> Outcome:
        left = self._left()
        if step.missing or left < 5:
            return Outcome(step.name, "skipped", 0, step.missing or "no time was left")
        return self.execute(step, step.commands, min(step.seconds, left))

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _rehearse(self, step: Step) -> Outcome:
        for part, command in step.commands.items():
            self._log(f"{step.name}, {part}, on a GPU", command)
        if step.name == "build" and step.missing:
            return Outcome(step.name, "skipped", 0, step.missing)
        return self.execute(step, step.rehearsal, 600)

    def execute(self, step: Step, commands: dict[str, list[str]], seconds: float) -> Outcome:
        """Run commands side by side; after so many seconds they are killed, children and all."""
        begun = time.monotonic()
        # At the module's folder, so that `benchmarks` and `pinmem` are those of this tree.
        environment = {**os.environ, "PATH": search_path(), **step.environment}
        running: dict[str, subprocess.Popen[bytes]] = {}
        printed: dict[str, list[str]] = {}
        status: dict[str, int | None] = {}
        with tempfile.TemporaryDirectory() as folder:
            logs = {part: Path(folder, str(i)) for i, part in enumerate(commands)}
            try:
                for part, command in commands.items():
                    with logs[part].open("wb") as log:
                        running[part] = subprocess.Popen(
                            command,
                            cwd=ROOT,
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                for part, process in running.items():
                    status[part] = _wait(process, begun + seconds - time.monotonic())
            finally:
                for part, process in running.items():
                    _kill(process)
                    printed[part] = logs[part].read_text(errors="replace").splitlines()
                    self._log(f"{step.name}, {part}", commands[part], printed[part])
        verdict, note = _judged(status, printed, seconds)
        if verdict == "stopped" and step.seconds < float("inf"):
            verdict = "FAILED"
        if step.name == "build" and verdict == "ok":
            note = _not_built()
        if any("ERR_NVGPUCTRPERM" in line for line in printed.get("ncu", [])):
            verdict, note = "skipped", "only root may read the GPU's performance counters here"
        slowest = kernel_profile.slowest(printed.get("ncu", []))
        return Outcome(step.name, verdict, time.monotonic() - begun, note, slowest)

    def _log(self, title: str, command: list[str], lines: Sequence[str] = ()) -> None:
        with (self.out / "gpu-check.log").open("a") as log:
            log.write("\n".join([f"=== {title}: {shlex.join(command)}", *lines, ""]))

    def _print_table(self) -> None:
        file = self.out / "benchmarks.json"
        if file.exists():
            # Whatever rows there are, also where the run was stopped.
            print(table.text(json.loads(file.read_text())))
        print()
        for outcome in self.outcomes:
            print(f"{outcome.verdict:<9}{outcome.name:<11}{outcome.seconds:4.0f} s  {outcome.note}")
            for line in outcome.lines:
                print(f"{'':<28}{line}")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """A process's status; None where it has not ended by then."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(max(seconds, 0))
    return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _judged(
    status: dict[str, int | None], printed: dict[str, list[str]], seconds: float
) -> tuple[str, str]:
    """A verdict, and what pytest or a sanitizer counted, or why it is not ``ok``."""
    wrong = []
    for part, code in status.items():
        if code not in (0, None, NOTHING_COLLECTED):
            last = next((line.strip() for line in reversed(printed[part]) if line.strip()), "")
            wrong.append(f"{part}: status {code}: {last[:100]}")
    late = [part for part, code in status.items() if code is None]
    counted: Counter[str] = Counter()
    for lines in printed.values():
        for count, what in COUNTS.findall("\n".join(lines[-5:])):
            counted[what] += int(count)
    note = ", ".join(f"{count} {what}" for what, count in counted.items())
    if late:
        note = "; ".join(filter(None, [f"stopped after {seconds:.0f} s: {', '.join(late)}", note]))
    if wrong:
        return "FAILED", "; ".join([*wrong[:3], note])
    if status and all(code == NOTHING_COLLECTED for code in status.values()):
        return "FAILED", "no test fits the selection"
    return ("stopped" if late else "ok"), note


def _not_built() -> str:
    """What was not built, and why."""
    notes = ROOT / "pinmem/_build.txt"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return "; ".join(f"not built: {line}" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="rehearse on a CPU")
    parser.add_argument("--only", choices=NAMES, help="one step, with all of the time")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it")
    default = os.environ.get("OUT") or str(ROOT / "build/gpu-check")
    parser.add_argument("--out", type=Path, default=Path(default), help="logs and figures")
    args = parser.parse_args(arguments)
    # What runs is ended too where this program is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arch = "9.0"
    if not args.smoke:
        import torch

        if not torch.cuda.is_available():
            parser.error("no CUDA device here; --smoke rehearses on a CPU")
        arch = os.environ.get("TORCH_CUDA_ARCH_LIST") or "{}.{}".format(
            *torch.cuda.get_device_capability()
        )
    return Check(args.out.absolute(), args.smoke, args.minutes, arch).run(args.only)


if __name__ == "__main__":
    sys.exit(main())
