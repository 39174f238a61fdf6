"""Convert a checkpoint: ``python -m pinmem.convert --checkpoint FILE --out FILE --format FORMAT``.

From the trainer's, the published code's or a safetensors file to any of them. Weights, memory and
configuration go along, bit for bit; an optimiser's state does not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as safetensors_bytes

from pinmem.checkpoint import FORMAT, HEADER, Weights, network_of, read_weights, save
from pinmem.models.official import official_name
from pinmem.models.state import mismatch
from pinmem.program import parse, run
from pinmem.writing import write_beside

Format = Literal["pinmem", "safetensors", "published"]


@dataclass
class ConvertConfig:
    """Convert a checkpoint.

    Args:
        checkpoint: a checkpoint of ``python -m pinmem.train`` or of this program, or a published
            one.
        out: the file to write.
        format: ``pinmem`` (.pt, what the trainer writes); ``safetensors``, with the configuration
            in its header; or ``published``, as the paper's code reads it.
        model: name of the network in a published checkpoint, which does not say.
        output_stride: likewise; the published one if absent.
        overwrite: replace the file if it exists.
    """

    checkpoint: str
    out: str
    format: Format
    model: str | None = None
    output_stride: int | None = None
    overwrite: bool = False


def write(path: Path, weights: Weights, form: Format) -> None:
    """Write weights in one of the formats.

    Raises:
        ValueError: the network is none of the published ones, or the name does not suit the format.
        OSError: the disk is full or not writable; an old file is as it was.
    """
    if (path.suffix == ".safetensors") != (form == "safetensors"):
        raise ValueError(
            f"out: got {str(path)!r}, expected a name with .safetensors for that format alone"
        )
    if form == "published":
        content = _published(weights)
        write_beside(path, lambda file: torch.save(content, file), "checkpoint", durable=True)
        return
    about = {"config": weights.config, "classes": weights.classes.state()}
    if form == "pinmem":
        save(path, {"model": weights.state, **about})
        return
    tensors = {name: tensor.contiguous() for name, tensor in weights.state.items()}
    header = {"format": "pt", HEADER: json.dumps({"format": FORMAT, **about})}
    data = safetensors_bytes(tensors, header)
    write_beside(path, lambda file: file.write(data), "checkpoint", durable=True)


def _published(weights: Weights) -> dict[str, Any]:
    state = {official_name(name): tensor for name, tensor in weights.state.items()}
    memory = state.pop("memory", None)
    content = {
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "epoch": weights.config.get("epoch") or 0,
        "mean_iu": weights.config.get("mean_iu") or 0.0,
    }
    return content if memory is None else {**content, "memory": memory}


def main() -> None:
    """Run the program."""
    config = parse(ConvertConfig, program="python -m pinmem.convert")
    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise ValueError(f"out: {config.out} exists; --overwrite true replaces it")
    weights = read_weights(
        config.checkpoint, model=config.model, output_stride=config.output_stride
    )
    with torch.device("meta"):
        network = network_of(weights.config)
    if problems := mismatch(weights.state, network.state_dict()):
        raise ValueError(f"checkpoint {config.checkpoint}: does not fit its network: {problems}")
    write(out, weights, config.format)
    memory = "a memory" if network.memory is not None else "no memory"
    print(
        f"{out}: {weights.config['model']}, {network.num_classes} classes, {memory}, "
        f"{sum(t.numel() for t in weights.state.values()):,} numbers"
    )


if __name__ == "__main__":
    run(main)
