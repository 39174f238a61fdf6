"""One iteration of training: joint, or meta-learning (MLDG), with or without a class memory.

The published procedure (paper, section 3.3 and algorithm 1; docs/math.md) without its copies of
the network: the inner step swaps parameters, and the passes that only write run the encoder only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pinmem.losses import Losses, LossWeights, losses_of
from pinmem.models import Segmenter
from pinmem.recompute import parameters_as, random_state, recomputing, set_random_state
from pinmem.second_order import TwiceDifferentiable


class Batch(NamedTuple):
    """Images [B,3,H,W], normalised, and labels [B,H,W], uint8 or int64."""

    images: Tensor
    labels: Tensor


def joint_step(
    model: Segmenter,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    weights: LossWeights | None = None,
    *,
    amp_dtype: torch.dtype | None = None,
) -> Losses:
    """Train on all domains at once; with a memory, read it, write it and keep what was written.

    Args:
        model: the network, in training mode; its parameters and memory are updated.
        optimizer: over the network's parameters.
        batch: images and labels of all domains.
        weights: the published ones if absent.
        amp_dtype: autocast to this type; None computes in the parameters' own.
    """
    with autocast(batch.images, amp_dtype):
        output = model(batch.images)
        written = model.memory.write(output.query, batch.labels) if model.memory else None
        losses = losses_of(model, output, batch.labels, weights or LossWeights(), written)
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    optimizer.step()
    _rewrite(model, batch, amp_dtype)
    return losses.detach()


def mldg_step(
    model: Segmenter,
    optimizer: torch.optim.Optimizer,
    meta_train: Batch,
    meta_test: Batch,
    inner_lr: float,
    weights: LossWeights | None = None,
    *,
    order: int = 1,
    lean: bool = False,
    amp_dtype: torch.dtype | None = None,
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
        inner_lr: rate of the inner step.
        weights: the published ones if absent.
        order: 1 as published, or 2, which keeps the inner pass's graph until the outer one is done.
        lean: in second order run the inner pass again instead, with nothing kept but the tensors
            between its stages: less memory, more time, the same numbers.
        amp_dtype: autocast to this type; None computes in the parameters' own.

    Returns:
        The losses of the inner and of the outer pass.

    Raises:
        ValueError: the order is neither 1 nor 2, or it is 2 and the network is compiled.
    """
    if order not in (1, 2):
        raise ValueError(f"order: got {order}, expected 1 or 2")
    if order == 2 and any(_compiled(module) for module in model.modules()):
        raise ValueError(
            "order: got 2 for a network under torch.compile, expected 1: "
            "compiled code has no second derivative"
        )
    weights = weights or LossWeights()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters: list[Tensor] = list(named.values())

    device = meta_train.images.device
    start = random_state(device)
    with TwiceDifferentiable() if order == 2 and not lean else contextlib.nullcontext():
        inner = _inner_losses(model, meta_train, weights, amp_dtype)
    moving = _gradients(inner.total, parameters, create_graph=order == 2 and not lean)
    inner_grads = [grad.detach() for grad in moving]
    inner = inner.detach()

    stepped = [p.requires_grad_() for p in _step(parameters, inner_grads, inner_lr)]
    with (
        parameters_as(model, dict(zip(named, stepped, strict=True))),
        frozen_statistics(model),
        autocast(meta_test.images, amp_dtype),
    ):
        memory = None
        if model.memory:
            with torch.no_grad():
                query = model.encode(meta_train.images).query
            memory = model.memory.write(query, meta_train.labels).memory
        outer = losses_of(model, model(meta_test.images, memory=memory), meta_test.labels, weights)
    outer_grads = _gradients(outer.total, stepped)
    outer = outer.detach()
    del stepped
    if order == 2 and lean:
        now = random_state(device)
        set_random_state(device, start)
        with frozen_statistics(model), recomputing(model.stages()), TwiceDifferentiable():
            again = _inner_losses(model, meta_train, weights, amp_dtype)
            moving = _gradients(again.total, parameters, create_graph=True)
            # The same numbers; those of the first time go.
            inner_grads = [grad.detach() for grad in moving]
            bent = _along(moving, parameters, outer_grads)
        set_random_state(device, now)
    elif order == 2:
        bent = _along(moving, parameters, outer_grads)
    if order == 2:
        torch._foreach_add_(outer_grads, bent, alpha=-inner_lr)
    del moving

    torch._foreach_add_(inner_grads, outer_grads)
    for parameter, grad in zip(parameters, inner_grads, strict=True):
        parameter.grad = grad
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _rewrite(model, meta_train, amp_dtype)
    return inner, outer


def _inner_losses(
    model: Segmenter, batch: Batch, weights: LossWeights, amp_dtype: torch.dtype | None
) -> Losses:
    with autocast(batch.images, amp_dtype):
        output = model(batch.images)
        written = model.memory.write(output.query, batch.labels) if model.memory else None
        return losses_of(model, output, batch.labels, weights, written)


def _compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def _along(
    moving: Sequence[Tensor], parameters: Sequence[Tensor], tangents: Sequence[Tensor]
) -> list[Tensor]:
    """The Hessian times the tangents: the gradient of ``<gradients, tangents>``."""
    pairs = [(g, v) for g, v in zip(moving, tangents, strict=True) if g.requires_grad]
    return _gradients([g for g, _ in pairs], parameters, [v for _, v in pairs])


def split_domains(count: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """A random split of the domains into meta-train and meta-test, both non-empty."""
    if count < 2:
        raise ValueError(f"domains: got {count}, expected at least 2 to split them")
    order = torch.randperm(count, generator=generator).tolist()
    cut = int(torch.randint(1, count, (), generator=generator))
    return order[:cut], order[cut:]


def gather_domains(images: Tensor, labels: Tensor, domains: Sequence[int]) -> Batch:
    """Some domains of images [B,D,3,H,W] and labels [B,D,H,W] as one batch, domain by domain."""
    index = list(domains)
    return Batch(
        images[:, index].transpose(0, 1).flatten(0, 1),
        labels[:, index].transpose(0, 1).flatten(0, 1),
    )


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise with batch statistics as in training, but leave the running ones alone."""
    tracking = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(images: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to ``dtype`` on the device of the images; None leaves every type as it is."""
    return torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None)


@torch.no_grad()
def _rewrite(model: Segmenter, batch: Batch, amp_dtype: torch.dtype | None) -> None:
    """The memory of the next iteration: written from the old one with the stepped weights."""
    if model.memory is None:
        return
    with evaluating(model), autocast(batch.images, amp_dtype):
        query = model.encode(batch.images).query
        model.memory.store(model.memory.write(query, batch.labels).memory)


def _gradients(
    outputs: Tensor | Sequence[Tensor],
    parameters: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    create_graph: bool = False,
) -> list[Tensor]:
    """Gradients of all parameters, zero where the outputs do not depend on one."""
    return list(
        torch.autograd.grad(
            outputs, parameters, cotangents, create_graph=create_graph,
            materialize_grads=True, allow_unused=True,
        )
    )  # fmt: skip


@torch.no_grad()
def _step(parameters: list[Tensor], grads: list[Tensor], lr: float) -> tuple[Tensor, ...]:
    return torch._foreach_add(parameters, grads, alpha=-lr)
