"""The most memory that a call has at any time, above its inputs and its results.

A training step has no inputs to speak of: there everything counts, the networks, their copies
and the optimiser's state too.

On a GPU PyTorch's allocator knows, on a CPU the kernel does (pinmem/process_memory.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pinmem
from benchmarks.case import Case, cases
from benchmarks.plan import Plan
from pinmem.process_memory import ENVIRONMENT, peak, reset_peak, resident


def held(results: Sequence[Tensor]) -> int:
    """Bytes of the memory behind tensors; views of one storage count once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in results}
    return sum(storages.values())


def on_cuda(case: Case, name: str) -> int:
    """Bytes above inputs and results on the current GPU."""
    return _weigh(case, name, torch.cuda.memory_allocated, _reset_cuda, _most_on_cuda)


def on_cpu(case: Case, name: str) -> int:
    """Bytes above inputs and results; for a process that was started for it."""
    return _weigh(case, name, resident, reset_peak, peak)


def _weigh(
    case: Case,
    name: str,
    now: Callable[[], int],
    reset: Callable[[], Any],
    most: Callable[[], int],
) -> int:
    with pinmem.backend(case.backend_of(name)):
        call = case.call(name)
        call()  # loads libraries, compiles
        if case.keeps_state:
            del call
            before = now()
            call = case.call(name)
            call()
        else:
            before = now()
        reset()
        results = call()
        return max(most() - before - held(results), 0)


def _reset_cuda() -> None:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()


def _most_on_cuda() -> int:
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


class Child:
    """A process that measures one row after the other; started again where it dies."""

    def __init__(self, plan: Plan, names: Sequence[str]) -> None:
        self.command = [sys.executable, "-m", "benchmarks.peak_memory", "--device", plan.device]
        self.command += ["--threads", str(plan.threads), "--ops", ",".join(names)]
        self.command += ["--smoke"] * plan.smoke + ["--channels-last"] * plan.channels_last
        self.process: subprocess.Popen[str] | None = None

    def ask(self, index: int, name: str) -> dict[str, Any]:
        """``{"bytes": int}`` or ``{"failed": why}`` for the row of that index in ``cases``."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **ENVIRONMENT},
                cwd=Path(__file__).parent.parent,
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps([index, name]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        status = self.process.wait()
        self.process = None
        return {"failed": f"its process ended with status {status}"}

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.communicate()
            self.process = None


def main() -> None:
    """Answer the questions on standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ops", default="")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = list(cases(Plan.of(args.device, args.smoke, args.channels_last), args.ops.split(",")))
    answers = sys.stdout
    # What PyTorch has to say is not an answer.
    sys.stdout = sys.stderr
    last: Case | None = None
    for line in sys.stdin:
        index, name = json.loads(line)
        if last is not None and last is not rows[index]:
            last.release()
        last = rows[index]
        try:
            answer: dict[str, Any] = {"bytes": on_cpu(last, name)}
        except Exception as error:
            answer = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
