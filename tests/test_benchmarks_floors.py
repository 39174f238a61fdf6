"""The floors in docs/performance.md: written by a script, and the kernels' traffic near them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytest.importorskip("pinmem.kernels")

from benchmarks import floors, traffic

ROOT = Path(__file__).resolve().parent.parent
# Launches are written down by the compiler's kernels, not by the interpreter's.
SCRIPT = """
import json
from benchmarks import floors
rows = list(floors.rows())
for row in rows:
    print(json.dumps([row.op, row.name, str(row.size), str(row.dtype), row.work.bytes,
                      row.bound, row.ratio, row.share, row.traffic]))
print(floors.text())
"""


@pytest.fixture(scope="module")
def counted() -> tuple[list[list[Any]], str]:
    """Every row, and the text of the tables."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("["))
    return [json.loads(line) for line in lines[:count]], "\n".join(lines[count:])


def test_the_document_is_the_generated_one(counted) -> None:
    before, after = floors.parts_of(floors.DOCUMENT)
    expected = f"{before}{floors.BEGIN}\n\n{counted[1]}\n\n{floors.END}{after}"
    assert floors.DOCUMENT.read_text() == expected, "run python -m benchmarks --floors"


def test_kernels_move_what_must_be_moved(counted) -> None:
    """Every op and pass at both sizes and types: their traffic takes 1.15 of the floor at most."""
    rows = counted[0]
    assert len(rows) == 2 * 2 * 17
    wrong = [row[:4] + row[5:8] for row in rows if row[7] > 1.15]
    assert not wrong, wrong
    # Where bytes are what bounds a pass, the same is said of the bytes.
    assert all(row[6] <= 1.15 for row in rows if row[5][0] == "memory")
    # What PyTorch itself writes (the sum of the counts) is not counted.
    assert all(row[6] > 0.999 for row in rows)


def test_what_is_looked_at_twice_is_still_there(counted) -> None:
    """Repeated looks count once only while the blocks between fit half of the L2."""
    for row in counted[0]:
        assert row[8][2] <= traffic.L2 / 2, row


def test_launches(counted) -> None:
    launches = {(row[0], row[1]): row[8][3] for row in counted[0]}
    assert launches["memory_read", "forward"] == 1
    assert launches["memory_read", "backward"] == 2
    assert launches["memory_read_project", "backward"] == 4
    assert launches["memory_update", "forward"] == launches["memory_update", "backward"] == 1


def test_floors_by_hand(counted) -> None:
    """Once by hand: 8 images of 768x768 at stride 16, bfloat16."""
    pixels, rows = 8 * 48 * 48, {tuple(row[:4]): row for row in counted[0]}
    size, dtype = "8x768x768, stride 16", "torch.bfloat16"
    read = rows["memory_read", "forward", size, dtype]
    assert read[4] == 2 * (pixels * (3 * 256 + 19) + 19 * 256)
    assert read[5] == ["memory", pytest.approx(read[4] / 4.8e12)]
    loss = rows["upsampled_cross_entropy", "forward", size, dtype]
    assert loss[5] == ["exp", pytest.approx(8 * 768 * 768 * 21 / (16 * 132 * 1.98e9))]
    # The kernels read every label twice: for the weights' sum, and for the loss.
    assert loss[8][0] == pytest.approx(loss[4] + 8 * 768 * 768, rel=1e-3)


def test_a_document_without_markers_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("no markers")
    with pytest.raises(SystemExit, match="expected one line"):
        floors.parts_of(document)
