"""One iteration of training: joint, or meta-learning (MLDG), with or without a class memory.

The published procedure (paper, section 3.3 and algorithm 1; docs/math.md) without its copies of
the network: the inner step swaps parameters, and the passes that only write run the encoder only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pinmem.convolutions import is_compiled
from pinmem.distributed import Ranks
from pinmem.loss_scale import LossScale
from pinmem.losses import Losses, LossWeights
from pinmem.models import Segmenter
from pinmem.passes import Batch, Passes, evaluating, gradients_of, laid_out_as
from pinmem.recompute import (
    frozen_statistics,
    parameters_as,
    random_state,
    recomputing,
    set_random_state,
)
from pinmem.second_order import TwiceDifferentiable


def joint_step(
    model: Segmenter,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    weights: LossWeights | None = None,
    *,
    amp_dtype: torch.dtype | None = None,
    scale: LossScale | None = None,
    accumulate: int = 1,
    checkpoint: bool = False,
    ranks: Ranks | None = None,
) -> Losses:
    """Train on all domains at once; with a memory, read it, write it and keep what was written.

    Args:
        model: the network, in training mode; its parameters and memory are updated.
        optimizer: over the network's parameters.
        batch: images and labels of all domains.
        weights: the published ones if absent.
        amp_dtype: autocast to this type; None computes in the parameters' own.
        scale: of the loss, for float16: a step whose gradient is not finite is not taken.
        accumulate: run the batch in so many micro-batches (:class:`pinmem.passes.Passes`).
        checkpoint: keep only the tensors between the network's stages and run these again in the
            backward pass: less memory, more time, the same numbers.
        ranks: that share the batch; each gives its own images and gets the losses of all.
    """
    named = _trained(model)
    passes = Passes(model, weights or LossWeights(), amp_dtype, accumulate, _factor(scale), ranks)
    statistics = _statistics(model, scale)
    with _checkpointing(model, checkpoint):
        losses, grads = passes.gradients(batch, list(named.values()))
        if _stepped(optimizer, named, _unscaled(scale, grads), scale, statistics):
            _rewrite(passes, batch)
    return losses


def mldg_step(
    model: Segmenter,
    optimizer: torch.optim.Optimizer,
    meta_train: Batch,
    meta_test: Batch,
    inner_lr: float | Tensor,
    weights: LossWeights | None = None,
    *,
    order: int = 1,
    lean: bool = False,
    amp_dtype: torch.dtype | None = None,
    scale: LossScale | None = None,
    accumulate: int = 1,
    checkpoint: bool = False,
    ranks: Ranks | None = None,
) -> tuple[Losses, Losses]:
    """One meta-iteration: learn on some domains what also helps on the others.

    The optimiser steps on the sum of the inner gradient at the weights and of the outer gradient
    at the weights after one inner step, where the memory that is read was written with them. In
    second order the outer gradient goes back through that step: ``g1 + g2 - inner_lr H g2``, with
    the Hessian of the inner loss at the weights (docs/math.md).

    Args:
        model: the network, in training mode; its parameters and memory are updated.
        optimizer: over the network's parameters.
        meta_train: the batch of the meta-train domains.
        meta_test: the batch of the meta-test domains.
        inner_lr: rate of the inner step; a scalar on the device where a CUDA graph reads it.
        weights: the published ones if absent.
        order: 1 as published, or 2, which keeps the inner pass's graph until the outer one is done.
        lean: in second order run the inner pass again instead, with nothing kept but the tensors
            between its stages: less memory, more time, the same numbers.
        amp_dtype: autocast to this type; None computes in the parameters' own.
        scale: of the losses, for float16: an iteration in which a gradient is not finite leaves
            weights, statistics and memory as they were.
        accumulate: run each batch in so many micro-batches (:class:`pinmem.passes.Passes`); in
            first order.
        checkpoint: keep only the tensors between the network's stages and run these again in the
            backward passes: less memory, more time, the same numbers.
        ranks: that share both batches; each gives its own images and gets the losses of all.

    Returns:
        The losses of the inner and of the outer pass.

    Raises:
        ValueError: the order is neither 1 nor 2; or it is 2 with micro-batches, or with a compiled
            network.
    """
    if order not in (1, 2):
        raise ValueError(f"order: got {order}, expected 1 or 2")
    if order == 2 and accumulate > 1:
        raise ValueError(f"accumulate: got {accumulate}, expected 1 in second order")
    if order == 2 and is_compiled(model):
        raise ValueError(
            "order: got 2 for a network under torch.compile, expected 1: "
            "compiled code has no second derivative"
        )
    named = _trained(model)
    parameters: list[Tensor] = list(named.values())
    passes = Passes(model, weights or LossWeights(), amp_dtype, accumulate, _factor(scale), ranks)
    statistics = _statistics(model, scale)
    device = meta_train.images.device
    start = random_state(device) if lean else ()
    # The fused kernels of attention have one derivative.
    attention = sdpa_kernel(SDPBackend.MATH) if order == 2 else contextlib.nullcontext()
    with _checkpointing(model, checkpoint), attention:
        moving: list[Tensor] = []
        if order == 2 and not lean:
            with TwiceDifferentiable():
                losses = passes.losses(meta_train)
            moving = gradients_of(losses.total * passes.scale, parameters, create_graph=True)
            inner, inner_grads = passes.summed(losses, [grad.detach() for grad in moving])
            del losses
        else:
            inner, inner_grads = passes.gradients(meta_train, parameters)
        inner_grads = _unscaled(scale, inner_grads)

        stepped = [p.detach().clone() for p in parameters]
        _subtract(stepped, inner_grads, inner_lr)
        stepped = [p.requires_grad_() for p in stepped]
        with parameters_as(model, dict(zip(named, stepped, strict=True))), frozen_statistics(model):
            memory = passes.written(meta_train).memory if model.memory else None
            # A scale checks both gradients; in second order the outer one is a direction as well.
            onto = inner_grads if order == 1 and scale is None else None
            outer, outer_grads = passes.gradients(
                meta_test, stepped, memory, write=False, onto=onto
            )
        outer_grads = _unscaled(scale, outer_grads)
        del stepped, memory

        if order == 2:
            if lean:
                # The same numbers as the first time, but of this rank's images alone.
                if ranks is None:
                    del inner_grads
                with _again(model, device, start, checkpoint):
                    moving = gradients_of(
                        passes.losses(meta_train).total * passes.scale, parameters, None, True
                    )
                    if ranks is None:
                        inner_grads = _unscaled(scale, [grad.detach() for grad in moving])
                    bent = _along(moving, parameters, outer_grads)
            else:
                bent = _along(moving, parameters, outer_grads)
            del moving
            if ranks is not None:
                bent = ranks.totals(bent)
            _subtract(outer_grads, bent, inner_lr / passes.scale)

        if onto is None:
            torch._foreach_add_(outer_grads, inner_grads)
        if _stepped(optimizer, named, outer_grads, scale, statistics):
            _rewrite(passes, meta_train)
    return inner, outer


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _factor(scale: LossScale | None) -> float:
    return 1.0 if scale is None else scale.value


def _unscaled(scale: LossScale | None, grads: list[Tensor]) -> list[Tensor]:
    return grads if scale is None else scale.unscaled(grads)


def _checkpointing(model: Segmenter, checkpoint: bool) -> contextlib.AbstractContextManager[None]:
    return recomputing(model.stages()) if checkpoint else contextlib.nullcontext()


@contextlib.contextmanager
def _again(
    model: Segmenter, device: torch.device, start: tuple[Tensor, ...], checkpoint: bool
) -> Iterator[None]:
    """The inner pass once more, for a second derivative: the same draws, statistics stay."""
    now = random_state(device)
    set_random_state(device, start)
    try:
        with frozen_statistics(model), TwiceDifferentiable(), _checkpointing(model, not checkpoint):
            yield
    finally:
        set_random_state(device, now)


def _stepped(
    optimizer: torch.optim.Optimizer,
    named: dict[str, nn.Parameter],
    grads: list[Tensor],
    scale: LossScale | None,
    statistics: list[tuple[Tensor, Tensor]],
) -> bool:
    """Take the optimiser's step; with a scale and a gradient that is not finite go back instead."""
    if scale is not None and not scale.update(grads):
        for buffer, before in statistics:
            buffer.copy_(before)
        return False
    for parameter, grad in zip(named.values(), grads, strict=True):
        # A GPU's fused optimiser asks for one layout.
        parameter.grad = laid_out_as(parameter, grad)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return True


