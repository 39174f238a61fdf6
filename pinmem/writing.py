"""Writing files so that one of the right name is always whole."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["write_beside"]


def write_beside(
    path: Path, write: Callable[[IO[bytes]], object], kind: str = "file", *, durable: bool = False
) -> None:
    """Write a file beside its place and rename it: ``path`` holds the old content or the new.

    Several processes may write the same file. Its folder is made where it is missing.

    Args:
        path: of the file.
        write: is given the open file.
        kind: what the file is, for the error.
        durable: wait until the content is on the disk.

    Raises:
        OSError: the disk is full or not writable; an old file is as it was.
    """
    # Not mkstemp, whose files nobody else may read.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "xb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        # torch.save says with a RuntimeError that the disk is full.
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OSError(f"{kind} {path}: could not be written: {reason}") from error
