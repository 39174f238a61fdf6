"""class_sums: sums of normalised features per class, under soft labels (docs/math.md 3).

Bytes: forward reads the features and four labels a feature pixel, and writes the sums; backward
reads features, labels and the sums' cotangent and writes a gradient; the double backward also
reads a direction and writes a cotangent of the sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import Inputs, Source
from benchmarks.plan import BACKWARD, FORWARD, SECOND, Size
from pinmem import ops, reference

PASSES = (BACKWARD, FORWARD, SECOND)
OURS = ops.class_sums
PLAIN = reference.class_sums


def EAGER(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:  # noqa: N802
    """The reference without its int64 one-hot labels: a quarter faster."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    classes = torch.arange(num_classes, dtype=labels.dtype, device=labels.device)
    one_hot = (labels[:, None] == classes.view(1, -1, 1, 1)).to(dtype)
    soft = F.interpolate(one_hot, features.shape[2:], mode="bilinear", align_corners=True)
    q = F.normalize(features, dim=1).to(dtype)
    return torch.einsum("bkhw,bchw->kc", soft, q), soft.sum(dim=(0, 2, 3))


def _scattered(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Soft labels of the small map alone: four labels a pixel, added where their class is."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    rows, columns = (
        _taps(n, m, dtype, labels.device)
        for n, m in zip(features.shape[2:], labels.shape[1:], strict=True)
    )
    # [B,h,2,w,2] to [B h w, 4]; what is no class goes to a last column.
    taps = labels[:, rows[0][:, :, None, None], columns[0]].transpose(2, 3).reshape(-1, 4).long()
    weights = (rows[1][:, None, :, None] * columns[1][:, None]).reshape(-1, 4)
    weights = weights.repeat(features.shape[0], 1)
    soft = weights.new_zeros(len(taps), num_classes + 1)
    soft = soft.scatter_add(1, taps.clamp(max=num_classes), weights)[:, :num_classes]
    q = F.normalize(features, dim=1).to(dtype).flatten(2)  # [B,C,hw]
    sums = q @ soft.view(len(q), -1, num_classes)
    return sums.sum(dim=0).T, soft.sum(dim=0)


def _taps(n: int, m: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of ``n`` outputs over ``m`` inputs, corners aligned: the two inputs [n,2] and weights."""
    at = torch.arange(n, device=device) * (m - 1)
    step = max(n - 1, 1)
    first, share = at // step, (at % step).to(dtype) / step
    return (
        torch.stack([first, (first + 1).clamp(max=m - 1)], dim=1),
        torch.stack([1 - share, share], dim=1),
    )


MORE = {"scatter_add": _scattered}


def make(size: Size, dtype: torch.dtype, source: Source, variant: str) -> Inputs:
    features = source.normal(size.batch, size.channels, *size.at(size.output_stride), dtype=dtype)
    return Inputs([features], {"labels": source.labels(size), "num_classes": size.classes})


def moved(size: Size, itemsize: int, what: str, variant: str) -> int:
    pixels = size.pixels(size.output_stride)
    features, labels = itemsize * pixels * size.channels, 4 * pixels
    sums = 4 * size.classes * size.channels
    forward = features + labels + sums
    if what == FORWARD:
        return forward
    backward = forward + features
    return forward + backward + (backward + features + sums if what == SECOND else 0)


def operations(size: Size, what: str, variant: str) -> int:
    # A channel of a pixel: square and sum 2, scale 1, add to a class 2; twice that backwards.
    per_channel = {FORWARD: 5, BACKWARD: 13, SECOND: 29}[what]
    return per_channel * size.pixels(size.output_stride) * size.channels


def test_speed(benchmark, call) -> None:
    benchmark(call)
