"""The memory ops in another network: ``python -m examples.prototypes``.

A classifier without weights, as in "Rethinking Semantic Segmentation: A Prototype View" (Zhou et
al., CVPR 2022), with one prototype per class: a pixel's logits are its cosines with the prototypes,
which are momentum averages of the features of their class and get no gradient.
"""

from __future__ import annotations

import torch
from torch import nn

from examples.own_backbone import CLASSES, draw
from pinmem import ops

CHANNELS, TEMPERATURE = 32, 0.1


def main(iterations: int = 30) -> float:
    """Train an encoder, and return the share of pixels that it gets right."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 5, 2, 2), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1)
    )
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    prototypes = torch.zeros(CLASSES, CHANNELS)
    unused = torch.zeros(CLASSES, CHANNELS), torch.zeros(CLASSES)  # of the slots' classifier
    for _ in range(iterations):
        images, labels = draw(0.0)
        features = encoder(images)  # [B,C,H/4,W/4]
        with torch.no_grad():
            sums, mass = ops.class_sums(features, labels, CLASSES)
            prototypes = ops.memory_update(prototypes, sums, mass, *unused, momentum=0.9)[0]
        _, scores = ops.memory_read(features, prototypes)
        loss = ops.upsampled_cross_entropy(scores, labels, temperature=TEMPERATURE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels = draw(0.0)
    with torch.no_grad():
        _, scores = ops.memory_read(encoder(images), prototypes)
        counts = ops.upsampled_confusion(scores, labels)
    right = float(counts.trace() / counts.sum())
    print(f"loss {loss.item():.2f}, pixels right: {100 * right:.0f}%")
    return right


if __name__ == "__main__":
    main()
