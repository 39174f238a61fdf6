"""Figures, drawn with matplotlib: confusion, similarity of slots, t-SNE, reliability."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinmem.data import Classes
from pinmem.extras import optional
from pinmem.visualization.statistics import BINS, Statistics
from pinmem.writing import write_beside

__all__ = [
    "confusion_figure", "png", "reliability_figure", "similarity_figure", "tsne_figure",
    "write_figure",
]  # fmt: skip

_MOST_NUMBERS = 25  # classes up to which cells have their number in them
_MARKERS = "osD^vP<>X*"
_FEWEST_POINTS = 5


def _figure(width: float, height: float) -> Any:
    optional("matplotlib", "visualize", "drawing figures")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Any) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def write_figure(path: Path, figure: Any) -> None:
    """Write a figure as a PNG, beside and renamed."""
    content = png(figure)
    write_beside(path, lambda file: file.write(content))


def _side(count: int) -> float:
    """Inches of a matrix of so many rows."""
    return min(max(0.38 * count, 4), 30)


def confusion_figure(matrices: Mapping[str, Tensor], classes: Classes) -> Any:
    """Confusion matrices [K,K], a panel each: the share of a true class that is predicted so."""
    side = _side(len(classes))
    figure = _figure((side + 2) * len(matrices), side + 1.5)
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for panel, (name, confusion) in zip(panels, matrices.items(), strict=True):
        counts = confusion.double()
        pixels = counts.sum(1, keepdim=True)
        shares = torch.where(pixels > 0, counts / pixels.clamp_min(1), torch.nan)
        _matrix(panel, 100 * shares.numpy(), classes, "Blues", (0, 100), "{:.0f}", least=0.5)
        panel.set(title=f"{name}: predictions of each true class, %", xlabel="predicted")
        panel.set_ylabel("truth")
    return figure


def similarity_figure(memory: Tensor, classes: Classes) -> Any:
    """Cosine similarity of the memory's slots [K,C]."""
    side = _side(len(classes))
    figure = _figure(side + 2.5, side + 1.5)
    slots = torch.nn.functional.normalize(memory.detach().float().cpu(), dim=1)
    panel = figure.subplots()
    shown = _matrix(panel, (slots @ slots.T).numpy(), classes, "RdBu_r", (-1, 1), "{:.1f}")
    panel.set_title("cosine similarity of the memory's slots")
    figure.colorbar(shown, ax=panel, shrink=0.6)
    return figure


def _matrix(
    panel: Any,
    values: np.ndarray,
    classes: Classes,
    colours: str,
    limits: tuple[float, float],
    form: str,
    least: float = 0.0,
) -> Any:
    count = len(values)
    shown = panel.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    names = classes.names[:count]
    panel.set_xticks(range(len(names)), names, rotation=90)
    panel.set_yticks(range(len(names)), names)
    if count <= _MOST_NUMBERS:
        strong = 0.6 * limits[1]
        for (row, column), value in np.ndenumerate(values):
            if abs(value) >= least:  # false where there is no number
                colour = "white" if abs(value) > strong else "black"
                panel.text(
                    column, row, form.format(value), ha="center", va="center", size=7, color=colour
                )
    return shown


def tsne_figure(
    found: Mapping[str, Statistics], memory: Tensor | None, classes: Classes
) -> Any | None:
    """t-SNE of the mean query of each class in each image, and of the slots, as stars.

    On cosine distance; one panel in the classes' colours, the same points in the domains'. None
    where there are too few points.
    """
    optional("sklearn", "visualize", "t-SNE")
    from sklearn.manifold import TSNE

    features = torch.cat([f for each in found.values() for f in each.features])
    numbers = torch.cat([c for each in found.values() for c in each.feature_classes]).numpy()
    domains = np.repeat(
        np.arange(len(found)), [sum(map(len, each.features)) for each in found.values()]
    )
    points = features
    if memory is not None:
        slots = torch.nn.functional.normalize(memory.detach().float().cpu(), dim=1)
        points = torch.cat([features, slots[slots.any(dim=1)]])
        slot_numbers = slots.any(dim=1).nonzero().flatten().numpy()
    if len(points) < _FEWEST_POINTS:
        return None
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0)
    placed = tsne.fit_transform(points.numpy())
    places, stars = placed[: len(features)], placed[len(features) :]
    figure = _figure(15, 7)
    by_class, by_domain = figure.subplots(1, 2)
    colours = np.array(classes.colors) / 255
    for k, name in enumerate(classes.names):
        own = numbers == k
        by_class.scatter(*places[own].T, s=26, color=colours[k], label=name if own.any() else None)
    for domain, name in enumerate(found):
        own = domains == domain
        marker = _MARKERS[domain % len(_MARKERS)]
        by_domain.scatter(*places[own].T, s=26, color=f"C{domain % 10}", marker=marker, label=name)
    if memory is not None:
        edge = {"marker": "*", "s": 190, "edgecolor": "black", "linewidth": 0.8}
        by_class.scatter(*stars.T, c=colours[slot_numbers], **edge)
        by_domain.scatter(*stars.T, c="white", label="slot", **edge)
    for panel, what in ((by_class, "by class"), (by_domain, "by domain")):
        panel.set_title(f"class features of images{', and slots' * (memory is not None)}, {what}")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    return figure


def reliability_figure(found: Mapping[str, Statistics], classes: Classes) -> Any:
    """Share of right pixels against confidence, a panel per predicted class, a line per domain.

    The number is the expected calibration error (Guo et al., ICML 2017), by class.
    """
    columns = 5
    rows = -(-len(classes) // columns)
    figure = _figure(2.6 * columns, 2.4 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    errors = [each.calibration_error() for each in found.values()]
    for k, panel in enumerate(panels.flat):
        if k >= len(classes):
            panel.set_axis_off()
            continue
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for number, each in enumerate(found.values()):
            pixels, confidence, right = each.reliability[:, k]
            some = pixels > 0
            error = float(errors[number][k])
            panel.plot(
                (confidence / pixels)[some], (right / pixels)[some], marker=".",
                color=f"C{number % 10}", label=f"{100 * error:.0f}%" if error == error else "-",
            )  # fmt: skip
        panel.set_title(classes.names[k], fontsize=9)
        panel.legend(fontsize=7, frameon=False, loc="upper left")
        panel.set(xlim=(0, 1), ylim=(0, 1))
    figure.legend(
        panels.flat[0].lines[1:], list(found), loc="outside upper center", ncols=len(found)
    )
    figure.supxlabel(f"confidence, {BINS} intervals")
    figure.supylabel("share of right pixels")
    return figure
