"""Does anything wait for the host? ``python -m benchmarks.stream_check --device cuda|cpu``

Runs every pass of every op, and a whole training step, where a synchronisation is an error; then
records the passes as CUDA graphs, replays them on the same inputs and compares. On a CPU it
rehearses: there the reads of single values that would make a GPU wait are the error, outside the
check of labels, which a GPU does not make, and a graph is the call itself.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pinmem
from benchmarks.case import OPS, Case, cases, importable, title
from benchmarks.graphs import captured
from benchmarks.plan import SMOKE_SIZE, Plan
from pinmem.backends import candidates
from pinmem.ops import _check

# What copies a value to the host, or needs one to know how large its result is.
HOST_READS = frozenset({
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2",
    "bincount", "repeat_interleave",
})  # fmt: skip


# They count the pixels of a mask, unlike those of a list of indices.
INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


class HostRead(RuntimeError):
    """Something asked for a value."""


class CountHostReads(TorchDispatchMode):
    """Counts the operations that would make a GPU wait; raises at the first if asked to."""

    def __init__(self, forbid: bool = False) -> None:
        super().__init__()
        self.forbid, self.count = forbid, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.partition("::")[2]
        if name in HOST_READS or (name in INDEXED and _has_mask(args[1])):
            self.count += 1
            if self.forbid:
                raise HostRead(f"{name} reads a value")
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def nothing_waits(device: str) -> Iterator[None]:
    """Inside, a synchronisation with the host raises."""
    if device == "cpu":
        with mock.patch.object(_check, "_bad_label", lambda *_: None), CountHostReads(forbid=True):
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def check(case: Case, name: str, device: str, graph: bool) -> str:
    """What is wrong with an implementation of a row; empty where nothing is."""
    with pinmem.backend(case.backend_of(name)):
        call = case.call(name)
        call()  # kernels are compiled, and libraries loaded, at their first call
        try:
            with nothing_waits(device):
                expected = call()
        except RuntimeError as error:
            return _one_line(error)
        if not graph:
            return ""
        try:
            results = captured(call, device)()
        except RuntimeError as error:
            return f"no graph: {_one_line(error)}"
        for i, (got, wanted) in enumerate(zip(results, expected, strict=True)):
            if not torch.equal(got, wanted):
                return f"result {i} of the graph differs"
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def main() -> int:
    """Run the program; 1 where something waits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream_check", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = parser.parse_args().device
    plan = Plan(device, smoke=True, sizes=(SMOKE_SIZE,), dtypes=(torch.float32,), repetitions=1)
    wrong = checked = 0
    names, skipped = importable((*OPS, "training_step"))
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    for case in cases(plan, names):
        step = case.op not in OPS
        plain = [op for op in OPS if candidates(op, device, torch.float32)[0] == "reference"]
        if step and plain and device == "cpu":
            print(f"skipped {title(case)}: plain PyTorch, which may look, runs {', '.join(plain)}")
            continue
        for name in case.ours:
            fault = check(case, name, device, graph=not step)
            checked, wrong = checked + 1, wrong + bool(fault)
            print(f"{'FAILED' if fault else 'ok    '} {name:<7}{title(case)} {fault}", flush=True)
        case.release()
    print(f"{checked} checked, {wrong} wait for the host or make no graph")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
