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

from benchmarks.traffic import RESIDENT_WARPS

OPS = (
    "memory_read",
    "memory_read_project",
    "upsampled_cross_entropy",
    "class_sums",
    "memory_update",
    "upsampled_confusion",
)
# bytes of shared memory that a program may have
LIMITS = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}

# The tests interpret kernels where there is no GPU, and what is interpreted does not compile.
SCRIPT = """
import json, sys
from pinmem.kernels import offline
op, typical, targets, in_turn = json.loads(sys.argv[1])
for number, case in enumerate(offline.compile_cases([op], typical)):
    for target in [targets[number % len(targets)]] if in_turn else targets:
        print(json.dumps(offline.report(case, target)), flush=True)
"""


def compiled(op: str, typical: bool, targets: list[str], in_turn: bool) -> list[dict[str, Any]]:
    """A row a kernel and target; ``in_turn`` gives every kernel one of the targets."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    work = json.dumps([op, typical, targets, in_turn])
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, work]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    return rows


def check(rows: list[dict[str, Any]]) -> None:
    """Everything compiles, nothing lies on a thread's stack, and shared memory suffices."""
    wrong = []
    for row in rows:
        where = f"{row['target']} {row['kernel']}"
        if "failed" in row:
            wrong.append(f"{where}: {row['failed']}")
        elif row["spills"]:
            wrong.append(f"{where}: {row['spills']} bytes a thread spilled")
        elif row["shared"] > LIMITS[row["target"]]:
            wrong.append(f"{where}: {row['shared']} bytes of shared memory")
    assert not wrong, "\n".join(wrong)


def looking_twice(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The passes over the pixels of the reading ops."""
    passes = ("_forward", "_backward", "_double_backward", "_second")
    return [row for row in rows if row["kernel"].endswith(passes)]


@pytest.mark.parametrize("op", OPS)
def test_what_training_meets(op: str) -> None:
    """On the GPU at hand for most: no spills, wide loads, and matrix units where there are dots."""
    rows = compiled(op, True, ["sm_90"], False)
    check(rows)
    if op in ("memory_read", "memory_read_project"):
        passes = looking_twice(rows)
        assert len(passes) >= 3
        for row in passes:
            assert row["loads"].get("128", 0) > 0, row
            assert row["matrix"] > 0, row
            assert row["occupancy"] * 64 <= RESIDENT_WARPS, row


@pytest.mark.parametrize("op", OPS)
def test_other_gpus(op: str) -> None:
    """The same on the others, each kernel on one of them: all of it is the exhaustive test's."""
    check(compiled(op, True, ["sm_80", "gfx942", "sm_100"], True))


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", LIMITS)
@pytest.mark.parametrize("op", OPS)
def test_every_configuration(op: str, target: str) -> None:
    rows = compiled(op, False, [target], False)
    check(rows)
    if target == "sm_90":
        for row in looking_twice(rows):
            assert row["occupancy"] * 64 <= RESIDENT_WARPS or "K=19" not in row["kernel"], row


def test_a_report_reads_what_the_compiler_says() -> None:
    """Far too large a block is seen to spill, a small one is not, and without dots no matrix."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", SPILLING]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for small, large in zip(rows[::2], rows[1::2], strict=True):
        assert small["spills"] == small["matrix"] == 0
        assert large["spills"] > 0
    assert rows[0]["loads"]["128"] > 0


SPILLING = """
import json, torch
from pinmem.kernels import class_sums, offline
from pinmem.kernels.launch import recording
x = torch.empty((2, 256, 64, 64), dtype=torch.bfloat16, device="meta")
labels = torch.empty((2, 128, 128), dtype=torch.uint8, device="meta")
with recording("") as cases:
    class_sums.class_sums_backward(x.new_empty((19, 256)), x, labels, 19, 255)
for target in ("sm_90", "gfx942"):
    for block in (16, 128):
        case = cases[0]._replace(constexprs=cases[0].constexprs | {"BLOCK_N": block})
        print(json.dumps(offline.report(case, target)))
"""
