"""A few small street scenes on disk, drawn once a test process."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from examples.streets.__main__ import main as draw
from pinmem.config import TrainConfig
from pinmem.program import run
from pinmem.train import Trainer

SMALL = "deeplabv3plus_shufflenetv2"


@functools.cache
def streets() -> Path:
    """A folder with ``gtav``, ``synthia`` and ``cityscapes``, six training and two other images."""
    root = Path(tempfile.mkdtemp(prefix="pinmem-streets-"))
    draw(["--root", str(root), "--train", "6", "--val", "2", "--size", "128x64", "--workers", "1"])
    return root


def copy_of(domain: str, to: Path) -> Path:
    return Path(shutil.copytree(streets() / domain, to / domain))


def tiny_run(out: Path, **options: object) -> dict[str, object]:
    """Options of a training run that takes seconds."""
    root = streets()
    return {
        "sources": [f"gtav={root / 'gtav'}", f"synthia={root / 'synthia'}"],
        "unseen": [f"cityscapes={root / 'cityscapes'}"],
        "out": str(out),
        "model": "deeplabv3plus_r18",
        "iterations": 3,
        "batch_size": 2,
        "crop_size": (64, 64),
        "memory_init_draws": 2,
        "validate_every": 2,
        "page_images": 0,
        "checkpoint_every": 1,
        "log_every": 1,
        "workers": 0,
        "threads": 1,
        "device": "cpu",
    } | options


def small_run(out: Path, **options: object) -> dict:
    """The same of a smaller network, with one image of each validation set."""
    return tiny_run(out, model=SMALL, validate_images=1, memory_init_draws=1, **options)


def end_of(config: dict, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and error line of a run."""
    capsys.readouterr()
    try:
        run(lambda: Trainer(TrainConfig(**config)).fit() and None)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    return status, capsys.readouterr().err


def at(trainer: Trainer, iteration: int, act: Callable[[], object]) -> Trainer:
    """Do something after the step of an iteration, counted from 0."""
    step = trainer.step

    def stepped(images: torch.Tensor, labels: torch.Tensor):
        losses = step(images, labels)
        if trainer.iteration == iteration:
            act()
        return losses

    trainer.step = stepped  # type: ignore[method-assign]
    return trainer
