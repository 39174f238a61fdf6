"""The folder of a run: one run at a time, and what a resumed run may change."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from pinmem.config import TrainConfig
from pinmem.data import Classes, SegmentationDataset
from pinmem.distributed import started
from pinmem.writing import write_beside

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunFolder:
    """A folder that belongs to one run, as long as its process lives.

    Args:
        path: made where it is not there.
        resume: a run in it is to go on.
        overwrite: a run in it may be deleted, which :meth:`clear` does.
        writes: whether this process does; of several ranks one.

    Raises:
        ValueError: it is in use, or holds a run and neither option says what is to become of it.
    """

    def __init__(self, path: Path, *, resume: bool, overwrite: bool, writes: bool = True) -> None:
        self.path = path
        self.last = path / "last.pt"
        self.writes = writes
        if not writes:
            return
        path.mkdir(parents=True, exist_ok=True)
        self._lock = open(path / ".lock", "a+")  # noqa: SIM115 - held until the process ends
        self._acquire()
        for partial in path.glob(".*.partial"):  # of a write that was killed
            partial.unlink()
        if not (resume or overwrite) and (self.last.exists() or (path / "best.pt").exists()):
            self._lock.close()
            raise ValueError(
                f"out: {path} holds a run; --resume true goes on with it, "
                "--overwrite true deletes it"
            )

    def clear(self) -> None:
        """Delete the run in the folder, and nothing else."""
        if not self.writes:
            return
        for name in ("last.pt", "best.pt", "scores.txt", "metrics.jsonl", "wandb.id"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("tensorboard", "overlays"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _acquire(self) -> None:
        try:
            # Of the process, not of the file: a loader's process that outlives it holds nothing.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logging.getLogger(__name__).warning(f"{self.path}: no locks here: {error.strerror}")
                return
            self._lock.seek(0)
            owner = self._lock.read().strip() or "another process"
            self._lock.close()
            raise ValueError(f"out: {self.path} is in use by {owner}") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def record(self, config: TrainConfig) -> None:
        """Write the options that run to ``config.yaml``."""
        if not self.writes:
            return
        text = recorded(config).text().encode()
        write_beside(
            self.path / "config.yaml", lambda file: file.write(text), "configuration", durable=True
        )

    def full(self, error: OSError) -> OSError:
        """The error of a write, naming the folder where it is the disk that is full."""
        if error.errno not in _FULL:
            return error
        return OSError(f"run folder {self.path}: could not be written: {error.strerror}")

    def how_to_go_on(self) -> str:
        """The command that resumes the run."""
        size = started()
        program = "python" if size == 1 else f"torchrun --nproc_per_node={size}"
        return f"{program} -m pinmem.train --config {self.path / 'config.yaml'} --resume true"


def recorded(config: TrainConfig) -> TrainConfig:
    """The options without those that say what to do with a run that is there already."""
    return dataclasses.replace(config, resume=False, overwrite=False)


def files_of(dataset: Dataset[Any]) -> str:
    """A digest of the names and sizes of a dataset's files, and of how its labels are read.

    It is the same wherever the files lie: names count from the folder they have in common.
    """
    dataset = getattr(dataset, "dataset", dataset)  # of a subset
    assert isinstance(dataset, SegmentationDataset)
    paths = [str(path) for index in range(len(dataset)) for path in dataset.paths(index)]
    root = len(os.path.commonpath(paths))
    digest = hashlib.sha256(dataset.encoding_key.encode())
    for path in paths:
        digest.update(f"\0{path[root:]}\0{os.path.getsize(path)}".encode())
    return digest.hexdigest()[:32]


def check_resume(
    path: Path,
    content: Mapping[str, Any],
    config: TrainConfig,
    sources: Sequence[str],
    classes: Classes,
) -> list[str]:
    """Compare a run with the checkpoint it goes on from.

    Args:
        path: of the checkpoint.
        content: of the checkpoint.
        config: options now; those that `TrainConfig` declares fixed must be as they were.
        sources: `files_of` the training sets now.
        classes: of the training sets now.

    Returns:
        The options that differ and are applied, as "name old -> new".

    Raises:
        ValueError: naming an option that must not differ, or a training set that changed.
    """
    if lacks := {"optimizer", "iteration", "sources", "classes"} - content.keys():
        raise ValueError(
            f"checkpoint {path}: holds no run to go on with, it lacks {', '.join(sorted(lacks))} "
            f"(--start {path} begins one with its weights)"
        )
    config, old, changes = recorded(config), content["config"], []
    for option in dataclasses.fields(config):
        default = (
            option.default_factory()
            if option.default_factory is not dataclasses.MISSING
            else option.default
        )
        here, there = _plain(getattr(config, option.name)), _plain(old.get(option.name, default))
        if here == there:
            continue
        if option.metadata.get("fixed"):
            raise ValueError(
                f"{option.name}: got {here!r}, but checkpoint {path} was trained with {there!r} "
                f"(--start {path} begins another run with its weights)"
            )
        changes.append(f"{option.name} {there} -> {here}")
    named = content["classes"]["names"]
    if named != list(classes.names):  # a description may change under its name
        raise ValueError(
            f"sources: have the classes {', '.join(classes.names)}, "
            f"but checkpoint {path} was trained on {', '.join(named)}"
        )
    there = old["sources"]
    if len(there) != len(config.sources):
        raise ValueError(
            f"sources: got {len(config.sources)}, but checkpoint {path} was trained on {len(there)}"
        )
    for text, now, before in zip(config.sources, sources, content["sources"], strict=True):
        if now != before:
            raise ValueError(
                f"sources: the files of {text} differ in names, sizes or encoding from those "
                f"that checkpoint {path} was trained on"
            )
    if config.iterations < content["iteration"]:
        raise ValueError(
            f"iterations: got {config.iterations}, but checkpoint {path} "
            f"is of iteration {content['iteration']}"
        )
    return changes


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
