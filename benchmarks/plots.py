"""Plots of a run: speed against the others, peak memory, roofline. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.table import BASELINES, PASSES, fastest

COLORS = {"ours": "#1b6ca8", "eager": "#9aa5b1", "compiled": "#e0a458", "published": "#b04a5a"}
Bars = list[tuple[str, dict[str, float]]]


def draw(results: dict[str, Any], folder: Path, stem: str) -> dict[str, str]:
    """Write the plots; returns file names and what they show."""
    # The same results give the same files.
    matplotlib.rcParams["svg.hashsalt"] = "pinmem"
    made = {}
    for kind, figure, what in (
        ("speed", _speed(results), "Times of the others divided by ours"),
        ("memory", _memory(results), "Peak memory above inputs and results"),
        ("roofline", _roofline(results), "Arithmetic per byte and rate, with the ceilings"),
    ):
        if figure is None:
            continue
        name = f"{stem}-{kind}.svg"
        figure.savefig(folder / name, metadata={"Date": None}, bbox_inches="tight")
        made[name] = what
    return made


def _mine(row: dict[str, Any]) -> dict[str, Any]:
    """The results of what ``auto`` takes, empty where nothing of ours runs or is right."""
    found = row["results"].get(row["ours"][0], {}) if row["ours"] else {}
    return found if "median" in found else {}


def _label(row: dict[str, Any]) -> str:
    variant = f" ({row['variant']})" if row["variant"] else ""
    kind = PASSES.get(row["pass"], row["pass"])
    return f"{row['op']}{variant}, {kind}, {row['dtype']}, {row['size'].partition(',')[0]}"


def _speed(results: dict[str, Any]) -> Figure | None:
    bars: Bars = []
    for row in results["rows"]:
        mine = _mine(row)
        others = {name: row["results"].get(name, {}) for name in BASELINES}
        ratios = {
            n: o["median"] / mine["median"] for n, o in others.items() if mine and "median" in o
        }
        if ratios:
            bars.append((_label(row), ratios))
    return _horizontal(bars, "time of the other / time of ours (above 1: ours is faster)", 1.0)


def _memory(results: dict[str, Any]) -> Figure | None:
    bars: Bars = []
    for row in results["rows"]:
        found = {"ours": _mine(row)} | {name: row["results"].get(name, {}) for name in BASELINES}
        # A peak of nothing has no place on a logarithmic axis.
        peaks = {
            name: max(r["peak"], 1e4) / 1e6
            for name, r in found.items()
            if r.get("peak") is not None
        }
        if "ours" in peaks:
            bars.append((_label(row), peaks))
    return _horizontal(bars, "peak memory above inputs and results, MB", None)


def _horizontal(bars: Bars, label: str, line: float | None) -> Figure | None:
    if not bars:
        return None
    names = [name for name in COLORS if any(name in values for _, values in bars)]
    figure = Figure(figsize=(8, 1 + 0.16 * len(bars) * (len(names) + 1)))
    axes = figure.add_subplot()
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [j + i * height for j, (_, values) in enumerate(bars) if name in values]
        lengths = [values[name] for _, values in bars if name in values]
        axes.barh(places, lengths, height, label=name, color=COLORS[name])
    axes.set_yticks([j + 0.4 - height / 2 for j in range(len(bars))], [name for name, _ in bars])
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    if line is not None:
        axes.axvline(line, color="black", linewidth=0.8)
    axes.set_xlabel(label)
    axes.legend(fontsize=7)
    return figure


def _roofline(results: dict[str, Any]) -> Figure | None:
    points = [row for row in results["rows"] if row["operations"] and row["moved"] and _mine(row)]
    if not points:
        return None
    figure = Figure(figsize=(8, 5))
    axes = figure.add_subplot()
    for row in points:
        intensity = row["operations"] / row["moved"]
        axes.loglog(intensity, row["operations"] / fastest(_mine(row)), "o", label=_label(row))
    _ceiling(axes, results["ceilings"])
    axes.set_xlabel("operations per byte that must be moved")
    axes.set_ylabel("operations per second")
    axes.legend(fontsize=5, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _ceiling(axes: Axes, ceilings: dict[str, float]) -> None:
    low, high = axes.get_xlim()
    ridge = ceilings["matrix"] / ceilings["copy"]
    at = [low, *([ridge] if low < ridge < high else []), high]
    axes.loglog(at, [min(x * ceilings["copy"], ceilings["matrix"]) for x in at], color="black")
