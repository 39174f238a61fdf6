"""Every op in plain PyTorch, a few lines each: the oracle of the tests, and the fallback.

Differentiable to any order by autograd, in the types of their arguments whether or not autocast is
on. :mod:`pinmem.ops` documents shapes, dtypes and errors; its functions check their arguments
before they come here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def own_types(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Without autocast, which would form the sums in half precision."""

    @functools.wraps(function)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        if device == "meta" or not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return wrapped


@own_types
def memory_read(
    query: Tensor, memory: Tensor, *, gumbel: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`pinmem.ops.memory_read` in plain PyTorch."""
    q = F.normalize(query, dim=1)
    memory = memory.to(query.dtype)
    scores = torch.einsum("bchw,kc->bkhw", q, memory)
    attention = (scores if gumbel is None else scores + gumbel).softmax(dim=1)
    context = torch.einsum("bkhw,kc->bchw", attention, memory)
    return torch.cat([q, context], dim=1), scores


@own_types
def memory_read_project(
    query: Tensor, memory: Tensor, weight: Tensor, *, gumbel: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`pinmem.ops.memory_read_project` in plain PyTorch."""
    readout, scores = memory_read(query, memory, gumbel=gumbel)
    return F.conv2d(readout, weight.to(query.dtype)[:, :, None, None]), scores


@own_types
def upsampled_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = 255,
    class_weight: Tensor | None = None,
) -> Tensor:
    """:func:`pinmem.ops.upsampled_cross_entropy` in plain PyTorch."""
    num_classes = logits.shape[1]
    z = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True) / temperature
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    labels = _only_classes(target, num_classes, ignore_index)
    weight = z.new_ones(num_classes) if class_weight is None else class_weight.to(z.dtype)
    total = F.cross_entropy(z, labels, weight=weight, ignore_index=num_classes, reduction="sum")
    mass = F.pad(weight, (0, 1))[labels].sum()
    return total / torch.where(mass > 0, mass, torch.ones_like(mass))


@own_types
def class_sums(
    features: Tensor, labels: Tensor, num_classes: int, *, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """:func:`pinmem.ops.class_sums` in plain PyTorch."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    one_hot = F.one_hot(_only_classes(labels, num_classes, ignore_index), num_classes + 1)
    soft = F.interpolate(
        one_hot[..., :-1].permute(0, 3, 1, 2).to(dtype),
        features.shape[2:],
        mode="bilinear",
        align_corners=True,
    )
    q = F.normalize(features, dim=1).to(dtype)
    return torch.einsum("bkhw,bchw->kc", soft, q), soft.sum(dim=(0, 2, 3))


@own_types
def memory_update(
    memory: Tensor, sums: Tensor, mass: Tensor, weight: Tensor, bias: Tensor, *, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`pinmem.ops.memory_update` in plain PyTorch."""
    num_classes = memory.shape[0]
    present = (mass > 0)[:, None]
    means = sums / torch.where(present, mass[:, None], torch.ones_like(mass[:, None]))
    updated = torch.where(present, momentum * memory + (1 - momentum) * means, memory)
    new_memory = F.normalize(updated, dim=1)
    similarity = (new_memory @ new_memory.T).relu()
    off_diagonal = similarity.sum() - similarity.diagonal().sum()
    divergence = off_diagonal / max(num_classes * (num_classes - 1), 1)
    classes = torch.arange(num_classes, device=memory.device)
    return new_memory, divergence, F.cross_entropy(F.linear(new_memory, weight, bias), classes)


@own_types
def upsampled_confusion(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """:func:`pinmem.ops.upsampled_confusion` in plain PyTorch."""
    num_classes = logits.shape[1]
    z = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
    labels = _only_classes(target, num_classes, ignore_index)
    cells = (labels * num_classes + z.argmax(dim=1)).flatten()
    counts = torch.zeros((num_classes + 1) * num_classes, dtype=torch.int64, device=z.device)
    counts.index_add_(0, cells, torch.ones_like(cells))
    return counts.view(-1, num_classes)[:-1]


def _only_classes(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels as int64, everything that is no class as ``num_classes``."""
    labels = labels.long()
    wrong = (labels < 0) | (labels >= num_classes) | (labels == ignore_index)
    return labels.masked_fill(wrong, num_classes)
