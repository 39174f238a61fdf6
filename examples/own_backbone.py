"""A backbone of your own under a class memory: ``python -m examples.own_backbone``.

Any module that maps images to three feature maps can be the backbone of a network with a memory;
here four convolutions, meta-trained on two domains that differ in their colours.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from pinmem import ClassMemory
from pinmem.meta import mldg_step
from pinmem.models import Segmenter
from pinmem.models.backbones import Backbone, BackboneFeatures
from pinmem.models.heads import ASPP
from pinmem.passes import Batch

CLASSES = 4


class FourConvolutions(Backbone):
    """Maps at 1/4, 1/8 and 1/16 of the image's size."""

    channels = (16, 32, 64)
    output_stride = 16

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 16, 16, 32, 64]
        self.stages_of_two = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Map images [B,3,H,W] to their features."""
        maps = []
        for stage in self.stages_of_two:
            images = stage(images)
            maps.append(images)
        return BackboneFeatures(maps[1], maps[2], maps[3])


def draw(tint: float) -> Batch:
    """Four pictures of coloured tiles, a colour per class, under a domain's tint."""
    labels = torch.randint(0, CLASSES, (4, 4, 4)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    palette = torch.linspace(-1, 1, 3 * CLASSES).view(CLASSES, 3).roll(1, 1)
    images = palette[labels].permute(0, 3, 1, 2) + tint + 0.1 * torch.randn(4, 3, 64, 64)
    return Batch(images, labels.to(torch.uint8))


def main(iterations: int = 20) -> tuple[float, float]:
    """Train, and return the outer segmentation loss of the first and the last iteration."""
    torch.manual_seed(0)
    backbone = FourConvolutions()
    head = ASPP(backbone.channels[-1], backbone.output_stride)
    network = Segmenter(backbone, head, CLASSES, memory=ClassMemory(CLASSES, 256)).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for iteration in range(iterations):
        domains = [draw(-0.3), draw(0.3)]
        inner, outer = domains if iteration % 2 else domains[::-1]
        _, found = mldg_step(network, optimizer, inner, outer, inner_lr=0.005)
        losses.append(float(found.segmentation))
    print(f"loss on the domain held out: {losses[0]:.2f}, after {iterations}: {losses[-1]:.2f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
