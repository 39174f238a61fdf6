"""What a run does that torchrun started as several ranks: its place among them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from pinmem.config import TrainConfig
from pinmem.distributed import Ranks, join, started
from pinmem.evaluate import pick_device

Item = TypeVar("Item")


def take_place(config: TrainConfig) -> tuple[torch.device, Ranks | None]:
    """This rank's device and the ranks it belongs to; None where the process is alone.

    Args:
        config: validated. A run that torchrun started again, after a rank died, is told to resume.

    Raises:
        ValueError: an option does not go with so many ranks, or this one has no GPU of its own.
        RankLost: the others were not found.
    """
    device, size = pick_device(config.device), started()
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if size == 1:
        _resume(config, restarts)
        return device, None
    parts = size * config.accumulate
    if config.batch_size % parts:
        each = f" in {config.accumulate} micro-batches" if config.accumulate > 1 else ""
        raise ValueError(
            f"batch_size: got {config.batch_size} for {size} ranks{each}, "
            f"expected a multiple of {parts}"
        )
    for option in ("compile", "cuda_graph"):
        if getattr(config, option):
            raise ValueError(f"{option}: got true, expected false with {size} ranks")
    if device.type == "cuda":
        index, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if device.index is not None or index >= count:
            raise ValueError(
                f"device: got {config.device!r} for rank {index} of a machine with {count} GPUs, "
                "expected auto and a GPU for each rank"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    ranks = join(device, config.batch_size // size)
    # Machines count their own.
    _resume(config, ranks.largest(restarts))
    return device, ranks


def _resume(config: TrainConfig, restarts: int) -> None:
    if restarts:
        config.resume, config.overwrite = True, False


def check_folder(ranks: Ranks, out: Path, resumed: bool) -> None:
    """Raise ``ValueError`` where other ranks go on from a checkpoint that this one does not see."""
    if ranks.largest(resumed) > resumed:
        raise ValueError(
            f"out: {out} holds no last.pt on this machine, but on another; "
            "expected a folder that all machines see"
        )


class Silent:
    """The report of a rank that writes nothing: what :class:`pinmem.report.Report` has, undone."""

    def __init__(self) -> None:
        self.log = logging.getLogger("pinmem.silent")
        self.log.addHandler(logging.NullHandler())
        self.log.propagate = False
        self.add = self.step = self.validation = self.page = self.close = self._nothing
        self.stop = self.go_back = self._nothing

    def track(self, items: Iterable[Item], what: str) -> Iterator[Item]:
        """Go through items."""
        yield from items

    def _nothing(self, *_: Any) -> None: ...
