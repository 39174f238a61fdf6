"""A few small street scenes on disk, drawn once a test process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from pinmem.data.streets.__main__ import main as draw


@functools.cache
def streets() -> Path:
    """A folder with ``gtav``, ``synthia`` and ``cityscapes``, six training and two other images."""
    root = Path(tempfile.mkdtemp(prefix="pinmem-streets-"))
    draw(["--root", str(root), "--train", "6", "--val", "2", "--size", "128x64", "--workers", "1"])
    return root


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
