"""The least that every pass of every op can take on an H200, against what the kernels move.

``python -m benchmarks --floors`` writes the tables of docs/performance.md. Nothing is measured:
bytes and operations follow from the shapes, the kernels' own traffic from their launches
(:mod:`benchmarks.traffic`), and the peaks are those of NVIDIA's data sheet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import traffic
from benchmarks.passes import OPS, run_quietly
from benchmarks.plan import SIZES, Size, short
from benchmarks.traffic import Traffic, size_of

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/performance.md"
BEGIN = "<!-- Floors: written by `python -m benchmarks --floors`, not by hand. -->"
END = "<!-- End of floors. -->"

# An H200 SXM by its data sheet: HBM3e bytes, dense bfloat16 and float32 operations a second. The
# data sheet has no figure for exponentials: 16 a clock and multiprocessor by the CUDA programming
# guide's table of throughputs, 132 multiprocessors, 1.98 GHz boost.
HBM = 4.8e12
MATRIX = 989e12
VECTOR = 67e12
EXPONENTIALS = 16 * 132 * 1.98e9
# float32 products on the matrix units are made of six bfloat16 ones.
PRODUCTS = {torch.bfloat16: 1, torch.float32: 6}


class Work(NamedTuple):
    """The least a pass can do."""

    bytes: float
    matrix: float
    vector: float
    exponentials: float

    def bounds(self, dtype: torch.dtype) -> dict[str, float]:
        """Seconds that each of the four takes by itself."""
        return {
            "memory": self.bytes / HBM,
            "matrix": self.matrix * PRODUCTS[dtype] / MATRIX,
            "vector": self.vector / VECTOR,
            "exp": self.exponentials / EXPONENTIALS,
        }


class Row(NamedTuple):
    """A pass of an op at a size: what it must do, and what the kernels do."""

    op: str
    name: str
    size: Size
    dtype: torch.dtype
    work: Work
    traffic: Traffic

    @property
    def bound(self) -> tuple[str, float]:
        """What bounds it, and for how many seconds at least."""
        return max(self.work.bounds(self.dtype).items(), key=lambda item: item[1])

    @property
    def ratio(self) -> float:
        """The kernels' traffic over the least there is."""
        return self.traffic.memory / self.work.bytes

    @property
    def share(self) -> float:
        """The time that the kernels' traffic takes at the full bandwidth, over the floor."""
        return self.traffic.memory / HBM / self.bound[1]


def rows() -> Iterator[Row]:
    """Every op and pass, both types, both sizes."""
    for dtype in PRODUCTS:
        for size in SIZES["cuda"]:
            for op, passes in OPS.items():
                for name, run, inputs, matrix, vector, exponentials in passes(size, dtype):
                    moved = traffic.count(run, inputs)
                    results = run_quietly(run)
                    least = sum(map(size_of, (*inputs, *results)))
                    if op == "class_sums":
                        # Of the labels, those that are read.
                        labels, rows_ = inputs[-1], size.at(size.output_stride)[0]
                        if labels.dtype == torch.uint8:
                            least += traffic.label_bytes(labels, rows_) - size_of(labels)
                    work = Work(least, matrix, vector, exponentials)
                    yield Row(op, name, size, dtype, work, moved)


HEADERS = (
    "op", "pass", "least MB", "matrix GFLOP", "vector GFLOP", "10^9 exp", "floor us", "bound by",
    "launches", "kernels: MB", "of the least", "time of it, of the floor", "through L2 MB",
)  # fmt: skip


def text() -> str:
    """The tables, Markdown."""
    parts: list[str] = []
    title = None
    for row in rows():
        if title != (row.size, row.dtype):
            title = (row.size, row.dtype)
            parts += ["", f"**{row.size}, {short(row.dtype)}**", "", _line(HEADERS)]
            parts += ["|" + "|".join(["---"] * len(HEADERS)) + "|"]
        work, moved = row.work, row.traffic
        bound, seconds = row.bound
        small = [work.matrix / 1e9, work.vector / 1e9, work.exponentials / 1e9, seconds * 1e6]
        cells = [row.op, row.name, _number(work.bytes / 1e6), *map(_number, small), bound]
        cells += [str(moved.launches), _number(moved.memory / 1e6), f"{row.ratio:.2f}"]
        parts.append(_line([*cells, f"{row.share:.2f}", _number(moved.cache / 1e6)]))
    return "\n".join(parts[1:])


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def write(document: Path = DOCUMENT) -> None:
    """Replace everything between the markers of the document.

    Raises:
        SystemExit: the document lacks the markers.
    """
    before, after = parts_of(document)
    document.write_text(f"{before}{BEGIN}\n\n{text()}\n\n{END}{after}")


def parts_of(document: Path) -> tuple[str, str]:
    """What stands before and after the tables."""
    whole = document.read_text()
    if whole.count(BEGIN) != 1 or whole.count(END) != 1:
        raise SystemExit(f"{document}: expected one line '{BEGIN}' and one '{END}'")
    return whole.partition(BEGIN)[0], whole.partition(END)[2]
