"""What the compiler makes of the Triton kernels for GPUs that need not be there."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HEADERS = (
    "kernel", "target", "warps", "registers", "spills B", "shared B", "occupancy",
    "loads (bits: how many)", "matrix",
)  # fmt: skip
ALL_TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
PROCESSES = 2


def main(
    targets: Sequence[str], ops: Sequence[str], json_file: Path | None, smoke: bool = False
) -> int:
    """Compile every kernel of some ops for some targets; 1 where one does not fit.

    With ``smoke`` only what training meets.
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
    from pinmem.kernels import offline

    rows = []
    for row in compiled(targets, [op for op in offline.OPS if op in ops], smoke):
        rows.append(row)
        print(f"{len(rows)}: {row['target']} {row['kernel']}", file=sys.stderr, flush=True)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({"kernels": rows}, indent=1) + "\n")
    print(text(rows))
    wrong = [f"{row['target']} {row['kernel']}: {offline.faults(row)}" for row in rows]
    wrong = [line for line in wrong if not line.endswith(": ")]
    print(f"{len(rows)} kernels, {len(wrong)} that do not compile, spill or do not fit")
    print("\n".join(wrong), end="\n" if wrong else "")
    return int(bool(wrong))


def compiled(targets: Sequence[str], ops: Sequence[str], typical: bool) -> Iterator[dict[str, Any]]:
    """A row for each kernel in each configuration that ``auto`` can choose, and each target."""
    from pinmem.kernels import offline

    count = sum(1 for _ in offline.compile_cases(ops, typical))
    work = [(number, target) for number in range(count) for target in targets]
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES, _begin, (tuple(ops), typical)) as pool:
        yield from pool.imap(_report, work)


_CASES: list[Any] = []


def _begin(ops: Sequence[str], typical: bool) -> None:
    from pinmem.kernels import offline

    # Kernels do not travel between processes; their numbers do.
    _CASES.extend(offline.compile_cases(ops, typical))


def _report(work: tuple[int, str]) -> dict[str, Any]:
    from pinmem.kernels import offline

    return offline.report(_CASES[work[0]], work[1])


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [HEADERS, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADERS))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    first = (row["kernel"], row["target"], str(row["warps"]))
    if "failed" in row:
        return (*first, "FAILED", row["failed"][:80], "", "", "", "")
    loads = ", ".join(f"{bits}: {count}" for bits, count in sorted(row["loads"].items()))
    numbers = (str(row["registers"]), str(row["spills"]), str(row["shared"]))
    return (*first, *numbers, f"{row['occupancy']:.0%}", loads, str(row["matrix"]))


def _unavailable() -> str:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton interprets under TRITON_INTERPRET=1 and compiles nothing: unset it"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if find_spec("pinmem.kernels") is None:
        return "pinmem.kernels is not installed (pip install -e . maps the folder kernels/ to it)"
    return ""
