"""Measure a trained network: ``python -m pinmem.evaluate --checkpoint FILE --dataset name=folder``.

One confusion matrix over each set, from logits that are never upsampled in memory.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import pinmem
from pinmem.checkpoint import load_trained, open_trained
from pinmem.config import named_folder
from pinmem.data import Classes, dataset_name
from pinmem.evaluation import (
    Inference,
    Protocol,
    Score,
    check_classes,
    choose_classes,
    confusion_of,
    open_dataset,
    reading,
    score,
    table,
)
from pinmem.extras import optional
from pinmem.program import parse, run
from pinmem.progress import progress
from pinmem.writing import write_beside

__all__ = [
    "Score",
    "check_classes",
    "confusion_of",
    "load_trained",
    "open_dataset",
    "pick_device",
    "score",
    "table",
]


@dataclass
class EvaluateConfig:
    """Measure a trained network on datasets.

    Args:
        checkpoint: written by ``python -m pinmem.train`` or ``pinmem.convert``, or a published one.
        dataset: ``name=folder``, or a description, ``my.yaml``; repeated for several.
        split: of the datasets.
        protocol: ``full``: images at their own size; ``half``: images of Cityscapes (1024x512) and
            Mapillary at half size; ``robustnet``: Mapillary at height 1536, its centre 1536x1536.
        classes: that the mean is over: ``synthia16``, ``synthia13`` or names; all if absent.
        size: height the images are read at; absent: their own.
        images: at most so many, evenly spread; 0: all.
        mode: whole images, or sliding windows whose logits are averaged.
        crop: height and width of a window, one number for both.
        stride: rows and columns from a window to the next, one number for both.
        scales: logits at these sizes of the image are averaged.
        flip: average with the logits of the mirrored image.
        json: file to write the scores and confusion matrices to.
        picture: PNG file to draw the confusion matrices to.
        overwrite: replace these files if they exist.
        compat: Gumbel noise while reading, as in the published evaluation.
        amp: autocast to this type.
        workers: processes that load data.
        model: name of the network in a published checkpoint, which does not say.
        output_stride: likewise; the published one if absent.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    checkpoint: str
    dataset: list[str]
    split: str = "val"
    protocol: Protocol = "full"
    classes: list[str] = field(default_factory=list)
    size: int | None = None
    images: int = 0
    mode: Literal["whole", "slide"] = "whole"
    crop: int | tuple[int, int] = 768
    stride: int | tuple[int, int] = 512
    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False
    json: str | None = None
    picture: str | None = None
    overwrite: bool = False
    compat: bool = False
    amp: Literal["none", "bfloat16"] = "none"
    workers: int = 2
    model: str | None = None
    output_stride: int | None = None
    device: str = "auto"