def _statistics(model: nn.Module, scale: LossScale | None) -> list[tuple[Tensor, Tensor]]:
    """Buffers, which running statistics are, and what they hold: to go back to."""
    if scale is None:
        return []
    return [(buffer, buffer.clone()) for buffer in model.buffers()]


@torch.no_grad()
def _rewrite(passes: Passes, batch: Batch) -> None:
    """The memory of the next iteration: written from the old one with the stepped weights."""
    model = passes.model
    if model.memory is not None:
        with evaluating(model):
            model.memory.store(passes.written(batch).memory)


def _subtract(tensors: list[Tensor], directions: list[Tensor], rate: float | Tensor) -> None:
    """``tensors -= rate * directions``."""
    if isinstance(rate, Tensor):
        torch._foreach_sub_(tensors, torch._foreach_mul(directions, rate))
    else:
        torch._foreach_add_(tensors, directions, alpha=-rate)


def _along(
    moving: Sequence[Tensor], parameters: Sequence[Tensor], tangents: Sequence[Tensor]
) -> list[Tensor]:
    """The Hessian times the tangents: the gradient of ``<gradients, tangents>``."""
    pairs = [(g, v) for g, v in zip(moving, tangents, strict=True) if g.requires_grad]
    return gradients_of([g for g, _ in pairs], parameters, [v for _, v in pairs])


def split_domains(count: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """A random split of the domains into meta-train and meta-test, both non-empty."""
    if count < 2:
        raise ValueError(f"domains: got {count}, expected at least 2 to split them")
    order = torch.randperm(count, generator=generator).tolist()
    cut = int(torch.randint(1, count, (), generator=generator))
    return order[:cut], order[cut:]


def gather_domains(images: Tensor, labels: Tensor, domains: Sequence[int]) -> Batch:
    """Some domains of images [B,D,3,H,W] and labels [B,D,H,W] as one batch, domain by domain."""
    # A list of indices would be copied to a GPU, which waits for it.
    return Batch(
        torch.cat([images[:, domain] for domain in domains]),
        torch.cat([labels[:, domain] for domain in domains]),
    )
