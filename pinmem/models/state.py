"""Weights in files: read without running what is in them, and compared with a network."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_SHOWN = 5


def read_file(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Any:
    """The content of a file of weights, of tensors and plain Python values alone.

    Args:
        path: a file that ``torch.save`` wrote, or ``NAME.safetensors``: then a dict of its tensors
            and, under ``"__metadata__"``, its header's texts.
        device: where the tensors go.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or holds anything else; nothing of it is run.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    try:
        if path.endswith(".safetensors"):
            with safe_open(path, "pt", device=str(device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return {**tensors, "__metadata__": file.metadata() or {}}
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"checkpoint {path}: not readable safely: {_line(error)}") from error
    except SafetensorError as error:
        raise ValueError(f"checkpoint {path}: not a safetensors file: {_line(error)}") from error


def _numpy_scalars() -> list[Any]:
    """The published mean_iu is a NumPy scalar, pickled under NumPy 1's module name."""
    scalar = np.float64(0).__reduce__()[0]
    return [
        np.dtype,
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def mismatch(found: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str:
    """Say why tensors do not fit a network, or must not be loaded; empty where they may."""
    other_shape = [
        f"{name} ({_shape(found[name])}, expected {_shape(tensor)})"
        for name, tensor in wanted.items()
        if name in found and _shape(found[name]) != _shape(tensor)
    ]
    not_finite = [
        name
        for name, value in found.items()
        if isinstance(value, Tensor) and not value.is_meta and not value.isfinite().all()
    ]
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}" + (", ..." * (len(names) > _SHOWN))
        for kind, names in (
            ("missing", [name for name in wanted if name not in found]),
            ("unexpected", [name for name in found if name not in wanted]),
            ("of another shape", other_shape),
            ("not finite", not_finite),
        )
        if names
    )


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
