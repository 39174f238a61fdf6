"""Folders and what is in them: all of it, or an error that names the folder that cannot be read."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from pinmem.data.errors import DataError

__all__ = ["is_file", "is_folder", "is_hidden", "walk"]


def walk(top: Path, depth: int | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from ``top`` down, with the names of its files; nothing where it is no folder.

    Links are followed, but for those that lead back up.

    Args:
        top: where to begin.
        depth: how many folders down; None: all.

    Raises:
        DataError: a folder cannot be read.
    """
    if not is_folder(top):
        return
    above = {os.path.dirname(top): {os.path.realpath(parent) for parent in top.resolve().parents}}
    for parent, below, names in os.walk(top, onerror=_raise, followlinks=True):
        real = os.path.realpath(parent)
        known = above[os.path.dirname(parent)]
        if real in known:
            below.clear()
            continue
        above[parent] = known | {real}
        if depth is not None and len(Path(parent).relative_to(top).parts) >= depth:
            below.clear()
        yield Path(parent), names


def is_folder(path: Path) -> bool:
    """Whether a path is a folder.

    Raises:
        DataError: there is no telling, as where the folder around it cannot be read.
    """
    return stat.S_ISDIR(_mode(path))


def is_file(path: Path) -> bool:
    """Whether a path is a file; errors as ``is_folder``."""
    return stat.S_ISREG(_mode(path))


def _mode(path: Path) -> int:
    """What a path is, as ``stat`` says; 0 for nothing."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        _raise(error)


def _raise(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def is_hidden(path: str) -> bool:
    """By its own name or that of a folder, such as ``.ipynb_checkpoints``."""
    return any(part.startswith(".") for part in path.split("/"))