def pick_device(name: str) -> torch.device:
    """The device of that name, made the current one; ``auto`` is the GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: got {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {name!r}, but no CUDA device is available")
    if device.type == "cuda" and device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"device: got {name!r} of {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(device)
    return device


def inference_of(options: Any) -> Inference:
    """The inference that ``mode``, ``crop``, ``stride``, ``scales`` and ``flip`` ask for."""
    crop, stride = (
        (size, size) if isinstance(size, int) else size for size in (options.crop, options.stride)
    )
    return Inference(options.mode, crop, stride, tuple(options.scales), options.flip)


def names_of(datasets: list[str]) -> dict[str, str]:
    """Short names of ``name=folder`` texts, numbered where they are the same.

    Raises:
        ValueError: there is none, or a text has another form.
    """
    if not datasets:
        raise ValueError("dataset: got none, expected at least one name=folder or .yaml file")
    named: dict[str, str] = {}
    for text in datasets:
        name = dataset_name(named_folder("dataset", text)[0])
        same = sum(key.partition("#")[0] == name for key in named)
        named[f"{name}#{same + 1}" if same else name] = text
    return named


def refuse_existing(paths: Mapping[str, str | None], overwrite: bool) -> None:
    """Raise ``ValueError`` where a file of these, by option, exists and must not be replaced."""
    for option, path in paths.items():
        if path is not None and Path(path).exists() and not overwrite:
            raise ValueError(f"{option}: {path} exists; --overwrite replaces it")


@dataclass
class Measured:
    """What was found on one dataset."""

    score: Score
    confusion: Tensor
    protocol: str


def report(
    measured: Mapping[str, Measured], classes: Classes, checkpoint: str, complete: bool
) -> dict[str, Any]:
    """What ``--json`` writes; shares of 1, and null where there is none."""

    def content(found: Measured) -> dict[str, Any]:
        iou = [None if value != value else value for value in found.score.iou.tolist()]
        return {
            "miou": found.score.miou,
            "iou": dict(zip(classes.names, iou, strict=False)),
            "confusion": found.confusion.tolist(),
            "protocol": found.protocol,
        }

    digest = hashlib.sha256()
    with open(checkpoint, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    means = [found.score.miou for found in measured.values()]
    return {
        "datasets": {name: content(found) for name, found in measured.items()},
        "mean_miou": sum(means) / len(means) if complete else None,
        "classes": list(classes.names),
        "checkpoint": {"file": checkpoint, "sha256": digest.hexdigest()},
        "versions": {
            "pinmem": pinmem.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def main() -> None:
    """Run the program."""
    config = parse(EvaluateConfig, program="python -m pinmem.evaluate")
    inference, named = inference_of(config), names_of(config.dataset)
    refuse_existing({"json": config.json, "picture": config.picture}, config.overwrite)
    if config.picture:
        optional("matplotlib", "visualize", "option picture")
    model, classes = open_trained(
        config.checkpoint, pick_device(config.device), config.model, config.output_stride
    )
    counted = choose_classes(config.classes, classes)
    sets = {
        name: open_dataset(
            "dataset", text, config.split, config.size, config.images, classes, config.protocol
        )
        for name, text in named.items()
    }
    amp_dtype = None if config.amp == "none" else torch.bfloat16
    if config.compat and model.memory is not None:
        model.memory.gumbel = "always"
    measured: dict[str, Measured] = {}
    empty = []
    for name, dataset in sets.items():
        began, images = time.perf_counter(), len(dataset)  # type: ignore[arg-type]
        confusion = confusion_of(
            model, dataset, inference=inference, workers=config.workers, amp_dtype=amp_dtype,
            track=partial(progress, what=name, total=images),
        ).cpu()  # fmt: skip
        speed = images / (time.perf_counter() - began)
        if not confusion.any():
            # Dummies, such as the labels of a test split: a score of them would be of nothing.
            empty.append(f"{named[name]}: split {config.split}: no labelled pixel")
            continue
        words = reading(config.protocol, named_folder("dataset", named[name])[0], config.size).words
        parts = [inference.describe(words), f"split {config.split}", f"{images} images"]
        if counted is not None:
            which = config.classes[0] if len(config.classes) == 1 else f"{len(counted)} classes"
            parts.append(f"mean over {which}")
        result = score(confusion, counted)
        measured[name] = Measured(result, confusion, ", ".join(parts))
        print(f"{name}: {images} images at {speed:.2f} images/s", file=sys.stderr)
    if measured:
        print(table({name: found.score for name, found in measured.items()}, classes))
        for name, found in measured.items():
            print(f"{name}: mIoU {100 * found.score.miou:.2f}, protocol: {found.protocol}")
        if config.json:
            content = report(measured, classes, config.checkpoint, not empty)
            text = json.dumps(content, indent=1, allow_nan=False) + "\n"
            write_beside(Path(config.json), lambda file: file.write(text.encode()))
        if config.picture:
            from pinmem.visualization.figures import confusion_figure, write_figure

            matrices = {name: found.confusion for name, found in measured.items()}
            write_figure(Path(config.picture), confusion_figure(matrices, classes))
    if empty:
        print(f"error: {'; '.join(empty)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
