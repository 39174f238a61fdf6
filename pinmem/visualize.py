"""Pictures of the method: ``python -m pinmem.visualize --checkpoint C --dataset D --out O``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pinmem.checkpoint import open_trained, read_weights
from pinmem.evaluate import names_of, pick_device, refuse_existing
from pinmem.evaluation import Protocol, open_dataset
from pinmem.program import parse, run
from pinmem.visualization.page import NAME, write_page


@dataclass
class VisualizeConfig:
    """Draw what a network has learnt, and write a page that one can send to someone.

    Args:
        checkpoint: written by ``python -m pinmem.train`` or ``pinmem.convert``, or a published one.
        dataset: ``name=folder``, or a description, ``my.yaml``; repeated for several.
        out: folder for ``report.html`` and its pictures as PNG files.
        split: of the datasets.
        images: of each dataset, evenly spread.
        protocol: ``full``, ``half`` or ``robustnet``, as in ``python -m pinmem.evaluate``.
        size: height the images are read at; absent: their own.
        overwrite: replace a page that exists.
        model: name of the network in a published checkpoint, which does not say.
        output_stride: likewise; the published one if absent.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    checkpoint: str
    dataset: list[str]
    out: str
    split: str = "val"
    images: int = 50
    protocol: Protocol = "full"
    size: int | None = None
    overwrite: bool = False
    model: str | None = None
    output_stride: int | None = None
    device: str = "auto"


def main() -> None:
    """Run the program."""
    config = parse(VisualizeConfig, program="python -m pinmem.visualize")
    if config.images < 1:
        raise ValueError(f"images: got {config.images}, expected at least 1")
    named = names_of(config.dataset)
    refuse_existing({"out": str(Path(config.out) / NAME)}, config.overwrite)
    network = {"model": config.model, "output_stride": config.output_stride}
    model, classes = open_trained(config.checkpoint, pick_device(config.device), **network)  # type: ignore[arg-type]
    datasets = {
        name: open_dataset("dataset", text, config.split, config.size, 0, classes, config.protocol)
        for name, text in named.items()
    }
    options = read_weights(config.checkpoint, **network).config  # type: ignore[arg-type]
    page = write_page(
        Path(config.out), model, datasets, classes, {"checkpoint": config.checkpoint, **options},
        images=config.images,
        track=lambda name: print(f"{name}: looking at images", file=sys.stderr),
    )  # fmt: skip
    print(page)


if __name__ == "__main__":
    run(main)
