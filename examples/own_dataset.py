"""Data of your own, from Python: ``python -m examples.own_dataset``.

A page of YAML says where images and labels lie and what the labels mean. Here a folder with two
pictures is written first; the description, and everything after it, is what you would write.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pinmem.data import DomainDataset, build_dataset
from pinmem.data.transforms import Geometry, Photometric

DESCRIPTION = """
root: .
images: photos/*.jpg
labels: masks/*.png
classes: {soil: [120, 90, 60], crop: [60, 160, 60], weed: [220, 20, 60]}
encoding: {10: soil, 20: crop, 30: weed}
ignore: 0
"""


def main() -> torch.Tensor:
    """Print what a batch holds, and return the share of every class in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(2):
            write(folder, number)
        description = folder / "field.yaml"
        description.write_text(DESCRIPTION)

        # Crops of 64 x 96 of the images at random scales, uint8; jitter comes on the device.
        field = build_dataset(str(description), "", "train", Geometry((64, 96), scale=(0.5, 1.0)))
        draws = DomainDataset([field, field], 8, seed=0)  # two views: two domains to meta-learn on
        images, labels = next(iter(DataLoader(draws, batch_size=4)))
    batch = Photometric()(images[:, 0])
    print(f"images {list(images.shape)}, normalised {batch.mean():+.2f} ± {batch.std():.2f}")
    counts = torch.bincount(labels.flatten(), minlength=256)[: len(field.classes)]
    for label, share in zip(field.classes.names, counts / counts.sum(), strict=True):
        print(f"{label}: {100 * share:.0f}% of the labelled pixels")
    return counts / counts.sum()


def write(folder: Path, number: int) -> None:
    """A picture of rows of crop on soil with a weed between them, and its raw labels."""
    labels = np.full((128, 192), 10, dtype=np.uint8)
    labels[:, 8 * number :: 48] = labels[:, 8 * number + 1 :: 48] = 20
    labels[60:76, 90:110] = 30
    labels[:4] = 0
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[[10, 20, 30]] = (120, 90, 60), (60, 160, 60), (220, 20, 60)
    for kind, pixels, ending in (("photos", colors[labels], "jpg"), ("masks", labels, "png")):
        (folder / kind).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{number}.{ending}")


if __name__ == "__main__":
    main()
