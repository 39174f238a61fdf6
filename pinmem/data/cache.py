"""Decoded pairs in memory-mapped files: reading one costs what is looked at, and no decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinmem.data.errors import DataError
from pinmem.writing import write_beside

__all__ = ["PairCache", "fingerprint"]


def fingerprint(paths: Iterable[Path], *more: Any) -> str:
    """A name for the state of some files: paths, sizes, times of change, and whatever else.

    Raises:
        DataError: one is missing.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"{path}: file cannot be read: {error.strerror}") from error
        digest.update(f"{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    digest.update(repr(more).encode())
    return digest.hexdigest()[:32]


class PairCache:
    """A file for every pair, made when it is first read.

    A file is an array uint8 [H, 4W], a row of RGB pixels before its row of classes. Its name holds
    size and time of change of both sources and the encoding, so a pair that changed is another
    file, and the old one is not read again; delete the folder to make room.
    """

    def __init__(self, folder: Path, encoding: str) -> None:
        self.folder = folder
        self._encoding = encoding

    def pair(
        self, image: Path, label: Path, read: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Image uint8 [3, H, W], channels last, and target uint8 [H, W], mapped from the file."""
        path = self.folder / f"{fingerprint((image, label), self._encoding)}.npy"
        if not path.exists():
            pixels, target = read()
            rows = pixels.permute(1, 2, 0).reshape(len(target), -1).numpy()
            both = np.concatenate([rows, target.numpy()], axis=1)
            try:
                write_beside(path, lambda file: np.save(file, both), "cache")
            except OSError as error:
                raise DataError(str(error)) from error
        try:
            # Copied on writing: a transform in place changes no file.
            both = np.load(path, mmap_mode="c")
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cached pair cannot be read: {error}") from error
        height, width = both.shape[0], both.shape[1] // 4
        pixels = torch.from_numpy(both[:, : 3 * width].reshape(height, width, 3))
        return pixels.permute(2, 0, 1), torch.from_numpy(both[:, 3 * width :])
