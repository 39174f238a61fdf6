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
}
HEADERS = (
    "op", "pass", "type", "ours", "eager", "compiled", "published",
    "moved", "of copy", "peak: ours", "eager", "compiled", "published",
)  # fmt: skip
BASELINES = ("eager", "compiled", "published")


def tables(results: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """A title and rows of cells (the first holds the headers), a table a size."""
    sizes = dict.fromkeys(row["size"] for row in results["rows"])
    for size in sizes:
        rows = [row for row in results["rows"] if row["size"] == size]
        lines = [cells for row in rows for cells in _lines(row, results["ceilings"]["copy"])]
        yield size, [HEADERS, *lines]
    yield (
        "calling an op at all, microseconds",
        [
            ("op", "forward", "forward + backward"),
            *(
                (name, _number(both["forward"]), _number(both["forward + backward"]))
                for name, both in results["dispatch"].items()
            ),
        ],
    )


def _lines(row: Row, copy: float) -> Iterator[tuple[str, ...]]:
    """A line for each of our implementations; one where none serves."""
    found = row["results"]
    ours = row["ours"] or [None]
    name = f"{row['op']}, {row['variant']}" if row["variant"] else row["op"]
    moved = "" if row["moved"] is None else _megabytes(row["moved"])
    for backend in ours:
        mine = found.get(backend, {})
        if backend is None:
            shown = "; ".join(f"no {other}: {why}" for other, why in row["left_out"].items())
            share = ""
        elif "refused" in mine:
            shown, share = f"REFUSED {backend}: {mine['refused']}", ""
        else:
            shown = f"{_milliseconds(mine)} {backend}"
            share = "" if row["moved"] is None else f"{row['moved'] / fastest(mine) / copy:.0%}"
        times = [_against(found.get(baseline), mine) for baseline in BASELINES]
        peaks = [_peak(mine), *(_peak(found.get(baseline)) for baseline in BASELINES)]
        first = (name, PASSES.get(row["pass"], row["pass"]), row["dtype"], shown)
        yield (*first, *times, moved, share, *peaks)
    for other in found:
        if other not in (*ours, *BASELINES):
            mine = found.get(ours[0], {})
            cells = (f"  {other}", "", "", "", "", "", _against(found[other], mine), "", "")
            yield (*cells, "", "", "", _peak(found[other]))


def fastest(result: Row) -> float:
    """Seconds on the device alone where a graph was recorded, else of the call."""
    return result.get("graph") or result["median"]


def _against(baseline: Row | None, ours: Row) -> str:
    """A baseline's time, and how many times ours it is."""
    if baseline is None:
        return "-"
    if "refused" in baseline:
        return baseline["refused"] if baseline["refused"] == "out of memory" else "refused"
    text = _milliseconds(baseline)
    return f"{text} ({baseline['median'] / ours['median']:.2f}x)" if "median" in ours else text


def _milliseconds(result: Row) -> str:
    """Median, half the distance of the quartiles, and what a graph takes."""
    milliseconds = 1000 * result["median"]
    spread = (result["high"] - result["low"]) / 2 / result["median"]
    text = f"{_number(milliseconds)} ms ±{spread:.0%}"
    return text + (f" [{_number(1000 * result['graph'])}]" if result.get("graph") else "")


def _number(value: float | None) -> str:
    """Three significant figures."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


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
    parts += [f"left out: {what}: {why}" for what, why in results["left_out"].items()]
    return "\n".join(parts)


def markdown(results: dict[str, Any]) -> str:
    """Everything for a document."""
    parts = [heading(results).replace("\n", "  \n")]
    for title, cells in tables(results):
        header, *rows = [" | ".join(line) for line in cells]
        rule = "|".join(["---"] * len(cells[0]))
        parts += ["", f"**{title}**", "", f"| {header} |", f"|{rule}|", *(f"| {r} |" for r in rows)]
    parts += ["", *(f"- left out: {what}: {why}" for what, why in results["left_out"].items())]
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
