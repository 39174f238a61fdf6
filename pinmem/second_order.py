"""Convolution and batch normalisation whose second derivative costs what it must.

PyTorch's own gives the gradient of a convolution's weight gradient as a convolution with a kernel
of the size of the map, and batch normalisation's in some thirty passes over the maps. The functions
here compute the same numbers with the kernels of the first derivative and with eight passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

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
        own: Any = {torch.conv2d: _convolution, F.batch_norm: _batch_norm}.get(func)
        if own is not None and torch.is_grad_enabled():
            return own(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(dtype), weight.to(dtype)
    shape = (list(stride), list(padding), list(dilation), False, [0, 0], groups)
    found = _Convolution.apply(input, weight, shape)
    return found if bias is None else found + bias.to(found.dtype)[:, None, None]


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or weight is None or bias is None or input.ndim != 4:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


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


class _BatchNorm(Function):
    """Features [B,C,H,W], weight and bias [C]; moves the running statistics where there are any."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_variance: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        normalised, mean, rstd = aten.native_batch_norm(
            features, weight, bias, running_mean, running_variance, True, momentum, eps
        )
        ctx.save_for_backward(features, weight, mean, rstd)
        ctx.eps = eps
        return normalised

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        grads = _BatchNormGradients.apply(cotangent, *ctx.saved_tensors, ctx.eps)
        return *grads, None, None, None, None


class _BatchNormGradients(Function):
    """Gradients of features, weight and bias.

    With x the normalised features, r one over the deviation, <.> the mean over a channel and
    P(v) = v - <v> - x <v x>, they are ``weight r P(c)``, ``n <c x>`` and ``n <c>``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cotangent: Tensor,
        features: Tensor,
        weight: Tensor,
        mean: Tensor,
        rstd: Tensor,
        eps: float,
    ) -> Any:
        grads = _first_order(cotangent, features, weight, mean, rstd, eps)
        ctx.save_for_backward(cotangent, features, weight, mean, rstd, grads[1], grads[2])
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return grads

    @staticmethod
    def backward(
        ctx: Any, tangent: Tensor | None, weight_tangent: Tensor | None, bias_tangent: Tensor | None
    ) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError("batch_norm: third derivatives are not implemented")
        cotangent, features, weight, mean, rstd, along_x, along_one = ctx.saved_tensors
        n = features.numel() // features.shape[1]
        zero = torch.zeros_like(rstd)
        weight_t = zero if weight_tangent is None else weight_tangent.to(rstd.dtype)
        bias_t = zero if bias_tangent is None else bias_tangent.to(rstd.dtype)
        scale = weight.to(rstd.dtype) * rstd
        c_x, c_one = along_x.to(rstd.dtype) / n, along_one.to(rstd.dtype) / n
        if tangent is None:
            t_x = t_one = t_c = zero
            projected = None
        else:
            # P is its own adjoint, so the first derivative's kernel gives P(tangent).
            projected, t_x, t_one = _first_order(tangent, features, weight, mean, rstd, ctx.eps)
            t_x, t_one = t_x.to(rstd.dtype) / n, t_one.to(rstd.dtype) / n
            t_c = _means_of_products(tangent, cotangent)
        # <tangent P(cotangent)>: what the deviation's derivative meets.
        bend = t_c - t_one * c_one - t_x * c_x
        by_cotangent = weight_t - scale * t_x
        by_tangent = -scale * c_x
        by_x = -(by_cotangent * c_x + by_tangent * t_x) - scale * bend
        constant = -(by_cotangent * c_one + by_tangent * t_one)
        # x = (features - mean) r
        from_features, from_one = rstd * rstd * by_x, rstd * (constant - mean * rstd * by_x)
        bent = _combined(
            from_one,
            (rstd * by_cotangent, cotangent),
            (from_features, features),
            *([(rstd * by_tangent, tangent)] if tangent is not None else []),
        )
        slope, offset = weight_t * rstd, bias_t - weight_t * rstd * mean
        if projected is None:
            along = _combined(offset, (slope, features))
        else:
            along = projected
            if weight_tangent is not None or bias_tangent is not None:
                along = along + _combined(offset, (slope, features))
        return along, bent, (n * rstd * bend).to(weight.dtype), None, None, None


def _first_order(
    cotangent: Tensor, features: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return aten.native_batch_norm_backward(
        cotangent, features, weight, None, None, mean, rstd, True, eps, [True, True, True]
    )


def _means_of_products(one: Tensor, other: Tensor) -> Tensor:
    """The mean over a channel of a product of two maps, [C], in float32 at least."""
    wide = torch.promote_types(one.dtype, torch.float32)
    return (one * other).mean((0, 2, 3), dtype=wide)


def _combined(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """A constant per channel [C] and maps times a factor per channel, added up."""
    total = constant[:, None, None]
    for i, (factor, term) in enumerate(terms):
        add = total.addcmul_ if i else total.addcmul
        total = add(factor[:, None, None], term)
    return total.to(terms[0][1].dtype)
