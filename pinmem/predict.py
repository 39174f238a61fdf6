"""Segment pictures: ``python -m pinmem.predict --checkpoint FILE --images FOLDER --out FOLDER``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pinmem.config import parse, run
from pinmem.data import colorize, eval_transform
from pinmem.data.decode import read_image
from pinmem.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from pinmem.evaluate import load_trained, pick_device
from pinmem.meta import evaluating
from pinmem.models import Segmenter

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@torch.no_grad()
def predict(model: Segmenter, image: Tensor) -> Tensor:
    """The class of every pixel, uint8 [H,W], of an image [3,H,W], normalised."""
    device = next(model.parameters()).device
    with evaluating(model):
        return model.predict(image[None].to(device)).argmax(1)[0].to("cpu", torch.uint8)


def overlay(image: Tensor, labels: Tensor, opacity: float = 0.5) -> Tensor:
    """Class colours over an image; uint8 [3,H,W] and [H,W] to uint8 [3,H,W]."""
    colours = torch.from_numpy(np.ascontiguousarray(colorize(labels.numpy()))).permute(2, 0, 1)
    return (image.float() * (1 - opacity) + colours.float() * opacity).round().to(torch.uint8)


def overlay_row(model: Segmenter, image: Tensor, labels: Tensor) -> Tensor:
    """Image, truth and prediction side by side, uint8 [3,H,3W]; the image comes normalised."""
    pixels = denormalize(image)
    labels = labels.as_subclass(Tensor)
    guess = overlay(pixels, predict(model, image))
    return torch.cat([pixels, overlay(pixels, labels), guess], dim=2)


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
        checkpoint: written by ``python -m pinmem.train``.
        images: a folder of pictures, or one picture.
        out: where ``NAME_labels.png`` (class indices) and ``NAME_overlay.png`` go.
        device: ``auto``, ``cpu``, ``cuda``, ...
    """

    checkpoint: str
    images: str
    out: str
    device: str = "auto"


def main() -> None:
    """Run the program."""
    config = parse(PredictConfig, program="python -m pinmem.predict")
    source = Path(config.images)
    found = (
        [source]
        if source.is_file()
        else sorted(path for path in source.glob("*") if path.suffix.lower() in PICTURES)
    )
    if not found:
        raise ValueError(f"images: no picture in {str(source)!r} ({', '.join(PICTURES)})")
    model = load_trained(config.checkpoint, pick_device(config.device))
    normalise = eval_transform()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for path in found:
        pixels = read_image(path).as_subclass(Tensor)
        image, _ = normalise(pixels, torch.zeros(pixels.shape[1:], dtype=torch.uint8))
        labels = predict(model, image)
        write_png(out / f"{path.stem}_labels.png", labels[None])
        write_png(out / f"{path.stem}_overlay.png", overlay(pixels, labels))
        print(out / f"{path.stem}_overlay.png")


if __name__ == "__main__":
    run(main)
