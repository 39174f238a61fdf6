"""Convolution and batch normalisation whose second derivative costs what it must.

PyTorch's own gives the gradient of a convolution's weight gradient as a convolution with a kernel
of the size of the map, and batch normalisation's in some thirty passes over the maps. The functions
here and in batch_norm.py take the kernels of the first derivative, and eight passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pinmem.batch_norm import batch_norm

aten = torch.ops.aten


class TwiceDifferentiable(TorchFunctionMode):
    """Inside, ``nn.Conv2d`` and ``nn.BatchNorm2d`` in training mode record these functions."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        own: Any = {torch.conv2d: _convolution, F.batch_norm: batch_norm}.get(func)
        if own is not None and torch.is_grad_enabled():
            return own(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int | str = 0,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(dtype), weight.to(dtype)
    shape = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)
    found = _Convolution.apply(input, weight, shape)
    return found if bias is None else found + bias.to(found.dtype)[:, None, None]


def _pair(sides: Sequence[int] | int) -> list[int]:
    return [sides] * 2 if isinstance(sides, int) else list(sides)


class _Convolution(Function):
    """Features [B,C,H,W] and weight [O,C/groups,kh,kw] to [B,O,h,w]."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, shape: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.shape = shape
        return aten.convolution(features, weight, None, *shape)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        needs = ctx.needs_input_grad[:2]
        return *_ConvolutionGradients.apply(cotangent, *ctx.saved_tensors, ctx.shape, needs), None


class _ConvolutionGradients(Function):
    """A convolution's gradients; linear in the cotangent, and in features or weight each."""

    @staticmethod
    def forward(
        ctx: Any,
        cotangent: Tensor,
        features: Tensor,
        weight: Tensor,
        shape: tuple[Any, ...],
        needs: tuple[bool, bool],
    ) -> Any:
        ctx.save_for_backward(cotangent, features, weight)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        mask = [*needs, False]
        return aten.convolution_backward(cotangent, features, weight, None, *shape, mask)[:2]

    @staticmethod
    def backward(ctx: Any, features_tangent: Tensor | None, weight_tangent: Tensor | None) -> Any:
        cotangent, features, weight = ctx.saved_tensors
        along = None
        if features_tangent is not None:
            along = aten.convolution(features_tangent, weight, None, *ctx.shape)
        if weight_tangent is not None:
            other = aten.convolution(features, weight_tangent, None, *ctx.shape)
            along = other if along is None else along + other
        # The features' gradient has the weight's tangent in it, and the other way round.
        mask = [weight_tangent is not None, features_tangent is not None, False]
        bent = (None, None)
        if any(mask):
            bent = aten.convolution_backward(
                cotangent,
                features if features_tangent is None else features_tangent,
                weight if weight_tangent is None else weight_tangent,
                None,
                *ctx.shape,
                mask,
            )[:2]
        return along, *bent, None, None
