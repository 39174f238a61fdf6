"""Checkpoints: what is in them, and how one becomes a network.

Written beside and renamed, so that a file of the right name is always whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pinmem.data import Classes
from pinmem.models import Segmenter, build_model
from pinmem.models.official import from_official, official_tensors
from pinmem.models.state import mismatch, read_file
from pinmem.writing import write_beside

FORMAT = 1
HEADER = "pinmem"


@dataclass(frozen=True)
class Weights:
    """A network in a file: the tensors of its state dict, and what it takes to build it.

    config: the run's options, of which `network_of` says what it needs; of a published checkpoint
        these alone, with its `epoch` and `mean_iu`.
    """

    state: dict[str, Tensor]
    config: dict[str, Any]
    classes: Classes


def network_of(config: Mapping[str, Any], weights: str | None = None) -> Segmenter:
    """Build the network that a run's options, or those in a checkpoint, describe.

    Args:
        config: with `model`, `num_classes`, `mode` (or `memory`, whether there is one),
            `output_stride`, `memory_momentum`, `memory_temperature`.
        weights: of the backbone, as in `build_model`.
    """
    return build_model(
        config["model"],
        num_classes=config["num_classes"],
        memory=config["memory"] if "memory" in config else config["mode"].startswith("memory"),
        weights=weights,
        output_stride=config["output_stride"],
        momentum=config["memory_momentum"],
        temperature=config["memory_temperature"],
    )


def read_weights(
    path: str | Path,
    *,
    model: str | None = None,
    output_stride: int | None = None,
    device: torch.device | str = "cpu",
) -> Weights:
    """Read a network's weights from any file that holds some; nothing in it is run.

    Args:
        path: a checkpoint of the trainer or of `python -m pinmem.convert`, .pt or .safetensors; or
            one of the paper's published code.
        model: the network in a published checkpoint, which does not say; in others it has to agree.
        output_stride: likewise; the published one where it is None.
        device: where the tensors go.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no network, another one, or weights that are not finite.
    """
    content = read_file(path, device)
    header = content.get("__metadata__", {}).get(HEADER) if isinstance(content, dict) else None
    if header is not None:
        del content["__metadata__"]
        content = {**json.loads(header), "model": content}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return _published(path, content, model, output_stride)
    config = content["config"]
    for option, value in (("model", model), ("output_stride", output_stride)):
        if value not in (None, config[option]):
            raise ValueError(
                f"{option}: got {value!r}, but checkpoint {path} has {config[option]!r}"
            )
    named = content.get("classes")
    classes = Classes.of_state(named) if named else Classes.numbered(config["num_classes"])
    return Weights(content["model"], config, classes)


def _published(
    path: str | Path, content: Any, model: str | None, output_stride: int | None
) -> Weights:
    """The weights of a checkpoint of the published code."""
    label = f"checkpoint {path}"
    if model is None:
        raise ValueError(
            f"{label}: not written by pinmem; if it is a published one, --model names its network"
        )
    found, _ = official_tensors(content, label)
    last = found.get("final2.0.bias")
    if not isinstance(last, Tensor):
        raise ValueError(f"{label}: no published checkpoint: it has no final2.0.bias")
    config: dict[str, Any] = {
        "model": model,
        "num_classes": len(last),
        "memory": any(name.startswith("memory") for name in found),
        "output_stride": output_stride,
        "memory_momentum": 0.8,
        "memory_temperature": 1.0,
    }
    with torch.device("meta"):
        network = network_of(config)
    state, info = from_official(content, network, label)
    if config["memory"] and "memory.memory" not in state:
        raise ValueError(f"{label}: holds a network with a memory, but not the memory itself")
    config |= {"epoch": info.epoch, "mean_iu": info.mean_iu}
    return Weights(state, config, Classes.numbered(len(last)))


def open_trained(
    path: str | Path,
    device: torch.device | str = "cpu",
    model: str | None = None,
    output_stride: int | None = None,
) -> tuple[Segmenter, Classes]:
    """The network of a checkpoint, in evaluation mode, and the classes it was trained on.

    Args, errors: see `read_weights`.
    """
    weights = read_weights(path, model=model, output_stride=output_stride, device=device)
    network = network_of(weights.config)
    _load(path, weights.state, network)
    network = network.to(device).to(memory_format=torch.channels_last)
    return network.eval(), weights.classes


def load_trained(
    path: str | Path,
    device: torch.device | str = "cpu",
    model: str | None = None,
    output_stride: int | None = None,
) -> Segmenter:
    """The network of a checkpoint, in evaluation mode; see `open_trained`."""
    return open_trained(path, device, model, output_stride)[0]


def start_from(path: str | Path, network: Segmenter, model: str, classes: Classes) -> bool:
    """Put a file's weights into a network that is to be trained further.

    Args:
        path: see `read_weights`.
        network: of the same architecture and classes. It may have a memory where the file has
            none; that is then left as it is.
        model: its name.
        classes: that the file has to have, where it names its own.

    Returns:
        Whether the file had a memory.

    Raises:
        FileNotFoundError, ValueError: see `read_weights`; or the network or its classes are others.
    """
    weights = read_weights(path, model=model)
    state, names = weights.state, weights.classes.names
    if names not in (classes.names, tuple(map(str, range(len(names))))):
        raise ValueError(
            f"start: {path} has the classes {', '.join(names)}, expected {', '.join(classes.names)}"
        )
    had_memory = "memory.memory" in state
    own = network.state_dict()
    if not had_memory:
        state = {k: v for k, v in own.items() if k.startswith("memory.")} | state
    _load(path, state, network)
    return had_memory


def load_model(path: str | Path, content: dict[str, Any], model: nn.Module) -> None:
    """Put a checkpoint's weights and memory into a network, all of them or, on an error, nothing.

    Raises:
        ValueError: naming what is missing, unexpected, of another shape or not finite.
    """
    _load(path, content["model"], model)


def _load(path: str | Path, state: dict[str, Tensor], model: nn.Module) -> None:
    if problems := mismatch(state, model.state_dict()):
        raise ValueError(f"checkpoint {path}: does not fit the network: {problems}")
    model.load_state_dict(state)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that ``path`` holds the old one or the new one, never a part.

    Raises:
        OSError: the disk is full or not writable; the old file is as it was.
    """
    write_beside(
        path,
        lambda file: torch.save({"format": FORMAT, **content}, file),
        "checkpoint",
        durable=True,
    )


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read all of a checkpoint of the trainer.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not one of ours, or damaged.
    """
    content = read_file(path, device)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path}: not written by pinmem's trainer")
    return content
