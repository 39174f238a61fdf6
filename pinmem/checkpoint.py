"""Checkpoints: written beside and renamed, so that a file of the right name is always whole."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMAT = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that ``path`` holds the old one or the new one, never a part.

    Raises:
        OSError: the disk is full or not writable; the old file is as it was.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        with open(beside, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OSError(f"checkpoint {path}: could not be written: {reason}") from error


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not one of ours, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"checkpoint {path}: not readable: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path}: not written by pinmem's trainer")
    return content


def load_model(path: Path, content: dict[str, Any], model: nn.Module) -> None:
    """Put a checkpoint's weights and memory into a network, all of them or, on an error, nothing.

    Raises:
        ValueError: naming the keys that are missing, unexpected or of another shape.
    """
    found, wanted = content["model"], model.state_dict()
    problems = [
        *(f"missing {key}" for key in wanted if key not in found),
        *(f"unexpected {key}" for key in found if key not in wanted),
        *(
            f"{key} is {list(found[key].shape)}, expected {list(wanted[key].shape)}"
            for key in wanted
            if key in found and found[key].shape != wanted[key].shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(
            f"checkpoint {path}: does not fit the network: {', '.join(problems[:4])}{more}"
        )
    model.load_state_dict(found)
