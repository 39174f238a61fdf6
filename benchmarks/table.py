"""The tables that a run prints and that docs/performance.md shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Row = dict[str, Any]
# What one pass is called in a narrow column.
PASSES = {
    "forward": "fwd",
    "forward + backward": "fwd+bwd",
    "forward + backward + double backward": "2nd order",
    "one iteration": "step",
    "one image": "image",
}
HEADERS = (
    "op", "pass", "type", "ours", "eager", "compiled", "published",
    "moved", "floor", "peak: ours", "eager", "compiled", "published",
)  # fmt: skip
BASELINES = ("eager", "compiled", "published")
DISPATCH_HEADERS = (
    "op", "backend", "fwd: PyTorch", "ours", "above", "fwd+bwd: PyTorch", "ours", "above",
)  # fmt: skip


def tables(results: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """A title and rows of cells (the first holds the headers), a table a size."""
    sizes = dict.fromkeys(row["size"] for row in results["rows"])
    for size in sizes:
        rows = [row for row in results["rows"] if row["size"] == size]
        lines = [cells for row in rows for cells in _lines(row, results["ceilings"])]
        yield size, [HEADERS, *lines]
    yield (
        "calling an op at all, microseconds (goal: fwd at most 12 above PyTorch's own dispatch)",
        [DISPATCH_HEADERS, *_dispatch_lines(results["dispatch"])],
    )


def _dispatch_lines(dispatch: dict[str, Row]) -> Iterator[tuple[str, ...]]:
    for op, found in dispatch.items():
        for backend, passes in found.items():
            cells = [op, backend]
            for what in ("forward", "forward + backward"):
                own, ours = passes["PyTorch"].get(what), passes["ours"].get(what)
                above = None if own is None or ours is None else ours - own
                cells += [_number(own), _number(ours), _number(above)]
            yield tuple(cells)


def floor(row: Row, ceilings: dict[str, float]) -> float:
    """Seconds of a row at the least: its bytes at the copy bandwidth, or its arithmetic."""
    return max(row["moved"] / ceilings["copy"], row["operations"] / ceilings["matrix"])


def _lines(row: Row, ceilings: dict[str, float]) -> Iterator[tuple[str, ...]]:
    """A line for each of our implementations; one where none runs."""
    found = row["results"]
    ours = row["ours"] or [None]
    name = f"{row['op']}, {row['variant']}" if row["variant"] else row["op"]
    moved = "" if row["moved"] is None else _megabytes(row["moved"])
    images = row["images"]
    for backend in ours:
        mine = found.get(backend, {})
        if backend is None:
            shown = "; ".join(f"no {other}: {why}" for other, why in row["skipped"].items())
            least = ""
        elif "refused" in mine:
            shown, least = f"REFUSED {backend}: {mine['refused']}", ""
        else:
            shown = f"{_milliseconds(mine, images)} {backend}"
            least = ""
            if row["moved"] is not None:
                seconds = floor(row, ceilings)
                least = f"{_number(1000 * seconds)} ms ({seconds / fastest(mine):.0%})"
        times = [_against(found.get(baseline), mine, images) for baseline in BASELINES]
        peaks = [_peak(mine), *(_peak(found.get(baseline)) for baseline in BASELINES)]
        dtype = row["dtype"] + (", TF32" if row.get("tf32") else "")
        first = (name, PASSES.get(row["pass"], row["pass"]), dtype, shown)
        yield (*first, *times, moved, least, *peaks)
    for other in found:
        if other not in (*ours, *BASELINES):
            # In the column of what it varies.
            place = BASELINES.index("published" if other.startswith("published") else "eager")
            times, peaks = [""] * len(BASELINES), [""] * len(BASELINES)
            times[place] = _against(found[other], found.get(ours[0], {}), images)
            peaks[place] = _peak(found[other])
            yield (f"  {other}", "", "", "", *times, "", "", "", *peaks)


def fastest(result: Row) -> float:
    """Seconds on the device alone where a graph was recorded, else of the call."""
    return result.get("graph") or result["median"]


def _against(baseline: Row | None, ours: Row, images: int | None) -> str:
    """A baseline's time, and how many times ours it is."""
    if baseline is None:
        return "-"
    if "refused" in baseline:
        return baseline["refused"] if baseline["refused"] == "out of memory" else "refused"
    text = _milliseconds(baseline, images)
    return f"{text} ({baseline['median'] / ours['median']:.2f}x)" if "median" in ours else text


def _milliseconds(result: Row, images: int | None) -> str:
    """Median, half the distance of the quartiles, what a graph takes; of a step, its images."""
    milliseconds = 1000 * result["median"]
    spread = (result["high"] - result["low"]) / 2 / result["median"]
    text = f"{_number(milliseconds)} ms ±{spread:.0%}"
    text += f", {_number(images / result['median'])} images/s" if images else ""
    return text + (f" [{_number(1000 * result['graph'])}]" if result.get("graph") else "")


def _number(value: float | None) -> str:
    """Three significant figures."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _megabytes(value: int) -> str:
    return f"{_number(value / 1e6)} MB"


def _peak(result: Row | None) -> str:
    return "-" if result is None or result.get("peak") is None else _megabytes(result["peak"])


def heading(results: dict[str, Any]) -> str:
    """The machine in a line or two."""
    environment, ceilings = results["environment"], results["ceilings"]
    threads = f", {environment['threads']} threads" if environment["device"] == "cpu" else ""
    kind = "float32" if environment["device"] == "cpu" else "bfloat16"
    versions = environment["versions"]
    lines = [
        f"{environment['device_name']}{threads}, {environment['layout']}, "
        f"torch {versions['torch']}, triton {versions['triton']}, {environment['date']}",
        f"copy: {_number(ceilings['copy'] / 1e9)} GB/s read and written; "
        f"{kind} matrix product: {_number(ceilings['matrix'] / 1e12)} TFLOP/s",
    ]
    if environment["smoke"]:
        lines.append("A rehearsal on tiny inputs: these figures mean nothing.")
    return "\n".join(lines)


def text(results: dict[str, Any]) -> str:
    """Everything for a terminal."""
    parts = [heading(results)]
    for title, cells in tables(results):
        parts += ["", title, *_aligned(cells)]
    parts += [f"skipped: {what}: {why}" for what, why in results["skipped"].items()]
    return "\n".join(parts)


def markdown(results: dict[str, Any]) -> str:
    """Everything for a document."""
    parts = [heading(results).replace("\n", "  \n")]
    for title, cells in tables(results):
        header, *rows = [" | ".join(line) for line in cells]
        rule = "|".join(["---"] * len(cells[0]))
        parts += ["", f"**{title}**", "", f"| {header} |", f"|{rule}|", *(f"| {r} |" for r in rows)]
    parts += ["", *(f"- skipped: {what}: {why}" for what, why in results["skipped"].items())]
    return "\n".join(parts).rstrip()


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    # A reason may be long: it does not widen its column.
    widths = [
        max(len(line[i]) for line in cells if len(line[i]) <= 48) for i in range(len(cells[0]))
    ]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
