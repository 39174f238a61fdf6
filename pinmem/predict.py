"""Segment pictures and videos: ``python -m pinmem.predict --checkpoint C --images I --out O``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from pinmem.checkpoint import open_trained
from pinmem.data import CITYSCAPES, Classes, DataError, eval_transform
from pinmem.data.decode import image_size, read_image
from pinmem.evaluate import inference_of, pick_device
from pinmem.evaluation import Inference, folded, infer
from pinmem.models import Segmenter
from pinmem.passes import evaluating
from pinmem.prediction.inputs import Source, find, plan
from pinmem.prediction.pictures import (
    DRAWN,
    INDEXED,
    denormalize,
    draw,
    overlay,
    write_picture,
    write_png,
)
from pinmem.prediction.video import FolderWriter, VideoWriter, frames, needs_av, properties
from pinmem.program import parse, run
from pinmem.progress import progress

__all__ = ["Segmented", "denormalize", "overlay", "overlay_row", "predict", "segment", "write_png"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Segmented:
    """Classes of an image, uint8 [H,W] on the CPU; the attention on each slot, [H,W], by number."""

    labels: Tensor
    activation: Callable[[int], Tensor] | None = None


@torch.no_grad()
def segment(
    model: Segmenter,
    images: Tensor,
    inference: Inference | None = None,
    activation: bool = False,
) -> Iterator[Segmented]:
    """Segment a batch of images [B,3,H,W], normalised, one after the other.

    Args:
        model: on any device; its mode is kept.
        images: of one size.
        inference: None: whole images, one scale.
        activation: whether the attention on the memory's slots is wanted, if there is a memory.
    """

    def forward(window: Tensor) -> tuple[Tensor, ...]:
        output = model(window)
        if not activation or output.scores is None:
            return (output.logits,)
        return output.logits, output.scores.float().softmax(dim=1)

    device = next(model.parameters()).device
    images = images.to(device, memory_format=torch.channels_last)
    with evaluating(model):
        logits, *attention = infer(forward, images, inference or Inference())
    for index in range(len(images)):
        one = (lambda k, i=index: attention[0].channel(i, k)) if attention else None
        yield Segmented(logits.labels(index).cpu(), one)


def predict(model: Segmenter, image: Tensor, inference: Inference | None = None) -> Tensor:
    """The class of every pixel, uint8 [H,W], of an image [3,H,W], normalised."""
    return next(segment(model, image[None], inference)).labels


def overlay_row(
    model: Segmenter, image: Tensor, labels: Tensor, classes: Classes = CITYSCAPES
) -> Tensor:
    """Image, truth and prediction side by side, uint8 [3,H,3W]; the image comes normalised."""
    pixels = denormalize(image)
    labels = labels.as_subclass(Tensor)
    guess = overlay(pixels, predict(model, image), classes=classes)
    return torch.cat([pixels, overlay(pixels, labels, classes=classes), guess], dim=2)


@dataclass
class PredictConfig:
    """Segment pictures and videos.

    Args:
        checkpoint: written by ``python -m pinmem.train`` or ``pinmem.convert``, or a published one.
        images: pictures, videos, folders of them, or patterns such as ``"drive/*/*.jpg"``;
            repeated for several.
        out: where ``NAME_labels.png``, ``NAME_overlay.png``, ... go, in the same sub-folders; where
            files differ in their suffix alone, NAME keeps it.
        save: some of ``labels`` (numbers of classes, with a palette), ``trainids`` (the same in
            grey), ``labelids`` (Cityscapes' own), ``color``, ``overlay``, ``side_by_side`` and
            ``activation`` (where each class's slot is read), with commas between.
        recursive: take the pictures in sub-folders too.
        overwrite: replace results that exist; without it, they are kept.
        mode: whole pictures, or sliding windows whose logits are averaged: for large ones.
        crop: height and width of a window, one number for both.
        stride: rows and columns from a window to the next, one number for both.
        scales: logits at these sizes of the picture are averaged.
        flip: average with the logits of the mirrored picture.
        batch_size: pictures of one size at a time; 0: 8 on a GPU, 1 on a CPU.
        workers: threads that read and write pictures.
        model: name of the network in a published checkpoint, which does not say.
        output_stride: likewise; the published one if absent.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    checkpoint: str
    images: list[str]
    out: str
    save: list[str] = field(default_factory=lambda: ["labels", "overlay"])
    recursive: bool = False
    overwrite: bool = False
    mode: Literal["whole", "slide"] = "whole"
    crop: int | tuple[int, int] = 768
    stride: int | tuple[int, int] = 512
    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False
    batch_size: int = 0
    workers: int = 2
    model: str | None = None
    output_stride: int | None = None
    device: str = "auto"


class Program:
    """A run of the program: the network and the options that all pictures share."""

    def __init__(self, config: PredictConfig) -> None:
        self.kinds = list(
            dict.fromkeys(kind.strip() for text in config.save for kind in text.split(","))
        )
        for kind in self.kinds:
            if kind not in (*INDEXED, *DRAWN):
                raise ValueError(f"save: got {kind!r}, expected {', '.join((*INDEXED, *DRAWN))}")
        for option, least in (("batch_size", 0), ("workers", 1)):
            if getattr(config, option) < least:
                got = getattr(config, option)
                raise ValueError(f"{option}: got {got}, expected at least {least}")
        self.inference = inference_of(config)
        self.overwrite = config.overwrite
        out = Path(config.out)
        self.found = find(config.images, config.recursive, out.absolute())
        self.sources = plan(self.found, out, self.kinds)
        if any(source.is_video for source in self.sources):
            needs_av()
        device = pick_device(config.device)
        self.model, self.classes = open_trained(
            config.checkpoint, device, config.model, config.output_stride
        )
        if "labelids" in self.kinds and self.classes.names != CITYSCAPES.names:
            raise ValueError("save: got labelids, expected none: the classes are not Cityscapes'")
        if "activation" in self.kinds and self.model.memory is None:
            raise ValueError("save: got activation, expected none: this network has no memory")
        self.batch_size = config.batch_size or (8 if device.type == "cuda" else 1)
        self.pool = ThreadPoolExecutor(config.workers)
        self.failures: list[str] = []

    def wanted(self, source: Source) -> dict[str, Path]:
        """The results of a source that are to be written."""
        return {k: p for k, p in source.results.items() if self.overwrite or not p.exists()}

    def segment(self, pixels: list[Tensor]) -> Iterator[Segmented]:
        """Segment pictures of one size, uint8 [3,H,W]."""
        empty = torch.zeros(pixels[0].shape[1:], dtype=torch.uint8)
        images = torch.stack([eval_transform()(each, empty)[0] for each in pixels])
        return segment(self.model, images, self.inference, "activation" in self.kinds)

    def pictures(self, sources: list[Source]) -> None:
        """Segment pictures, those of one size together."""
        by_size: dict[tuple[int, int], list[Source]] = {}
        for source in sources:
            try:
                by_size.setdefault(image_size(source.path), []).append(source)
            except DataError as error:
                self.failures.append(str(error))
        batches = [b for same in by_size.values() for b in batched(same, self.batch_size)]
        count = sum(map(len, batches))
        for batch in progress(batches, "pictures", count, images=len):
            read = list(self.pool.map(_read_or_error, (source.path for source in batch)))
            self.failures += [each for each in read if isinstance(each, str)]
            good = [(s, p) for s, p in zip(batch, read, strict=True) if isinstance(p, Tensor)]
            if not good:
                continue
            results = self.segment([pixels for _, pixels in good])
            jobs = []
            for (source, pixels), found in zip(good, results, strict=True):
                for kind, path in self.wanted(source).items():
                    jobs.append(self.pool.submit(self._write, kind, path, pixels, found))
            for job in jobs:
                job.result()

    def _write(self, kind: str, path: Path, pixels: Tensor, found: Segmented) -> None:
        write_picture(path, draw(kind, pixels, found.labels, self.classes, found.activation))

    def video(self, source: Source) -> None:
        """Segment a video: videos of what is drawn, folders of numbered PNGs of numbers."""
        count, rate = properties(source.path)
        wanted = self.wanted(source)
        writers = {
            kind: VideoWriter(path, rate) if kind in DRAWN else FolderWriter(path)
            for kind, path in wanted.items()
        }
        number = 0
        complete = False
        try:
            batches = batched(frames(source.path), self.batch_size)
            for batch in progress(batches, source.path.name, count, images=len):
                for pixels, found in zip(batch, self.segment(batch), strict=True):
                    for kind, writer in writers.items():
                        writer.write(
                            draw(kind, pixels, found.labels, self.classes, found.activation)
                        )
                    number += 1
            if not number:
                raise DataError(f"{source.path}: video has no frame")
            complete = True
        finally:
            for writer in writers.values():
                writer.close(complete)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of at most ``size`` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _read_or_error(path: Path) -> Tensor | str:
    try:
        return read_image(path).as_subclass(Tensor)
    except DataError as error:
        return str(error)


def main() -> None:
    """Run the program."""
    config = parse(PredictConfig, program="python -m pinmem.predict")
    program = Program(config)
    todo = [source for source in program.sources if program.wanted(source)]
    with torch.no_grad(), folded(program.model):
        program.pictures([source for source in todo if not source.is_video])
        for source in todo:
            if source.is_video:
                try:
                    program.video(source)
                except DataError as error:
                    program.failures.append(str(error))
    done, kept = len(todo) - len(program.failures), len(program.sources) - len(todo)
    print(f"{done} of {len(program.sources)} segmented into {config.out}")
    if kept:
        print(f"kept: {kept} whose results exist; --overwrite replaces them")
    if skipped := program.found.skipped:
        print(f"skipped: {skipped} entries that are hidden, folders or no pictures")
    if program.failures:
        count = f"{len(program.failures)} of {len(program.sources)}"
        print(f"error: {count} pictures failed:", file=sys.stderr)
        print("\n".join(program.failures), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
