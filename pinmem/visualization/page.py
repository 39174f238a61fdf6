"""The page: one HTML file with scores, pictures and configuration, that can be sent to someone."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

import pinmem
from pinmem.data import Classes
from pinmem.evaluation.scores import Score, percent, score
from pinmem.extras import optional
from pinmem.models import Segmenter
from pinmem.prediction.pictures import activation_sheet, overlay, write_png
from pinmem.visualization.figures import (
    confusion_figure,
    reliability_figure,
    similarity_figure,
    tsne_figure,
    write_figure,
)
from pinmem.visualization.statistics import Statistics, gather
from pinmem.writing import write_beside

__all__ = ["NAME", "check_installed", "write_page"]

NAME = "report.html"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2rem auto;
       padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
p.note { color: #666; margin-top: .3rem; }
img { max-width: 100%; border: 1px solid #eee; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.mean td { border-top: 1px solid #999; font-weight: 600; }
i.colour { display: inline-block; width: .8em; height: .8em; margin-right: .5em;
           border: 1px solid #0003; }
table.options { font: 13px/1.4 ui-monospace, monospace; }
"""


def check_installed() -> None:
    """Raise ``ValueError`` where matplotlib or scikit-learn is not installed."""
    for package in ("matplotlib", "sklearn"):
        optional(package, "visualize", "the page")


@dataclass(frozen=True)
class _Picture:
    title: str
    note: str
    path: Path


def write_page(
    folder: Path,
    model: Segmenter,
    datasets: Mapping[str, Dataset[tuple[Tensor, Tensor]]],
    classes: Classes,
    config: Mapping[str, Any],
    *,
    scores: Mapping[str, Score] | None = None,
    images: int = 20,
    track: Callable[[str], None] = lambda name: None,
) -> Path:
    """Draw all pictures of a network and write them, and the page with them, into a folder.

    Args:
        folder: is made; files in it are replaced.
        model: its mode is kept.
        datasets: pairs of a normalised image and labels, by name.
        classes: names and colours.
        config: options to show.
        scores: measured elsewhere, by dataset; None: those of the images that are looked at.
        images: of each dataset, evenly spread, that the pictures are made from.
        track: called with the name of each dataset before it is looked at.

    Returns:
        The page.

    Raises:
        ValueError: matplotlib or scikit-learn is not installed.
    """
    check_installed()
    found = {}
    for name, dataset in datasets.items():
        track(name)
        found[name] = gather(model, dataset, images)
    memory = None if model.memory is None else model.memory.memory
    # A network may have more classes than are named.
    more = Classes.numbered(model.num_classes)
    count = len(classes)
    classes = Classes(classes.names + more.names[count:], classes.colors + more.colors[count:])
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(folder, found, memory, classes)
    origin = f"on {max(each.images for each in found.values())} images of each at most"
    shown = scores
    if shown is None:
        shown = {name: score(each.confusion) for name, each in found.items()}
    parts = [
        _head(config),
        "<h2>Intersection over union, %</h2>",
        f'<p class="note">{"of the last validation" if scores else origin}; - is a class without a '
        "pixel.</p>",
        _scores(shown, classes),
    ]
    for picture in pictures:
        data = base64.b64encode(picture.path.read_bytes()).decode()
        title, note = html.escape(picture.title), html.escape(picture.note)
        parts.append(
            f'<h2>{title}</h2><p class="note">{note}</p>'
            f'<img alt="{title}" src="data:image/png;base64,{data}">'
        )
    if memory is None:
        parts.append('<p class="note">This network has no memory: no slots, no activation.</p>')
    parts += ["<h2>Configuration</h2>", _options(config)]
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{_title(config)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    path = folder / NAME
    write_beside(path, lambda file: file.write(text.encode()))
    return path


def _pictures(
    folder: Path, found: Mapping[str, Statistics], memory: Tensor | None, classes: Classes
) -> list[_Picture]:
    pictures = []

    def add(name: str, title: str, note: str, figure: Any) -> None:
        path = folder / f"{name}.png"
        if isinstance(figure, Tensor):
            write_png(path, figure)
        elif isinstance(figure, Image.Image):
            write_beside(path, lambda file: figure.save(file, format="PNG"))
        else:
            write_figure(path, figure)
        pictures.append(_Picture(title, note, path))

    number = max(each.images for each in found.values())
    for name, each in found.items():
        file = name.replace("/", "-")
        for example in each.examples:
            row = [example.image]
            for labels in (example.labels, example.guess):
                row.append(overlay(example.image, labels, classes=classes))
            add(
                f"example-{file}", f"{name}: an image", "Image, labels, prediction.",
                torch.cat(row, dim=2),
            )  # fmt: skip
            if memory is not None:
                add(
                    f"activation-{file}", f"{name}: where each class's slot is read",
                    "The attention on each slot, of the image above.",
                    activation_sheet(example.image, example.activation, classes),
                )  # fmt: skip
    features = tsne_figure(found, memory, classes)
    if features is not None:
        add(
            "tsne", "Class features and slots",
            "t-SNE on cosine distance. A point is the mean query feature of a class in an image"
            f" ({number} images per domain at most); a star is a memory slot.", features,
        )  # fmt: skip
    if memory is not None:
        add(
            "similarity", "Similarity of the slots",
            "Classes whose slots are alike are read together.", similarity_figure(memory, classes),
        )  # fmt: skip
    add(
        "confusion", "Confusion", "Rows add up to 100; shares below half a percent have no number.",
        confusion_figure({name: each.confusion for name, each in found.items()}, classes),
    )  # fmt: skip
    add(
        "reliability", "Reliability by predicted class",
        "On the diagonal, confidence is the share of right pixels; below, it is too sure of itself."
        " The numbers are the expected calibration errors.", reliability_figure(found, classes),
    )  # fmt: skip
    return pictures


def _title(config: Mapping[str, Any]) -> str:
    parts = (config.get("model"), config.get("mode"))
    return html.escape(", ".join(str(part) for part in parts if part) or "pinmem")


def _head(config: Mapping[str, Any]) -> str:
    versions = f"pinmem {pinmem.__version__}, torch {torch.__version__}"
    return f'<h1>{_title(config)}</h1><p class="note">{html.escape(versions)}</p>'


def _scores(scores: Mapping[str, Score], classes: Classes) -> str:
    def row(cells: Sequence[str], first: str, kind: str = "") -> str:
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        return f"<tr{kind}><td>{first}</td>{numbers}</tr>"

    names = "".join(f'<th class="number">{html.escape(name)}</th>' for name in scores)
    rows = [f"<tr><th></th>{names}</tr>"]
    for k, (name, colour) in enumerate(zip(classes.names, classes.colors, strict=True)):
        red, green, blue = colour
        swatch = f'<i class="colour" style="background: rgb({red} {green} {blue})"></i>'
        values = [percent(float(each.iou[k])) for each in scores.values()]
        rows.append(row(values, swatch + html.escape(name)))
    means = [percent(each.miou) for each in scores.values()]
    rows.append(row(means, "mIoU", ' class="mean"'))
    return f"<table>{''.join(rows)}</table>"


def _options(config: Mapping[str, Any]) -> str:
    rows = (
        f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in config.items()
    )
    return f'<table class="options">{"".join(rows)}</table>'
