"""The study's tables and curves, from the results of its runs into ``docs/study.md``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from examples.study.cells import CELLS, LONG, MODES
from pinmem.extras import optional

Result = dict[str, Any]
Results = dict[str, list[Result]]

DOCUMENT = Path("docs/study.md")
RESULTS = Path("examples/study/results")
BEGIN = "<!-- Written by `python -m examples.study`, not by hand. -->"
END = "<!-- End. -->"


def write(folder: Path, document: Path) -> None:
    """Replace what stands between the document's markers, and draw its curves.

    Raises:
        ValueError: the document lacks the markers.
    """
    text = document.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{document}: expected one line '{BEGIN}' and one '{END}'")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    results = load(folder)
    if not any(mode in results for mode in MODES):
        raise ValueError(f"{folder}: expected runs of {', '.join(MODES)}, got none")
    curves = document.parent / "images" / "study-curves.svg"
    draw(results, curves)
    parts = [part for section in SECTIONS for part in section(results)]
    picture = f"![mIoU over iterations and seconds](images/{curves.name})"
    document.write_text(
        f"{before}{BEGIN}\n\n" + "\n\n".join([*parts, picture]) + f"\n\n{END}{after}"
    )


def load(folder: Path) -> Results:
    """The results by cell, in the order of the table of cells and of seeds."""
    found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    found.sort(key=lambda result: result["seed"])
    return {cell: rows for cell in CELLS if (rows := [r for r in found if r["cell"] == cell])}


def mean_of(result: Result, side: str, key: str = "miou") -> float:
    """The mean mIoU, in percent, over the seen or the unseen domains."""
    scores = result[key] if key in result else result["memory"][key]
    return 100 * fmean(score for name, score in scores.items() if name.startswith(side))


def interval(values: Sequence[float]) -> str:
    """The mean of paired differences with its 95% interval (Student's t)."""
    mean = fmean(values)
    if len(values) < 2:
        return f"{mean:+.1f}"
    half = optional("scipy.stats", "study", "examples.study").t.ppf(0.975, len(values) - 1)
    half *= stdev(values) / len(values) ** 0.5
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def differences(a: Sequence[Result], b: Sequence[Result], side: str) -> list[float]:
    """``a - b`` in points, seed by seed."""
    other = {result["seed"]: mean_of(result, side) for result in b}
    return [mean_of(r, side) - other[r["seed"]] for r in a if r["seed"] in other]


def lost(results: Sequence[Result], side: str) -> str:
    """Points lost when every slot is replaced by the slots' mean; a dash without a memory."""
    if not results[0]["memory"]:
        return "-"
    key = "miou with the slots' mean"
    return f"{fmean(mean_of(r, side) - mean_of(r, side, key) for r in results):.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def modes(results: Results) -> Iterator[str]:
    """The four modes, every seed, and their paired differences; then over more iterations."""
    for length in ("", LONG):
        names = [mode + length for mode in MODES]
        if any(name in results for name in names):
            yield f"### The four modes{length}"
            yield every_seed(results, names)
            yield f"### Paired differences{length}, points of mIoU with 95% intervals"
            yield pairs(results, names)


def every_seed(results: Results, cells: Sequence[str]) -> str:
    """A line per cell: unseen and seen mIoU, and what the memory carries."""
    rows = []
    for mode in cells:
        if runs := results.get(mode):
            unseen = [mean_of(run, "unseen") for run in runs]
            timed = [run["cpu_seconds"] for run in runs if run["cpu_seconds"]]
            rows.append(
                [mode, spread(unseen), ", ".join(f"{value:.1f}" for value in unseen)]
                + [spread([100 * run["miou"][name] for run in runs]) for name in _sets(runs)]
                + [
                    lost(runs, "unseen"),
                    lost(runs, "seen"),
                    f"{fmean(timed):.0f}" if timed else "-",
                ]
            )
    names = [
        name.replace("/", " ") for name in _sets(results[next(c for c in cells if c in results)])
    ]
    head = ["mode", "unseen", "every seed", *names]
    return table([*head, "lost unseen", "lost seen", "CPU s"], rows)


def pairs(results: Results, cells: Sequence[str]) -> str:
    """Paired differences between the last cell and the others, and between these and the first."""
    rows = []
    for a, b in [(cells[-1], cell) for cell in cells[:-1]] + [(c, cells[0]) for c in cells[1:-1]]:
        if a in results and b in results:
            rows.append(
                [f"{a} - {b}"]
                + [interval(differences(results[a], results[b], s)) for s in ("unseen", "seen")]
            )
    return table(["", "unseen", "seen"], rows)


def parts(results: Results) -> Iterator[str]:
    """Every other cell against the mode it changes."""
    rows = []
    for cell, runs in results.items():
        base = CELLS[cell].changes.get("mode", "memory-mldg")
        if (
            cell.removesuffix(LONG) in MODES
            or "sources" in CELLS[cell].changes
            or base not in results
        ):
            continue
        changes = {k: v for k, v in CELLS[cell].changes.items() if k != "mode"}
        if CELLS[cell].attention != 1:
            changes["attention temperature"] = CELLS[cell].attention
        against = "joint" if cell == "mldg as joint" else base
        unseen = [mean_of(run, "unseen") for run in runs]
        rows.append(
            [cell, ", ".join(f"{k} {v}" for k, v in changes.items()), against]
            + [spread(unseen), ", ".join(f"{value:.1f}" for value in unseen)]
            + [interval(differences(runs, results[against], s)) for s in ("unseen", "seen")]
            + [lost(runs, "unseen")]
        )
    if rows:
        yield "### One thing changed"
        head = ["", "what differs", "against", "unseen", "every seed", "Δ unseen", "Δ seen"]
        yield table([*head, "lost unseen"], rows)


def statistics(results: Results) -> Iterator[str]:
    """BatchNorm statistics of training, and of the images that are scored."""
    rows = []
    key = "miou with own statistics"
    for cell, every in results.items():
        if runs := [run for run in every if run.get(key)]:
            rows.append(
                [cell, ", ".join(str(run["seed"]) for run in runs)]
                + [
                    spread([mean_of(run, side, k) for run in runs])
                    for side in ("unseen", "seen")
                    for k in ("miou", key)
                ]
            )
    if rows:
        yield "### BatchNorm statistics: of training, and of the scored domain's own images"
        yield table(["", "seeds", "unseen", "own", "seen", "own"], rows)


def gap(results: Results) -> Iterator[str]:
    """How far the unseen domains are: learnt from, and not."""
    rows = []
    for cell, runs in results.items():
        for domain in CELLS[cell].changes.get("sources", []):
            known = spread([100 * run["miou"][f"seen/{domain}"] for run in runs])
            if "joint" in results:
                far = spread([100 * run["miou"][f"unseen/{domain}"] for run in results["joint"]])
                rows.append([domain, far, known])
    if rows:
        yield "### How far apart the domains are (joint)"
        yield table(["domain", "trained on the sources", "trained on the domain itself"], rows)


def memory(results: Results) -> Iterator[str]:
    """What lies in the memory and how it is read."""
    rows = []
    for cell, runs in results.items():
        if not (found := [run["memory"] for run in runs if run["memory"]]):
            continue

        def over(side: str, key: str, found: list[dict[str, Any]] = found) -> str:
            values = [m[name][key] for m in found for name in m if name.startswith(f"{side}/")]
            return f"{100 * fmean(values):.0f}%"

        between = [v for m in found for v in m["class means of two domains"].values()]
        rows.append(
            [cell, f"{fmean(m['similarity'] for m in found):.2f}", f"{fmean(between):.2f}"]
            + [over(side, "attention on the own slot") for side in ("seen", "unseen")]
            + [over(side, "own slot is the nearest") for side in ("seen", "unseen")]
            + [over("unseen", "own slot is the nearest, at mistakes")]
        )
    yield "### The memory"
    yield table(
        [
            "",
            "two slots",
            "one class in two domains",
            "attention on the own slot, seen",
            "unseen",
            "own slot nearest, seen",
            "unseen",
            "unseen, at mistakes",
        ],
        rows,
    )


def gradients(results: Results) -> Iterator[str]:
    """Inner and outer gradients of the modes that have them."""
    rows = []
    for mode in MODES:
        if found := [run["gradients"] for run in results.get(mode, []) if run["gradients"]]:
            rows.append([mode, *(f"{fmean(g[key] for g in found):.3g}" for key in found[0])])
            head = ["", *found[0]]
    if rows:
        yield "### Inner and outer gradients, at the end of training"
        yield table(head, rows)


def classes(results: Results) -> Iterator[str]:
    """IoU per class on the unseen domains."""
    runs = {mode: results[mode] for mode in MODES if mode in results}
    last = {mode: [run["curves"][-1]["iou"] for run in rows] for mode, rows in runs.items()}
    keys = [key for key in next(iter(last.values()))[0] if key.startswith("unseen/")]
    names = list(dict.fromkeys(key.rpartition("/")[2] for key in keys))

    def value(mode: str, name: str) -> str:
        found = [
            iou[key] for iou in last[mode] for key in keys
            if key.endswith(f"/{name}") and iou.get(key) is not None
        ]  # fmt: skip
        return f"{100 * fmean(found):.0f}" if found else "-"

    yield "### IoU per class, unseen domains, percent"
    yield table(["", *names], [[mode, *(value(mode, n) for n in names)] for mode in runs])


SECTIONS: list[Callable[[Results], Iterator[str]]] = [
    modes, parts, statistics, gap, memory, gradients, classes,
]  # fmt: skip


def draw(results: Results, path: Path) -> None:
    """Unseen mIoU of the four modes, each seed a line, over iterations and over CPU seconds."""
    optional("matplotlib", "study", "examples.study")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for number, mode in enumerate(MODES):
        for index, run in enumerate(results.get(mode, [])):
            points = [(p["iteration"], mean_of(p, "unseen")) for p in run["curves"]]
            label = mode if index == 0 else None
            style = {"color": f"C{number}", "alpha": 0.7, "label": label}
            axes[0].plot(*zip(*points, strict=True), **style)
            if run["cpu_seconds"]:
                second = run["cpu_seconds"] / points[-1][0]
                axes[1].plot([x * second for x, _ in points], [y for _, y in points], **style)
    axes[0].set(xlabel="iterations", ylabel="unseen mIoU, %")
    axes[1].set(xlabel="CPU seconds")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _sets(runs: Sequence[Result]) -> list[str]:
    return sorted(runs[0]["miou"], key=lambda name: not name.startswith("unseen"))
