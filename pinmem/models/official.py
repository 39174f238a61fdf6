"""Checkpoints of the paper's published code: their names, and loading them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .state import mismatch, read_file

__all__ = ["OfficialCheckpoint", "from_official", "load_official", "official_name"]

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
    source: str | os.PathLike[str] | Mapping[str, Any], model: nn.Module
) -> OfficialCheckpoint:
    """Load a checkpoint of the published code into `model`, all of it or, on an error, nothing.

    Args:
        source: see `from_official`.
        model: as `build_model` makes it, of the same architecture, classes and use of memory.

    Returns:
        The epoch and the mean IoU (a fraction of 1) that the checkpoint records.

    Raises:
        FileNotFoundError, ValueError: see `from_official`.
    """
    state, info = from_official(source, model)
    model.load_state_dict(state, strict=False)
    return info


def from_official(
    source: str | os.PathLike[str] | Mapping[str, Any],
    model: nn.Module,
    label: str = "checkpoint",
) -> tuple[dict[str, Tensor], OfficialCheckpoint]:
    """The tensors of a checkpoint of the published code, under the names of `model`.

    Args:
        source: the path of a published .pth; or its content, a dict of "state_dict" (names with or
            without "module."), "memory" [K,256] where the network has one, "epoch", "mean_iu" and
            others, which are passed over; or a bare state dict, which may lack the class memory.
        model: of the same architecture, classes and use of memory, on any device.
        label: what messages call it.

    Returns:
        The tensors, and the epoch and the mean IoU (a fraction of 1) that the checkpoint records.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file that is no checkpoint, and for entries that are missing, unexpected,
            of another shape or not finite, naming them.
    """
    if isinstance(source, (str, os.PathLike)):
        label, source = f"checkpoint {os.fspath(source)}", read_file(source)
    checkpoint: Any = source
    found, bare = official_tensors(checkpoint, label)
    wanted = {official_name(key): (key, value) for key, value in model.state_dict().items()}
    if bare and "memory" not in found:
        wanted.pop("memory", None)
    problems = mismatch(found, {name: value for name, (_, value) in wanted.items()})
    if problems:
        has_weights, wants_weights = (
            any(name.startswith("memory.") for name in names) for names in (found, wanted)
        )
        if wants_weights and not has_weights:
            problems += "; a checkpoint without memory needs build_model(..., memory=False)"
        if has_weights and not wants_weights:
            problems += "; a checkpoint with memory needs build_model(..., memory=True)"
        raise ValueError(f"{label}: does not fit the model: {problems}")
    epoch, mean_iu = (None, None) if bare else (checkpoint.get("epoch"), checkpoint.get("mean_iu"))
    return {key: found[name] for name, (key, _) in wanted.items()}, OfficialCheckpoint(
        epoch=None if epoch is None else int(epoch),
        mean_iu=None if mean_iu is None else float(mean_iu),
    )


def official_tensors(checkpoint: Any, label: str) -> tuple[dict[str, Any], bool]:
    """The entries of a published checkpoint without "module.", its memory among them.

    Returns:
        The entries, and whether they were a bare state dict.

    Raises:
        ValueError: it is no dict, or its state dict is none.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{label}: holds a {type(checkpoint).__name__}, expected a dict")
    bare = "state_dict" not in checkpoint
    entries = checkpoint if bare else checkpoint["state_dict"]
    if not isinstance(entries, Mapping):
        raise ValueError(
            f"{label}: state_dict is a {type(entries).__name__}, expected a dict of tensors"
        )
    found = {str(key).removeprefix("module."): value for key, value in entries.items()}
    found.pop("__metadata__", None)
    if not bare and checkpoint.get("memory") is not None:
        found["memory"] = checkpoint["memory"]
    return found, bare
