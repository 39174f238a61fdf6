"""The numbers of a run: TensorBoard, metrics.jsonl and, where it is asked for, Weights & Biases."""

from __future__ import annotations

import errno
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pinmem.config import TrainConfig
from pinmem.extras import optional
from pinmem.writing import write_beside


class Metrics:
    """The same numbers under the same names in every logger.

    Args:
        out: the run's folder.
        config: of the run.
        iteration: rows up to here are kept; -1: none.
        validated: of scores up to here, the last validation that counts.

    Raises:
        ValueError: ``config.logger`` is not installed.
    """

    def __init__(self, out: Path, config: TrainConfig, iteration: int, validated: int) -> None:
        self._out = out
        self._file = out / "metrics.jsonl"
        self._wandb = None
        if config.logger == "wandb":
            wandb = optional("wandb", "wandb", "logger: wandb")
            path = out / "wandb.id"
            if iteration < 0 or not path.exists():
                path.write_text(uuid.uuid4().hex[:8])
            self._wandb = wandb.init(
                project="pinmem", id=path.read_text(), resume="allow", dir=str(out),
                config=dict(vars(config)),
            )  # fmt: skip
        self._board = self._open(iteration, validated)

    def go_back(self, iteration: int, validated: int) -> None:
        """Take back what came after an iteration, and after its validation."""
        self._board.close()
        self._board = self._open(iteration, validated)

    def write(self, iteration: int, row: Mapping[str, float]) -> None:
        """Write some numbers; in metrics.jsonl one that is not finite is null.

        Raises:
            OSError: the disk is full; the file ends in a whole line.
        """
        for name, value in row.items():
            self._board.add_scalar(name, value, iteration)
        self._board.flush()
        plain = {k: v if math.isfinite(v) else None for k, v in row.items()}
        line = (json.dumps({"iteration": iteration, **plain}) + "\n").encode()
        with open(self._file, "ab", buffering=0) as file:
            before = file.tell()
            if file.write(line) != len(line):
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._wandb is not None:
            self._wandb.log(dict(row), step=iteration)

    def picture(self, name: str, picture: Tensor, iteration: int) -> None:
        """Show uint8 [C,H,W] in TensorBoard."""
        self._board.add_image(name, picture, iteration)

    def close(self) -> None:
        """Write what is held back."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _open(self, iteration: int, validated: int) -> SummaryWriter:
        lines = self._file.read_bytes().splitlines(keepends=True) if self._file.exists() else []
        kept = []
        for line in lines:
            if not line.endswith(b"}\n"):  # cut off with its writer
                continue
            row = json.loads(line)
            scores = any(name.startswith("miou/") for name in row)
            if row["iteration"] <= (validated if scores else iteration):
                kept.append(line)
        write_beside(self._file, lambda file: file.write(b"".join(kept)), "metrics", durable=True)
        # TensorBoard shows nothing that was written before with this step or a later one.
        return SummaryWriter(self._out / "tensorboard", purge_step=iteration + 1)
