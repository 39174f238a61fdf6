"""Batch normalisation folded into the convolutions before it, for as long as a network is measured.

In evaluation both are linear, so one convolution does the work of two passes over its map. On a CPU
it adds and rectifies as it writes, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pinmem.evaluation.fusing import fused
from pinmem.models import Segmenter

__all__ = ["folded"]

_SIDE = 65  # pixels of the image that shows which module follows which
_TOLERANCE = 1e-3


@contextlib.contextmanager
def folded(model: Segmenter) -> Iterator[None]:
    """Fold where that leaves the logits as they are but for rounding; afterwards all is as it was.

    Args:
        model: in evaluation mode; gradients are off.
    """
    if model.memory is not None and model.memory.gumbel == "always":
        yield  # noise: no two passes are alike
        return
    image = _image(model)
    pairs, expected = _pairs(model, image)
    before = [(conv, conv.weight, conv.bias) for conv, _ in pairs]
    replaced: list[nn.Module] = []
    norms = {norm for _, norm in pairs}
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if child in norms
    ]
    try:
        for conv, norm in pairs:
            assert norm.running_mean is not None and norm.running_var is not None
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias,
            )  # fmt: skip
        for parent, name, _ in places:
            setattr(parent, name, nn.Identity())
        if not _gives(model, image, expected):
            # What a convolution gave was read by others too.
            _restore(before, places)
        else:
            for module, forward in fused(model):
                replaced.append(module)
                module.forward = forward
            if replaced and not _gives(model, image, expected):
                _unfuse(replaced)
        yield
    finally:
        _unfuse(replaced)
        _restore(before, places)


def _gives(model: Segmenter, image: Tensor, expected: Tensor) -> bool:
    try:
        logits = model(image).logits
    except RuntimeError:  # an operator of another version
        return False
    return bool((logits - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _unfuse(modules: list[nn.Module]) -> None:
    while modules:
        del modules.pop().forward


def _restore(
    before: Sequence[tuple[nn.Conv2d, Any, Any]],
    places: Sequence[tuple[nn.Module, str, nn.Module]],
) -> None:
    for conv, weight, bias in before:
        conv.weight, conv.bias = weight, bias
    for parent, name, norm in places:
        setattr(parent, name, norm)


def _pairs(
    model: Segmenter, image: Tensor
) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Tensor]:
    """Convolutions with the normalisation of their results, both used once; the image's logits."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    calls: dict[nn.Module, int] = {}

    def conv_made(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        calls[module] = calls.get(module, 0) + 1
        made[id(output)] = module, output  # kept: no other tensor gets its id

    def norm_reads(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        calls[module] = calls.get(module, 0) + 1
        conv, _ = made.get(id(inputs[0]), (None, None))
        if conv is not None:
            found.append((conv, module))

    hooks = []
    for module in model.modules():
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(conv_made))
        elif type(module) is nn.BatchNorm2d and module.running_var is not None:
            hooks.append(module.register_forward_pre_hook(norm_reads))
    try:
        logits = model(image).logits
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in found if all(calls[module] == 1 for module in pair)], logits


def _image(model: Segmenter) -> Tensor:
    """The same image every time."""
    some = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, _SIDE, _SIDE, generator=generator)
    return image.to(some.device, some.dtype)
