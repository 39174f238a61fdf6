"""What the compiler makes of the Triton kernels for GPUs that need not be there.

The first table has resources and what they leave room for, one kernel and target per line; the
second the bytes that each pass moves at 8x1024x2048, stride 8, from memory and through the L2, over
the least there is (see :mod:`benchmarks.bytes_moved`).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.report import save

HEADERS = (
    "kernel", "target", "registers", "spills B", "shared B", "programs", "bound by", "warps",
    "loads (bits: how many)", "matrix",
)  # fmt: skip
MOVED_HEADERS = ("op", "pass", "launches", "from memory", "through the L2")
ALL_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "gfx942")
PROCESSES = 2


def main(
    targets: Sequence[str], ops: Sequence[str], json_file: Path | None, smoke: bool = False
) -> int:
    """Compile every kernel of some ops for some targets; 1 where one does not fit.

    With ``smoke`` only what training meets, and no bytes.
    """
    reason = _unavailable()
    if reason:
        print(f"--compile-report: {reason}", file=sys.stderr)
        return 1
    targets = targets or ALL_TARGETS
    unknown = [name for name in targets if name not in ALL_TARGETS]
    if unknown:
        expected = ", ".join(ALL_TARGETS)
        print(f"--compile-report: got {', '.join(unknown)}, expected {expected}", file=sys.stderr)
        return 1
    from benchmarks import offline

    rows = []
    ops = [op for op in offline.OPS if op in ops]
    for row in compiled(targets, ops, smoke):
        rows.append(row)
        print(f"{len(rows)}: {row['target']} {row['kernel']}", file=sys.stderr, flush=True)
    moved = [] if smoke else bytes_moved(ops)
    if json_file is not None:
        save(json_file, {"kernels": rows, "moved": moved})
    print(_table([HEADERS, *(_cells(row) for row in rows)]))
    if moved:
        print("\n" + _table([MOVED_HEADERS, *(_moved_cells(row) for row in moved)]) + "\n")
    wrong = [f"{row['target']} {row['kernel']}: {offline.fault(row)}" for row in rows]
    wrong = [line for line in wrong if not line.endswith(": ")]
    print(f"{len(rows)} kernels, {len(wrong)} that do not compile, spill or do not fit")
    print("\n".join(wrong), end="\n" if wrong else "")
    return int(bool(wrong))


def compiled(targets: Sequence[str], ops: Sequence[str], smoke: bool) -> Iterator[dict[str, Any]]:
    """A row for each kernel in each configuration that ``auto`` can choose, and each target."""
    from benchmarks import offline

    configurations = offline.CONFIGURATIONS[: 1 if smoke else None]
    count = sum(1 for _ in offline.compile_cases(ops, configurations))
    work = [(number, target) for number in range(count) for target in targets]
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES, _begin, (tuple(ops), configurations)) as pool:
        yield from pool.imap(_report, work)


def bytes_moved(ops: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of :mod:`benchmarks.bytes_moved`, whose interpreter needs a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bytes_moved", *ops]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


_CASES: list[Any] = []


def _begin(ops: Sequence[str], configurations: Sequence[Any]) -> None:
    from benchmarks import offline

    # Kernels do not travel between processes; their numbers do.
    _CASES.extend(offline.compile_cases(ops, configurations))


def _report(work: tuple[int, str]) -> dict[str, Any]:
    from benchmarks import offline

    return offline.report(_CASES[work[0]], work[1])


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    first = (row["kernel"], row["target"])
    if "failed" in row:
        return (*first, "FAILED", row["failed"][:80], *[""] * 6)
    loads = ", ".join(f"{bits}: {count}" for bits, count in sorted(row["loads"].items()))
    names = ("registers", "spills", "shared", "programs", "bound", "warps")
    return (*first, *(str(row[name]) for name in names), loads, str(row["matrix"]))


def _moved_cells(row: dict[str, Any]) -> tuple[str, ...]:
    over = (f"{row['memory']:.2f}", f"{row['cache']:.2f}")
    return (row["op"], row["pass"], ", ".join(row["launches"]), *over)


def _unavailable() -> str:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton interprets under TRITON_INTERPRET=1 and compiles nothing: unset it"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if find_spec("pinmem.kernels") is None:
        return "pinmem.kernels is not installed (pip install -e . maps the folder kernels/ to it)"
    return ""
