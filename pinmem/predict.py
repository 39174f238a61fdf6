"""Segment pictures: ``python -m pinmem.predict --checkpoint FILE --images FOLDER --out FOLDER``."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pinmem.checkpoint import open_trained
from pinmem.data import CITYSCAPES, Classes, DataError, colorize, eval_transform
from pinmem.data.decode import read_image
from pinmem.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from pinmem.evaluate import pick_device
from pinmem.models import Segmenter
from pinmem.passes import evaluating
from pinmem.program import parse, run

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@torch.no_grad()
def predict(model: Segmenter, image: Tensor) -> Tensor:
    """The class of every pixel, uint8 [H,W], of an image [3,H,W], normalised."""
    device = next(model.parameters()).device
    with evaluating(model):
        return model.predict(image[None].to(device)).argmax(1)[0].to("cpu", torch.uint8)


def overlay(
    image: Tensor, labels: Tensor, opacity: float = 0.5, classes: Classes = CITYSCAPES
) -> Tensor:
    """Class colours over an image; uint8 [3,H,W] and [H,W] to uint8 [3,H,W]."""
    painted = np.ascontiguousarray(colorize(labels.numpy(), classes))
    colours = torch.from_numpy(painted).permute(2, 0, 1)
    return (image.float() * (1 - opacity) + colours.float() * opacity).round().to(torch.uint8)


def overlay_row(
    model: Segmenter, image: Tensor, labels: Tensor, classes: Classes = CITYSCAPES
) -> Tensor:
    """Image, truth and prediction side by side, uint8 [3,H,3W]; the image comes normalised."""
    pixels = denormalize(image)
    labels = labels.as_subclass(Tensor)
    guess = overlay(pixels, predict(model, image), classes=classes)
    return torch.cat([pixels, overlay(pixels, labels, classes=classes), guess], dim=2)


def denormalize(image: Tensor) -> Tensor:
    """A normalised image [3,H,W] back to uint8."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((image.cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def write_png(path: Path, picture: Tensor) -> None:
    """Write uint8 [3,H,W] or [1,H,W] as a PNG, beside and renamed."""
    beside = path.with_name(f".{path.name}")
    pixels = picture[0] if picture.shape[0] == 1 else picture.permute(1, 2, 0)
    Image.fromarray(pixels.contiguous().numpy()).save(beside, format="PNG")
    beside.replace(path)


@dataclass
class PredictConfig:
    """Segment every picture of a folder.

    Args:
        checkpoint: written by ``python -m pinmem.train`` or ``pinmem.convert``, or a published one.
        images: a folder of pictures, or one picture.
        out: where ``NAME_labels.png`` (class indices) and ``NAME_overlay.png`` go; where pictures
            differ in their suffix alone, NAME keeps it.
        model: name of the network in a published checkpoint, which does not say.
        output_stride: likewise; the published one if absent.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    checkpoint: str
    images: str
    out: str
    model: str | None = None
    output_stride: int | None = None
    device: str = "auto"


def main() -> None:
    """Run the program."""
    config = parse(PredictConfig, program="python -m pinmem.predict")
    source = Path(config.images)
    if not source.exists():
        raise ValueError(f"images: no such file or folder: {str(source)!r}")
    there = sorted(source.iterdir()) if source.is_dir() else [source]
    found = [path for path in there if path.is_file() and (path == source or _is_picture(path))]
    if not found:
        raise ValueError(f"images: no picture in {str(source)!r} ({', '.join(PICTURES)})")
    model, classes = open_trained(
        config.checkpoint, pick_device(config.device), config.model, config.output_stride
    )
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    stems = Counter(path.stem for path in found)
    failures = []
    for path in found:
        try:
            pixels = read_image(path).as_subclass(Tensor)
        except DataError as error:
            failures.append(str(error))
            continue
        image, _ = eval_transform()(pixels, torch.zeros(pixels.shape[1:], dtype=torch.uint8))
        labels = predict(model, image)
        name = path.stem if stems[path.stem] == 1 else path.name
        write_png(out / f"{name}_labels.png", labels[None])
        write_png(out / f"{name}_overlay.png", overlay(pixels, labels, classes=classes))
        print(out / f"{name}_overlay.png")
    if len(there) > len(found):
        print(
            f"left out: {len(there) - len(found)} entries that are hidden, folders or no pictures"
        )
    if failures:
        print(f"error: {len(failures)} of {len(found)} pictures failed:", file=sys.stderr)
        print("\n".join(failures), file=sys.stderr)
        raise SystemExit(1)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")


if __name__ == "__main__":
    run(main)
