"""Checkpoints of the paper's published code: their names, and loading them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .deeplab import Segmenter

__all__ = ["OfficialCheckpoint", "load_official", "official_name"]

# Our prefix and the official one. The official last convolution sits alone in a Sequential.
_PREFIXES = (
    ("backbone.conv1.", "layer0.0."),
    ("backbone.bn1.", "layer0.1."),
    ("backbone.layer", "layer"),
    ("aspp.pooling.", "aspp.img_conv."),
    ("aspp.branches.", "aspp.features."),
    ("aspp.dilated.", "aspp.conv2d_list."),
    ("bottleneck.", "bot_aspp."),
    ("low_level.", "bot_fine."),
    ("decoder.", "final1."),
    ("classifier.", "final2.0."),
    ("aux_head.", "dsn."),
    ("memory.project.", "memory.output.0."),
    ("memory.project_norm.", "memory.output.1."),
    ("memory.write_conv.", "memory.writenet.writefeat.0."),
    ("memory.write_norm.", "memory.writenet.writefeat.1."),
    ("memory.classifier.", "memory.clsfier."),
)
_MEMORY = "memory.memory"
_SHOWN = 5


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What a published checkpoint says of itself; None where it does not say."""

    epoch: int | None
    mean_iu: float | None


def official_name(name: str) -> str:
    """Translate a name of `Segmenter.state_dict()` into the published one (without "module.").

    The class memory "memory.memory" becomes "memory": published checkpoints keep it beside the
    state dict, under that key.

    Raises:
        ValueError: where the published networks have nothing of that name.
    """
    if name == _MEMORY:
        return "memory"
    for ours, official in _PREFIXES:
        if name.startswith(ours):
            return official + name.removeprefix(ours)
    raise ValueError(f"name: got {name!r}, which has no counterpart in the published networks")


def load_official(
    source: str | os.PathLike[str] | Mapping[str, Any], model: Segmenter
) -> OfficialCheckpoint:
    """Load a checkpoint of the published code into `model`, all of it or, on an error, nothing.

    Args:
        source: the path of a published .pth; or its content, a dict of "state_dict" (names with or
            without "module."), "memory" [K,256] where the network has one, "epoch", "mean_iu" and
            others, which are passed over; or a bare state dict, in which case the class memory,
            which is no part of it, stays as it is.
        model: as `build_model` makes it, of the same architecture, classes and use of memory.

    Returns:
        The epoch and the mean IoU (a fraction of 1) that the checkpoint records.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file that is no checkpoint, and for entries that are missing, unexpected
            or of another shape, naming them.
    """
    if isinstance(source, (str, os.PathLike)):
        label, checkpoint = os.fspath(source), _read(source)
    else:
        label, checkpoint = "checkpoint", source
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{label}: holds a {type(checkpoint).__name__}, expected a dict")

    bare = "state_dict" not in checkpoint
    entries = checkpoint if bare else checkpoint["state_dict"]
    if not isinstance(entries, Mapping):
        raise ValueError(
            f"{label}: state_dict is a {type(entries).__name__}, expected a dict of tensors"
        )
    found = {str(key).removeprefix("module."): value for key, value in entries.items()}
    wanted = {official_name(key): (key, value) for key, value in model.state_dict().items()}
    if bare:
        wanted.pop("memory", None)
    elif checkpoint.get("memory") is not None:
        found["memory"] = checkpoint["memory"]
    if problems := _mismatch(found, {name: value for name, (_, value) in wanted.items()}):
        raise ValueError(f"{label}: does not fit the model: {problems}")

    model.load_state_dict({key: found[name] for name, (key, _) in wanted.items()}, strict=False)
    epoch, mean_iu = (None, None) if bare else (checkpoint.get("epoch"), checkpoint.get("mean_iu"))
    return OfficialCheckpoint(
        epoch=None if epoch is None else int(epoch),
        mean_iu=None if mean_iu is None else float(mean_iu),
    )


def _read(path: str | os.PathLike[str]) -> Any:
    # The published mean_iu is a NumPy scalar, pickled under NumPy 1's module name.
    scalar = np.float64(0).__reduce__()[0]
    numpy_scalars: list[Any] = [
        np.dtype,
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]
    try:
        with torch.serialization.safe_globals(numpy_scalars):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{os.fspath(path)}: no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{os.fspath(path)}: not a checkpoint that can be read safely"
            + (f" ({reason[0]})" if reason else "")
        ) from error


def _mismatch(found: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str:
    """Say what differs between a checkpoint and a model; empty where nothing does."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    other_shape = [
        f"{name} ({_shape(found[name])}, expected {_shape(tensor)})"
        for name, tensor in wanted.items()
        if name in found and _shape(found[name]) != _shape(tensor)
    ]
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}" + (", ..." * (len(names) > _SHOWN))
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", other_shape),
        )
        if names
    ]
    has_weights, wants_weights = (
        any(name.startswith("memory.") for name in names) for names in (found, wanted)
    )
    if wants_weights and not has_weights:
        parts.append("a checkpoint without memory needs build_model(..., memory=False)")
    if has_weights and not wants_weights:
        parts.append("a checkpoint with memory needs build_model(..., memory=True)")
    return "; ".join(parts)


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
