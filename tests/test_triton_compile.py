"""Every Triton kernel compiles for GPUs that need not be there, without spilling its registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton")
pytest.importorskip("pinmem.kernels")

# Not memory_update yet: its double backward spills 112 bytes a thread in float32 on sm_90.
OPS = (
    "memory_read",
    "memory_read_project",
    "upsampled_cross_entropy",
    "class_sums",
    "upsampled_confusion",
)
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# A handful of registers that wait on the stack through a long kernel cost nothing; more is a
# block size chosen wrongly. What training meets does without.
SPILLED = 64

# The tests interpret kernels where there is no GPU, and what is interpreted does not compile.
SCRIPT = """
import json, sys
from pinmem.kernels import offline
for row in offline.reports(*json.loads(sys.argv[1])):
    print(json.dumps(row), flush=True)
"""


def compiled(targets: tuple[str, ...], ops: tuple[str, ...], typical: bool) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps([targets, ops, typical])],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert rows
    return rows


def check(rows: list[dict[str, Any]], spilled: int) -> None:
    limits = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
    wrong = []
    for row in rows:
        where = f"{row['target']} {row['kernel']}"
        if "failed" in row:
            wrong.append(f"{where}: {row['failed']}")
        elif row["spills"] > spilled:
            wrong.append(f"{where}: {row['spills']} bytes a thread spilled")
        elif row["shared"] > limits[row["target"]]:
            wrong.append(f"{where}: {row['shared']} bytes of shared memory")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("op", OPS)
def test_what_training_meets(op: str) -> None:
    """On the GPU at hand for most: no spills, wide loads, and matrix units where there are dots."""
    rows = compiled(("sm_90",), (op,), typical=True)
    check(rows, spilled=0)
    if op in ("memory_read", "memory_read_project"):
        reading = [row for row in rows if row["kernel"].endswith(("_forward", "_backward"))]
        assert len(reading) >= 2
        for row in reading:
            assert row["loads"].get("128", 0) > 0, row
            assert row["matrix"] > 0, row


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("PINMEM_SLOW") != "1", reason="PINMEM_SLOW=1: takes an hour")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_every_configuration(op: str, target: str) -> None:
    rows = compiled((target,), (op,), typical=False)
    check([row for row in rows if row["typical"]], spilled=0)
    check(rows, SPILLED)
