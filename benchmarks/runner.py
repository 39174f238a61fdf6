"""Runs the rows: checks, times and weighs every implementation, and keeps all of it."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

import pinmem
from benchmarks import ceilings, dispatch, peak_memory
from benchmarks.case import FILES, Case, cases, importable, title
from benchmarks.graphs import captured
from benchmarks.plan import Plan, in_tf32, short
from benchmarks.timing import Rotation, Timing, alternate
from pinmem import process_memory


def run(
    plan: Plan,
    names: Sequence[str] = FILES,
    budget: float | None = None,
    save: Callable[[dict[str, Any]], Any] = lambda _: None,
) -> dict[str, Any]:
    """Measure rows of some files.

    Args:
        plan: device, sizes, repetitions.
        names: of the files, see :data:`benchmarks.case.FILES`.
        budget: seconds after which no further row begins; the rest is listed as skipped.
        save: called with the results so far after each row.

    Returns:
        What the JSON file holds: environment, ceilings, rows, and what was skipped and why.
    """
    begun = time.monotonic()
    torch.set_num_threads(plan.threads)
    results: dict[str, Any] = {"environment": ceilings.environment(plan)}
    _say(f"{results['environment']['device_name']}: ceilings")
    results["ceilings"] = ceilings.measure(plan)
    results["dispatch"], results["skipped"] = dispatch.measure(plan)
    names, missing = importable(names)
    results["skipped"] |= missing
    results["rows"] = []
    weigh = _Scales(plan, names)
    try:
        for index, case in enumerate(cases(plan, names)):
            if budget is not None and time.monotonic() - begun > budget:
                results["skipped"][title(case)] = f"the {budget:.0f} s were over"
                continue
            _say(title(case))
            try:
                results["rows"].append(measure(plan, case, index, weigh))
            except torch.OutOfMemoryError as error:  # of all implementations together
                results["skipped"][title(case)] = _one_line(error)
                _say(f"  skipped: {_one_line(error)}")
            save(results)
            case.release()
            gc.collect()
            if plan.device == "cuda":
                torch.cuda.empty_cache()
    finally:
        weigh.close()
    results["seconds"] = time.monotonic() - begun
    save(results)
    return results


def refused(results: dict[str, Any]) -> list[str]:
    """Which of our implementations failed their check, or failed to run, and why."""
    return [
        f"{row['op']}, {row['pass']}, {row['size']}, {row['dtype']}, {name}: {found['refused']}"
        for row in results["rows"]
        for name, found in row["results"].items()
        if name in row["ours"] and "refused" in found
    ]


class _Scales:
    """Weighs in a process of its own on a CPU, in this one on a GPU."""

    def __init__(self, plan: Plan, names: Sequence[str]) -> None:
        self.plan = plan
        child = plan.device == "cpu" and process_memory.supported()
        self.child = peak_memory.Child(plan, names) if child else None

    def __call__(self, case: Case, index: int, name: str) -> dict[str, Any]:
        if self.plan.device == "cuda":
            return {"bytes": peak_memory.on_cuda(case, name)}
        if self.child is None:
            return {"failed": "this system does not reset a process's high-water mark"}
        return self.child.ask(index, name)

    def close(self) -> None:
        if self.child is not None:
            self.child.close()


def measure(plan: Plan, case: Case, index: int, weigh: _Scales) -> dict[str, Any]:
    """One row: an implementation whose results are wrong, or that fails, has no figures."""
    found: dict[str, dict[str, Any]] = {}
    for name in (*case.ours, *case.baselines):
        try:
            fault = case.check(name)
        except Exception as error:
            fault = _one_line(error)
            _forget(plan)
        found[name] = {"refused": fault} if fault else {}
        if fault:
            _say(f"  {name}: REFUSED: {fault}")
    right = [name for name, result in found.items() if not result]

    def choose(name: str) -> AbstractContextManager[Any]:
        return pinmem.backend(case.backend_of(name))

    calls = {name: Rotation([case.call(name, seed) for seed in range(case.sets)]) for name in right}
    for name, timing in alternate(calls, choose, plan).items():
        found[name] = timing._asdict()
    if plan.device == "cuda":
        for name, timing in _in_graphs(plan, case, right, choose).items():
            found[name]["graph"] = timing.median
    del calls
    for name in right:
        if plan.smoke and name not in (*case.ours, "published"):
            continue  # the other process compiles again, or builds networks: most of a rehearsal
        try:
            weighed = weigh(case, index, name)
        except Exception as error:
            weighed = {"failed": _one_line(error)}
            _forget(plan)
        found[name]["peak"] = weighed.get("bytes")
        if "failed" in weighed:
            found[name]["peak_failed"] = weighed["failed"]
    return {
        "op": case.op,
        "variant": case.variant,
        "pass": case.what,
        "size": case.size,
        "dtype": short(case.dtype),
        "moved": case.moved,
        "operations": case.operations,
        "images": case.images,
        "tf32": in_tf32(case.op, case.dtype, plan.device),
        "ours": list(case.ours),
        "skipped": case.skipped,
        "results": found,
    }


def _in_graphs(plan: Plan, case: Case, names: Sequence[str], choose: Any) -> dict[str, Timing]:
    """The same calls as CUDA graphs, where they can be recorded: what the device alone takes."""
    graphs = {}
    for name in names:
        try:
            with choose(name):
                recorded = [captured(case.call(name, s), plan.device) for s in range(case.sets)]
        except Exception as error:
            _say(f"  {name}: no graph: {_one_line(error)}")
            _forget(plan)
            continue
        graphs[name] = Rotation(recorded)
    return alternate(graphs, choose, plan)


def _forget(plan: Plan) -> None:
    gc.collect()
    if plan.device == "cuda":
        torch.cuda.empty_cache()


def _one_line(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
