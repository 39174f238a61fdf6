"""What the compiler makes of the Triton kernels for GPUs that need not be there."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HEADERS = (
    "kernel", "target", "warps", "registers", "spills B", "shared B", "occupancy",
    "loads (bits: how many)", "matrix",
)  # fmt: skip


def main(targets: Sequence[str], ops: Sequence[str], json_file: Path | None) -> int:
    """Compile every kernel of some ops for some targets; 1 where one does not compile."""
    reason = _unavailable()
    if reason:
        print(f"--compile-report: {reason}", file=sys.stderr)
        return 1
    from pinmem.kernels import offline

    unknown = [name for name in targets if name not in offline.TARGETS]
    if unknown:
        expected = ", ".join(offline.TARGETS)
        print(f"--compile-report: got {', '.join(unknown)}, expected {expected}", file=sys.stderr)
        return 1
    rows = [row for target in targets for row in compiled(target, ops)]
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({"kernels": rows}, indent=1) + "\n")
    lines = [HEADERS, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADERS))]
    for line in lines:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    return int(any("failed" in row for row in rows))


def compiled(target: str, ops: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each kernel in each configuration that ``auto`` can choose."""
    from pinmem.kernels import offline

    rows: list[dict[str, Any]] = []
    for op in offline.OPS:
        if op not in ops or find_spec(f"pinmem.kernels.{op}") is None:
            continue
        for case in importlib.import_module(f"pinmem.kernels.{op}").compile_cases():
            print(f"{target}: {case.name}", file=sys.stderr, flush=True)
            row = {"kernel": case.name, "target": target, "warps": case.num_warps}
            try:
                row |= offline.build(case, offline.TARGETS[target])._asdict()
            except Exception as error:
                row["failed"] = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            rows.append(row)
    return rows


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    first = (row["kernel"], row["target"], str(row["warps"]))
    if "failed" in row:
        return (*first, "FAILED", row["failed"], "", "", "", "")
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
