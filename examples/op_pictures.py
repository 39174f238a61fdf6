"""Draw what each op does to a street scene: ``python -m examples.op_pictures``.

Features are random projections of small patches, and the memory is their class means over some
other scenes: no network is trained, and everything shown was computed by the ops.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from examples.streets import render_street
from pinmem import ops
from pinmem.data.cityscapes_classes import CLASS_NAMES
from pinmem.data.classes import colorize

FOLDER = Path("docs/images/ops")
CHANNELS, STRIDE, WIDTH, HEIGHT = 64, 8, 512, 256


def scene(seed: int) -> tuple[np.ndarray, Tensor, Tensor]:
    """A picture [H,W,3], its labels [1,H,W] and features [1,C,H/8,W/8] of its patches."""
    picture, target = render_street("gtav", [seed], WIDTH, HEIGHT)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    place = torch.linspace(-1, 1, HEIGHT)[None, None, :, None].expand(1, 1, HEIGHT, WIDTH)
    weight = torch.randn(CHANNELS, 4, 12, 12, generator=generator) / 12
    features = F.conv2d(torch.cat([pixels, 2 * place], 1), weight, stride=STRIDE, padding=2)
    return picture, torch.from_numpy(target)[None], features.tanh()


def main() -> None:
    """Write the pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    memory, first = torch.zeros(19, CHANNELS), torch.Tensor()
    for seed in range(4):
        _, labels, features = scene(seed)
        sums, mass = ops.class_sums(features, labels, num_classes=19)
        weight, bias = torch.zeros(19, CHANNELS), torch.zeros(19)
        memory = ops.memory_update(memory, sums, mass, weight, bias, momentum=0.5 if seed else 0.0)[
            0
        ]
        first = memory if seed == 0 else first
    picture, labels, features = scene(9)
    _, scores = ops.memory_read(features, memory)
    logits = 20 * scores
    pixels = [picture, colorize(labels[0].numpy())]

    shown = [CLASS_NAMES.index(name) for name in ("road", "sky", "vegetation")]
    _save(
        "memory_read", [*pixels[:1], *scores[0, shown]], ["image", *(CLASS_NAMES[k] for k in shown)]
    )

    sums, _ = ops.class_sums(features, labels, num_classes=19)
    means = F.normalize(sums, dim=1)
    road = (labels == shown[0]).float()[None]
    share = F.interpolate(road, features.shape[2:], mode="bilinear", align_corners=True)[0, 0]
    titles = ["labels", "weight of road", "cosines of the class means"]
    _save("class_sums", [pixels[1], share, means @ means.T], titles)

    titles = ["cosines of the slots after one write", "after four"]
    _save("memory_update", [first @ first.T, memory @ memory.T], titles)

    leaf = logits.clone().requires_grad_()
    ops.upsampled_cross_entropy(leaf, labels).backward()
    assert leaf.grad is not None
    large = F.interpolate(logits, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)
    decided = colorize(large[0].argmax(0).byte().numpy())
    titles = ["labels", "upsampled logits", "gradient at the logits"]
    _save("upsampled_cross_entropy", [pixels[1], decided, leaf.grad[0].norm(dim=0)], titles)

    counts = ops.upsampled_confusion(logits, labels).double()
    counts = counts / counts.sum(1, keepdim=True).clamp_min(1)
    titles = ["labels", "decided", "confusion, rows: truth"]
    _save("upsampled_confusion", [pixels[1], decided, counts], titles)


def _save(name: str, panels: list[np.ndarray | Tensor], titles: list[str]) -> None:
    figure = Figure(figsize=(3.1 * len(panels), 2.1), layout="constrained")
    for axes, panel, title in zip(figure.subplots(1, len(panels)), panels, titles, strict=True):
        axes.imshow(panel)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    figure.savefig(FOLDER / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
