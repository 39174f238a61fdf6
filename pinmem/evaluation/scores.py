"""Scores from confusion matrices, and how they are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pinmem.data import Classes

__all__ = ["Score", "percent", "score", "table"]


class Score(NamedTuple):
    """Per-class intersection over union [K] (NaN where a class does not count) and their mean."""

    iou: Tensor
    miou: float


def score(confusion: Tensor, counted: Sequence[int] | None = None) -> Score:
    """IoU from a confusion matrix; classes in neither truth nor prediction do not count.

    Args:
        confusion: [K,K], rows are the truth, columns the prediction.
        counted: classes that count; None: all. Pixels of the others still count as errors of these.
    """
    confusion = confusion.double().cpu()
    hits = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hits
    iou = torch.where(union > 0, hits / union.clamp_min(1), torch.nan)
    if counted is not None:
        excluded = torch.ones(len(iou), dtype=torch.bool)
        excluded[list(counted)] = False
        iou[excluded] = torch.nan
    return Score(iou, float(iou.nanmean().nan_to_num()))


def table(scores: Score | Mapping[str, Score], classes: Classes | None = None) -> str:
    """Per-class IoU in percent, and the mean, as lines of text.

    Args:
        scores: of one dataset, or by dataset: then a column for each and, if there are several,
            one for their mean. A class that does not count is a dash.
        classes: names.
    """
    columns = {"": scores} if isinstance(scores, Score) else dict(scores)
    first = next(iter(columns.values()))
    named = classes or Classes.numbered(len(first.iou))
    # A network may have more classes than are named.
    names = [*named.names, *map(str, range(len(named), len(first.iou)))]
    if len(columns) > 1:
        columns["mean"] = _mean(list(columns.values()))
    width = max(14, *map(len, names))
    widths = [max(6, len(name)) for name in columns]
    rows = [
        (name, [column.iou[k].item() for column in columns.values()])
        for k, name in enumerate(names)
    ]
    rows.append(("mIoU", [column.miou for column in columns.values()]))
    lines = [
        " ".join([f"{name:>{width}}", *map(str.rjust, map(percent, values), widths)])
        for name, values in rows
    ]
    if any(columns):
        lines.insert(0, " ".join([" " * width, *map(str.rjust, columns, widths)]))
    return "\n".join(lines)


def percent(value: float) -> str:
    """A share as a number of percent, or a dash for none."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _mean(scores: list[Score]) -> Score:
    iou = torch.stack([each.iou for each in scores]).nanmean(dim=0)
    return Score(iou, sum(each.miou for each in scores) / len(scores))
