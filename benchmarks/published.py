"""The published memory, reimplemented: the baseline of the memory module.

The same operations in the same order as the code released with the paper: feature maps copied to
channels-last and back, full-size scores and one-hot labels in int64, a softmax over all pixels
that nothing uses, a loop over the classes that asks the host about each.
tests/test_benchmarks_published.py holds it to the numbers of the release, to 1e-9.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pinmem.memory import ClassMemory

IGNORED = 255


class Read(NamedTuple):
    """Features [B,C,h,w], both attentions [B,h,w,K] and the reading loss."""

    features: Tensor
    over_pixels: Tensor
    over_slots: Tensor
    loss: Tensor


class Written(NamedTuple):
    """The new memory [K,C] and the writing losses."""

    slots: Tensor
    divergence: Tensor
    classification: Tensor


def read(module: ClassMemory, slots: Tensor, query: Tensor, labels: Tensor) -> Read:
    """Read ``slots`` with the weights of ``module``; labels int64 [B,H,W]."""
    batch, channels, height, width = query.shape
    classes = slots.shape[0]
    pixels = F.normalize(query, dim=1).permute(0, 2, 3, 1).contiguous()
    scores = torch.matmul(pixels, slots.T)
    maps = (scores / module.temperature).permute(0, 3, 1, 2).contiguous()
    large = F.interpolate(maps, labels.shape[1:], mode="bilinear", align_corners=True)
    loss = F.cross_entropy(large, labels, ignore_index=IGNORED)
    scores = scores.view(-1, classes)
    over_pixels, over_slots = scores.softmax(dim=0), scores.softmax(dim=1)
    context = torch.matmul(over_slots, slots)
    readout = torch.cat([pixels.view(-1, channels), context], dim=1)
    readout = readout.view(batch, height, width, 2 * channels).permute(0, 3, 1, 2).contiguous()
    features = F.relu(module.project_norm(module.project(readout)), inplace=True)
    shape = (batch, height, width, classes)
    return Read(features, over_pixels.view(shape), over_slots.view(shape), loss)


def write(module: ClassMemory, slots: Tensor, query: Tensor, labels: Tensor) -> Written:
    """Write a query [B,C,h,w] labelled int64 [B,H,W] into ``slots``, which get no gradient."""
    classes = slots.shape[0]
    features = F.relu(query + module.write_norm(module.write_conv(query)), inplace=True)
    features = F.normalize(features, dim=1).flatten(2)
    labels = labels.clone()
    labels[labels == IGNORED] = classes
    one_hot = F.one_hot(labels, classes + 1)
    dtype = torch.promote_types(features.dtype, torch.float32)
    # One expression, as in the release: all three copies of the labels are alive in it.
    soft = F.interpolate(
        one_hot.permute(0, 3, 1, 2).contiguous().to(dtype),
        query.shape[2:],
        mode="bilinear",
        align_corners=True,
    )
    soft = soft.permute(0, 2, 3, 1).contiguous().flatten(1, 2)
    mass = soft.sum(dim=1).sum(dim=0)
    sums = torch.matmul(features, soft).sum(dim=0).T
    new = slots.detach().clone()
    for slot in range(classes):
        if mass[slot] != 0:
            mean = sums[slot] / mass[slot]
            new[slot] = module.momentum * slots[slot] + (1 - module.momentum) * mean
    new = F.normalize(new, dim=1)
    similarity = torch.matmul(new, new.T)
    similarity[similarity < 0] = 0
    pairs = classes * (classes - 1)
    divergence = (similarity.sum() - similarity.trace()) / pairs
    classification = F.cross_entropy(
        module.classifier(new), torch.arange(classes, device=new.device)
    )
    return Written(new, divergence, classification)
