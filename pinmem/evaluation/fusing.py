"""Convolutions that add and rectify as they write, on a CPU: fewer passes over large maps.

PyTorch's own compiler fuses them with this operator of oneDNN; here that takes no compilation.
Where :func:`pinmem.convolutions.conv3x3` is faster, it takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from pinmem.convolutions import conv3x3, gains
from pinmem.models.backbones import ResNetBackbone

__all__ = ["fused"]

Forward = Callable[..., Tensor]

_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}


def fused(model: nn.Module) -> list[tuple[nn.Module, Forward]]:
    """Modules with the forward functions that fuse them, once normalisation has been folded away.

    These are convolutions before a ReLU in a ``Sequential`` or a ResNet's stem, whose ReLU then
    hands its input on, and torchvision's residual blocks. Nothing where oneDNN is not at work.
    """
    some = next(model.parameters())
    mkldnn = torch.backends.mkldnn
    operator = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    if not (operator and mkldnn.is_available() and mkldnn.enabled and some.device.type == "cpu"):  # type: ignore[attr-defined]
        return []
    if some.dtype != torch.float32:
        return []
    found: list[tuple[nn.Module, Forward]] = []
    for conv, activation in _pairs(model):
        found += [(conv, _rectified(conv, activation)), (activation, lambda maps: maps)]
    for block in model.modules():
        if type(block) in (BasicBlock, Bottleneck) and _is_plain(block):
            found.append((block, _residual(block)))
    return found


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Module]]:
    """Convolutions and the ReLU of their result, the folded normalisation between them."""
    for module in model.modules():
        rows: Iterable[tuple[Any, ...]] = ()
        if isinstance(module, nn.Sequential):
            children = list(module)
            rows = zip(children, children[1:], children[2:], strict=False)
        elif type(module) is ResNetBackbone:
            rows = [(module.conv1, module.bn1, module.relu)]
        for conv, norm, activation in rows:
            if _fits(conv) and type(norm) is nn.Identity and type(activation) in _ACTIVATIONS:
                yield conv, activation


def _fits(conv: nn.Module) -> bool:
    return (
        type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    )


def _is_plain(block: nn.Module) -> bool:
    """Whether a residual block has all its normalisation folded."""
    norms = [child for name, child in block.named_children() if name.startswith("bn")]
    convs = [child for name, child in block.named_children() if name.startswith("conv")]
    return all(type(norm) is nn.Identity for norm in norms) and all(map(_fits, convs))


def _rectified(conv: nn.Conv2d, activation: nn.Module) -> Forward:
    name, bounds = _ACTIVATIONS[type(activation)]

    def forward(maps: Tensor) -> Tensor:
        if not _takes(conv, maps):
            out = nn.Conv2d.forward(conv, maps)
            return out.relu_() if name == "relu" else F.relu6(out, inplace=True)
        if name == "relu" and _gains(conv, maps):
            return _ours(conv, maps)
        return torch.ops.mkldnn._convolution_pointwise(
            maps, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups,
            name, bounds, "",
        )  # fmt: skip

    return forward


def _added(conv: nn.Conv2d, maps: Tensor, other: Tensor) -> Tensor:
    """relu(conv(maps) + other)."""
    if not _takes(conv, maps) or other.dtype != maps.dtype:
        return (nn.Conv2d.forward(conv, maps) + other).relu_()
    if _gains(conv, maps) and other.is_contiguous(memory_format=torch.channels_last):
        return _ours(conv, maps, other)
    return torch.ops.mkldnn._convolution_pointwise.binary(
        maps, other, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups,
        "add", 1.0, "relu", [], "",
    )  # fmt: skip


def _takes(conv: nn.Conv2d, maps: Tensor) -> bool:
    """Not under autocast, which does not know the operator."""
    return maps.dtype == conv.weight.dtype and not torch.is_autocast_enabled("cpu")


def _gains(conv: nn.Conv2d, maps: Tensor) -> bool:
    assert not isinstance(conv.padding, str)  # as _fits says
    return gains(maps, conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups)


def _ours(conv: nn.Conv2d, maps: Tensor, other: Tensor | None = None) -> Tensor:
    """relu(conv(maps) + other)."""
    assert not isinstance(conv.padding, str)
    return conv3x3(
        maps, conv.weight, conv.bias, other, padding=conv.padding, dilation=conv.dilation,
        rectify=True,
    )  # fmt: skip


def _residual(block: Any) -> Forward:
    convs = [block.conv1, block.conv2, *([block.conv3] if hasattr(block, "conv3") else [])]
    firsts = [_rectified(conv, block.relu) for conv in convs[:-1]]

    def forward(maps: Tensor) -> Tensor:
        other = maps if block.downsample is None else block.downsample(maps)
        for first in firsts:
            maps = first(maps)
        return _added(convs[-1], maps, other)

    return forward
