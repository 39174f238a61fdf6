"""What the project set out to reach, beside what a run found: a table in docs/performance.md.

A goal is missed openly: its line says what the time is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.plan import BACKWARD, SECOND, short
from benchmarks.plan import TYPES as TYPES_OF
from benchmarks.table import Row, fastest, floor

STEP = "one iteration"
IMAGE = "one image"
RELEASED = "published, anomaly mode"


class Goal(NamedTuple):
    """At least ``wanted`` times better than a baseline; for ``megabytes``, at most that many."""

    op: str
    what: str
    against: str
    wanted: float
    measure: str = "time"


GOALS: dict[str, tuple[Goal, ...]] = {
    "cpu": (
        Goal("memory_read", BACKWARD, "eager", 1.8),
        Goal("memory_read", BACKWARD, "compiled", 1.3),
        Goal("memory_read_project", BACKWARD, "eager", 1.8),
        Goal("memory_read_project", BACKWARD, "compiled", 1.3),
        Goal("upsampled_cross_entropy", BACKWARD, "eager", 8),
        Goal("upsampled_cross_entropy", BACKWARD, "compiled", 20),
        Goal("class_sums", BACKWARD, "eager", 30),
        Goal("class_sums", BACKWARD, "compiled", 1.5),
        Goal("memory_update", BACKWARD, "eager", 3),
        Goal("memory_update", BACKWARD, "compiled", 2),
        Goal("memory_module", BACKWARD, "published", 20),
        Goal("memory_module", BACKWARD, "nothing", 60, "megabytes"),
        Goal("upsampled_cross_entropy", SECOND, "eager", 10),
        Goal("upsampled_cross_entropy", SECOND, "eager", 20, "peak memory"),
        Goal("class_sums", SECOND, "eager", 10),
        Goal("class_sums", SECOND, "eager", 20, "peak memory"),
        Goal("training_step", STEP, "published", 2),
        Goal("training_step", STEP, RELEASED, 2),
        Goal("evaluation", IMAGE, "plain", 1.3),
    ),
    "cuda": (
        Goal("memory_read", BACKWARD, "eager", 5),
        Goal("memory_read", BACKWARD, "compiled", 1.5),
        Goal("memory_read", BACKWARD, "copy", 0.85, "share of copy"),
        Goal("memory_read_project", BACKWARD, "eager", 5),
        Goal("memory_read_project", BACKWARD, "compiled", 1.5),
        Goal("upsampled_cross_entropy", BACKWARD, "eager", 20),
        Goal("upsampled_cross_entropy", BACKWARD, "compiled", 5),
        Goal("upsampled_cross_entropy", BACKWARD, "eager", 20, "peak memory"),
        Goal("class_sums", BACKWARD, "eager", 30),
        Goal("class_sums", BACKWARD, "compiled", 2),
        Goal("class_sums", BACKWARD, "eager", 50, "peak memory"),
        Goal("class_sums", BACKWARD, "copy", 0.85, "share of copy"),
        Goal("memory_update", BACKWARD, "eager", 20),
        Goal("memory_update", BACKWARD, "compiled", 3),
        Goal("memory_module", BACKWARD, "published", 20),
        Goal("training_step", STEP, "published", 4),
        Goal("training_step", STEP, "published", 3, "peak memory"),
    ),
}


def markdown(results: dict[str, Any]) -> str:
    """A line a goal, the worst of its rows a type; then what the missed ones are made of."""
    device = results["environment"]["device"]
    dtypes = [short(dtype) for dtype in TYPES_OF[device]]
    lines = [f"| goal | wanted | {' | '.join(dtypes)} |", "|---|---|" + "---|" * len(dtypes)]
    missed: dict[str, str] = {}
    for goal in GOALS[device]:
        if not any(row["op"] == goal.op for row in results["rows"]):
            continue  # not in that run
        cells = []
        for dtype in dtypes:
            found = [(value, row) for value, row in _values(goal, dtype, results)]
            if not found:
                cells.append("")
                continue
            value, row = (max if goal.measure == "megabytes" else min)(found, key=lambda f: f[0])
            met = value <= goal.wanted if goal.measure == "megabytes" else value >= goal.wanted
            cells.append(_shown(goal, value) if met else f"**{_shown(goal, value)}**")
            if not met:
                missed.setdefault(goal.op, _explained(row, results))
        lines.append(f"| {_named(goal)} | {_shown(goal, goal.wanted)} | {' | '.join(cells)} |")
    if missed:
        lines += ["", "In bold: missed.", ""]
        lines += [f"- {op}: {why}" for op, why in missed.items()]
    return "\n".join(lines)


def _values(goal: Goal, dtype: str, results: dict[str, Any]) -> Iterator[tuple[float, Row]]:
    key = (goal.op, goal.what, dtype)
    rows = [row for row in results["rows"] if (row["op"], row["pass"], row["dtype"]) == key]
    if goal.measure == "share of copy":  # a small row is the time of its launches
        most = max((row["moved"] for row in rows), default=0)
        rows = [row for row in rows if row["moved"] == most]
    for row in rows:
        ours = row["results"].get(row["ours"][0]) if row["ours"] else None
        other = row["results"].get(goal.against, {})
        if not ours or "median" not in ours:
            continue
        if goal.measure in ("megabytes", "peak memory") and ours.get("peak") is None:
            continue
        if goal.measure == "megabytes":
            yield ours["peak"] / 1e6, row
        elif goal.measure == "share of copy":
            yield row["moved"] / fastest(ours) / results["ceilings"]["copy"], row
        elif goal.measure == "time" and "median" in other:
            yield other["median"] / ours["median"], row
        elif goal.measure == "peak memory" and other.get("peak"):
            yield other["peak"] / max(ours["peak"], 1), row


def _named(goal: Goal) -> str:
    passes = {BACKWARD: "", SECOND: ", second order", STEP: "", IMAGE: ""}[goal.what]
    if goal.measure == "megabytes":
        return f"{goal.op}{passes}: peak memory"
    if goal.measure == "share of copy":
        return f"{goal.op}{passes}: share of the copy bandwidth, largest maps"
    return f"{goal.op}{passes}: {goal.measure} against {goal.against}"


def _shown(goal: Goal, value: float) -> str:
    if goal.measure == "megabytes":
        return f"{value:.0f} MB"
    if goal.measure == "share of copy":
        return f"{value:.0%}"
    return f"{value:.1f}x" if value < 10 else f"{value:.0f}x"


def _explained(row: Row, results: dict[str, Any]) -> str:
    """What the time of a row is made of."""
    try:
        return _REASONS.get(row["op"], _bound)(row, results)
    except KeyError:  # what it is compared with was refused
        return f"{1e3 * fastest(row['results'][row['ours'][0]]):.3g} ms"


def _bound(row: Row, results: dict[str, Any]) -> str:
    """Bytes or arithmetic at the measured ceilings."""
    seconds = fastest(row["results"][row["ours"][0]])
    least = floor(row, results["ceilings"])
    return f"{1e3 * seconds:.3g} ms, of which its floor takes {1e3 * least:.3g} ms"


def _called(row: Row, results: dict[str, Any]) -> str:
    """An op so small that calling it is most of it."""
    backend = row["ours"][0]
    seconds = results["dispatch"][row["op"]][backend]["ours"][BACKWARD] / 1e6
    mine = row["results"][backend]["median"]
    return (
        f"{1e6 * mine:.0f} us, of which {1e6 * seconds:.0f} us are calling an op forward and"
        " backward at all: PyTorch's dispatcher and autograd formulas in Python, which a compiled"
        " graph enters once"
    )


def _convolved(row: Row, results: dict[str, Any]) -> str:
    """A step that is mostly convolutions."""
    plain = row["results"]["eager"]["median"] / row["results"][row["ours"][0]]["median"]
    return (
        "convolutions and their gradients take most of our step, in 16 bits and on a GPU the same"
        f" code on both sides; on plain PyTorch ops our step takes {plain:.2f} times as long"
    )


def _looked_at(row: Row, results: dict[str, Any]) -> str:
    """An image whose time is its network's."""
    found = row["results"]
    share = found["network"]["median"] / found["plain"]["median"]
    return f"{share:.0%} of the time against which it is measured are the same network's alone"


_REASONS: dict[str, Callable[[Row, dict[str, Any]], str]] = {
    "memory_update": _called,
    "training_step": _convolved,
    "evaluation": _looked_at,
}
