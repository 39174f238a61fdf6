"""Batch normalisation with a second derivative in eight passes, over the images of all ranks too.

PyTorch takes some thirty passes for that derivative, and its SyncBatchNorm has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from pinmem.distributed import Ranks, active

aten = torch.ops.aten


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm``, twice differentiable on maps; in training over the images of all ranks.

    Raises:
        ValueError: in training, a channel has one value; or over several ranks the input is neither
            a map with weight and bias nor a weight that is standardised.
    """
    if training and weight is not None and bias is not None and input.ndim == 4:
        if active() is None and input.shape[1] and _pixels(input) == 1:
            raise ValueError(
                f"batch_norm: got {list(input.shape)}, expected several values a channel"
            )
        return _BatchNorm.apply(
            input, weight, bias, running_mean, running_var, momentum, eps, active()
        )
    # timm standardises weights [O,C,kh,kw] as [1,O,C kh kw]: they are the same on all ranks.
    standardises = input.ndim == 3 and len(input) == 1 and running_mean is None
    if training and active() is not None and not standardises:
        raise ValueError(
            f"batch_norm: got {list(input.shape)}{'' if weight is not None else ', no weight'}, "
            "expected maps [B,C,H,W] with weight and bias over several ranks"
        )
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


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
        ranks: Ranks | None,
    ) -> Tensor:
        if ranks is None:
            normalised, mean, rstd = aten.native_batch_norm(
                features, weight, bias, running_mean, running_variance, True, momentum, eps
            )
            count: Any = _pixels(features)
        else:
            mean, variance, count = _statistics(features, ranks)
            if running_mean is not None and running_variance is not None:
                unbiased = variance * (count / (count - 1).clamp_min(1))
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_variance.lerp_(unbiased.to(running_variance.dtype), momentum)
            rstd = (variance + eps).rsqrt()
            normalised = aten.native_batch_norm(
                features, weight, bias, mean, variance, False, 0.0, eps
            )[0]
        ctx.save_for_backward(features, weight, mean, rstd)
        ctx.over = (eps, ranks, count)
        return normalised

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        grads = _BatchNormGradients.apply(cotangent, *ctx.saved_tensors, *ctx.over)
        return *grads, None, None, None, None, None


class _BatchNormGradients(Function):
    """Gradients of features, weight and bias; those of the latter are of this rank's images.

    With x the normalised features, r one over the deviation, <.> the mean over a channel and
    P(v) = v - <v> - x <v x>, they are ``weight r P(c)``, ``n <c x>`` and ``n <c>``. Over several
    ranks the means are those of all; a tangent of weight or bias has to be the same on each, as
    that of a gradient summed over all is.
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
        ranks: Ranks | None,
        count: Any,
    ) -> Any:
        grads, c_x, c_one = _first_order(cotangent, features, weight, mean, rstd, eps, ranks, count)
        ctx.save_for_backward(cotangent, features, weight, mean, rstd, c_x, c_one)
        ctx.over = (eps, ranks, count)
        ctx.set_materialize_grads(False)
        return grads

    @staticmethod
    def backward(
        ctx: Any, tangent: Tensor | None, weight_tangent: Tensor | None, bias_tangent: Tensor | None
    ) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError("batch_norm: third derivatives are not implemented")
        cotangent, features, weight, mean, rstd, c_x, c_one = ctx.saved_tensors
        zero = torch.zeros_like(rstd)
        weight_t = zero if weight_tangent is None else weight_tangent.to(rstd.dtype)
        bias_t = zero if bias_tangent is None else bias_tangent.to(rstd.dtype)
        scale = weight.to(rstd.dtype) * rstd
        if tangent is None:
            t_x = t_one = t_c = zero
            projected = None
        else:
            # P is its own adjoint, so the first derivative's kernel gives P(tangent).
            (projected, *_), t_x, t_one = _first_order(
                tangent, features, weight, mean, rstd, *ctx.over
            )
            t_c = _means_of_products(tangent, cotangent, *ctx.over[1:])
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
        bent_weight = (_pixels(features) * rstd * bend).to(weight.dtype)
        return along, bent, bent_weight, None, None, None, None, None


def _first_order(
    cotangent: Tensor,
    features: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    ranks: Ranks | None,
    count: Any,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """The gradients, and the means <c x> and <c> [C]."""
    if ranks is None:
        grads = aten.native_batch_norm_backward(
            cotangent, features, weight, None, None, mean, rstd, True, eps, [True, True, True]
        )
        return grads, grads[1].to(rstd.dtype) / count, grads[2].to(rstd.dtype) / count
    # As in evaluation, where mean and variance are given, the kernel sums this rank's pixels.
    _, along_x, along_one = aten.native_batch_norm_backward(
        cotangent, features, weight, mean, rstd.pow(-2), None, None, False, 0.0, [False, True, True]
    )
    c_x, c_one = ranks.total(torch.stack([along_x, along_one]).to(rstd.dtype)) / count
    scale = weight.to(rstd.dtype) * rstd
    slope = -scale * c_x * rstd
    grad = _combined(-scale * c_one - slope * mean, (scale, cotangent), (slope, features))
    return (grad, along_x, along_one), c_x, c_one


def _statistics(features: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance [C] of the features of all ranks, and their pixels."""
    wide = torch.promote_types(features.dtype, torch.float32)
    kept = torch.zeros(features.shape[1], dtype=wide, device=features.device)
    # Statistics to move, which nobody wants, are how the kernel gives 16 bits' in 32.
    mean, variance = aten.batch_norm_update_stats(features, kept, kept.clone(), 1.0)
    # A sum of squares loses digits where the mean is large: in float64 none that float32 has.
    mean, variance = mean.double(), variance.double()
    one = torch.full_like(mean[:1], _pixels(features))
    total = ranks.total(torch.cat([one * mean, one * (variance + mean.square()), one]))
    count = total[-1]
    mean, square = (total[:-1] / count).chunk(2)
    variance = (square - mean.square()).clamp_min(0)
    return mean.to(wide), variance.to(wide), count.to(wide)


def _pixels(features: Tensor) -> int:
    return features.numel() // features.shape[1]


def _means_of_products(one: Tensor, other: Tensor, ranks: Ranks | None, count: Any) -> Tensor:
    """The mean over a channel of a product of two maps, [C], in float32 at least."""
    wide = torch.promote_types(one.dtype, torch.float32)
    if ranks is None:
        return (one * other).mean((0, 2, 3), dtype=wide)
    return ranks.total((one * other).sum((0, 2, 3), dtype=wide)) / count


def _combined(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """A constant per channel [C] and maps times a factor per channel, added up."""
    total = constant[:, None, None]
    for i, (factor, term) in enumerate(terms):
        add = total.addcmul_ if i else total.addcmul
        total = add(factor[:, None, None], term)
    return total.to(terms[0][1].dtype)
