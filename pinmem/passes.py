"""A forward and backward pass over a batch: in one piece, or in micro-batches with its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pinmem.backends import under_fake_tensors
from pinmem.convolutions import fast_convolutions
from pinmem.distributed import Ranks
from pinmem.losses import Losses, LossWeights, losses_of, of_rank
from pinmem.memory import Written
from pinmem.models import Segmenter
from pinmem.recompute import frozen_statistics
from pinmem.whole_batch import WholeBatch


class Batch(NamedTuple):
    """Images [B,3,H,W], normalised, and labels [B,H,W], uint8 or int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Passes:
    """The passes of a step.

    In micro-batches each loss counts as its share of the pixels of all, and class sums and masses
    are added before the one update of the memory. What differs from one large batch is that batch
    normalisation sees a micro-batch.

    Args:
        model: the network.
        weights: of its losses.
        amp_dtype: autocast to this type; None computes in the parameters' own.
        accumulate: micro-batches in a batch.
        scale: a factor on the losses that are differentiated.
        ranks: that share the batches; losses and gradients are then summed over all.
    """

    model: Segmenter
    weights: LossWeights
    amp_dtype: torch.dtype | None = None
    accumulate: int = 1
    scale: float = 1.0
    ranks: Ranks | None = None

    def losses(self, batch: Batch, memory: Tensor | None = None, *, write: bool = True) -> Losses:
        """Losses of a batch in one piece, with their graph; ``write``: those of a write too.

        Several ranks' add up to those of the whole batch.
        """
        with self._surroundings(batch):
            output = self.model(batch.images, memory=memory)
            slots = self.model.memory if write else None
            written = slots.write(output.query, batch.labels) if slots is not None else None
            return losses_of(self.model, output, batch.labels, self.weights, written)

    def gradients(
        self,
        batch: Batch,
        parameters: Sequence[Tensor],
        memory: Tensor | None = None,
        *,
        write: bool = True,
        onto: list[Tensor] | None = None,
    ) -> tuple[Losses, list[Tensor]]:
        """Losses of a batch, and the gradients of ``scale`` times their total.

        Args:
            batch: read, and written where the network has a memory and ``write`` says so.
            parameters: what to differentiate for.
            memory: read in place of the buffer; its own graph is followed.
            write: whether the losses of a write belong to the total.
            onto: gradients to add them to, in place; a batch in one piece does so as each is found.
        """
        if onto is not None and (self.accumulate > 1 or self.ranks is not None):
            losses, grads = self.gradients(batch, parameters, memory, write=write)
            torch._foreach_add_(onto, grads)
            return losses, onto
        if self.accumulate == 1:
            losses = self.losses(batch, memory, write=write)
            return self.summed(
                losses, gradients_of(self._scaled(losses.total), parameters, onto=onto)
            )
        parts = self._parts(batch)
        # Each micro-batch draws from a stream of its own: it is the same when it runs again.
        seeds = [0] * len(parts)
        if not under_fake_tensors():
            seeds = torch.randint(2**62, (len(parts),)).tolist()
        grads = [torch.zeros_like(parameter) for parameter in parameters]
        total: Losses | None = None
        along: Tensor | None = None
        slots = self.model.memory if write else None
        if slots is not None:
            total, along = self._writing_losses(parts, seeds, parameters, grads)
        leaf = None if memory is None else memory.detach().requires_grad_()
        slots_grad = None if memory is None else torch.zeros_like(memory)
        whole = [part.labels for part in parts]
        for part, seed in zip(parts, seeds, strict=True):
            with _seeded(seed, part.images.device), self._surroundings(part):
                output = self.model(part.images, memory=leaf)
                some = losses_of(self.model, output, part.labels, self.weights, whole=whole)
                loss = some.total
                if slots is not None and along is not None:
                    sums, _ = slots.sums(output.query, part.labels)
                    loss = loss + (sums * along).sum()
            asked = [*parameters] if leaf is None else [*parameters, leaf]
            found = gradients_of(self._scaled(loss), asked)
            if slots_grad is not None:
                slots_grad += found.pop()
            torch._foreach_add_(grads, found)
            some = some.detach()
            total = some if total is None else Losses(*map(torch.add, total, some))
        if memory is not None and memory.requires_grad:
            torch._foreach_add_(grads, gradients_of(memory, parameters, slots_grad))
        assert total is not None
        return self.summed(total, grads)

    def summed(self, losses: Losses, grads: list[Tensor]) -> tuple[Losses, list[Tensor]]:
        """Losses without their graph and gradients, summed over all ranks."""
        losses = losses.detach()
        if self.ranks is None:
            return losses, grads
        row, *grads = self.ranks.totals([torch.stack(losses), *grads])
        return Losses(*row), grads

    def written(self, batch: Batch) -> Written:
        """What a write of the batch gives: the encoder without a graph, the writing with one."""
        slots = self.model.memory
        assert slots is not None
        sums: list[Tensor] = []
        for part in self._parts(batch):
            with self._surroundings(part):
                with torch.no_grad():
                    query = self.model.encode(part.images).query
                more = slots.sums(query, part.labels)
            sums = [*more] if not sums else [a + b for a, b in zip(sums, more, strict=True)]
        with self._over_ranks(batch):
            return slots.update(*sums)

    def _writing_losses(
        self,
        parts: Sequence[Batch],
        seeds: Sequence[int],
        parameters: Sequence[Tensor],
        grads: list[Tensor],
    ) -> tuple[Losses, Tensor]:
        """The losses of writing all micro-batches at once, and their gradient at the class sums.

        The gradients of the memory's own parameters are added to ``grads``.
        """
        slots = self.model.memory
        assert slots is not None
        sums: list[Tensor] = []
        with torch.no_grad(), frozen_statistics(self.model):
            for part, seed in zip(parts, seeds, strict=True):
                with _seeded(seed, part.images.device), self._surroundings(part):
                    more = slots.sums(self.model.encode(part.images).query, part.labels)
                sums = [*more] if not sums else [a + b for a, b in zip(sums, more, strict=True)]
        total, mass = sums[0].requires_grad_(), sums[1]
        with self._over_ranks(parts[0]):
            divergence, classification = of_rank(slots.update(total, mass))
        zero = torch.zeros_like(divergence)
        weighted = (
            self.weights.divergence * divergence + self.weights.classification * classification
        )
        along, *found = gradients_of(weighted, [total, *parameters])
        torch._foreach_add_(grads, found, alpha=self.scale)
        losses = Losses(weighted, zero, zero, zero, divergence, classification)
        return losses.detach(), along

    def _parts(self, batch: Batch) -> list[Batch]:
        """Micro-batches of as many images of every domain each."""
        n = self.accumulate
        return [Batch(batch.images[i::n], batch.labels[i::n]) for i in range(n)]

    def _scaled(self, total: Tensor) -> Tensor:
        return total if self.scale == 1 else total * self.scale

    @contextlib.contextmanager
    def _surroundings(self, batch: Batch) -> Iterator[None]:
        """Of a forward pass over a batch or micro-batch."""
        faster = fast_convolutions(batch.images.device, self.model)
        with faster, autocast(batch.images, self.amp_dtype), self._over_ranks(batch):
            yield

    def _over_ranks(self, batch: Batch) -> contextlib.AbstractContextManager[object]:
        """Where a batch or micro-batch is this rank's part of one."""
        if self.ranks is None:
            return contextlib.nullcontext()
        images = len(batch.images) * self.accumulate
        return WholeBatch(self.ranks, images // (self.ranks.images or images))


def gradients_of(
    outputs: Tensor | Sequence[Tensor],
    parameters: Sequence[Tensor],
    cotangents: Tensor | Sequence[Tensor] | None = None,
    create_graph: bool = False,
    onto: list[Tensor] | None = None,
) -> list[Tensor]:
    """Gradients of all parameters, zero where the outputs do not depend on one.

    With ``onto`` they are added there one by one, so that never all of them are held twice.
    """
    with fast_convolutions(parameters[0].device):
        if onto is not None:
            for parameter, grad in zip(parameters, onto, strict=True):
                parameter.grad = laid_out_as(parameter, grad)
            torch.autograd.backward(outputs, cotangents, inputs=parameters)
            return _taken(parameters)
        grads = torch.autograd.grad(
            outputs, parameters, cotangents, create_graph=create_graph,
            materialize_grads=True, allow_unused=True,
        )  # fmt: skip
    return list(grads)


def autocast(images: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to ``dtype`` on the device of the images; None leaves every type as it is."""
    return torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None)


def laid_out_as(parameter: Tensor, grad: Tensor) -> Tensor:
    """A gradient in its parameter's layout; double convolutions, say, return another."""
    if grad.stride() == parameter.stride():
        return grad
    return torch.empty_like(parameter).copy_(grad)


def _taken(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that parameters carry, which they carry no longer."""
    grads = [cast(Tensor, parameter.grad) for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return grads


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


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of the CPU and the device from a seed; afterwards as if none were drawn."""
    if under_fake_tensors():
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
