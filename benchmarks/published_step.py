"""The published training procedure, reimplemented: the baseline of the training step.

On this project's networks, as in the code released with the paper: three networks, four full
passes, the inner graph kept to the end, the memory as in :mod:`benchmarks.published`. What it does
not repeat only cost the release time: copies that change nothing, and (unless asked for)
autograd's anomaly mode, which the release leaves on. tests/test_benchmarks_published.py holds it
to the numbers of the release.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import published
from pinmem.losses import Losses, LossWeights
from pinmem.models import Segmenter
from pinmem.models.heads import upsample
from pinmem.passes import Batch, autocast


@dataclass
class PublishedTrainer:
    """The networks and the memory that the procedure keeps from one iteration to the next.

    Args:
        model: the network that is trained, in training mode; it gets two copies.
        optimizer: over the model's parameters.
        weights: of the losses; the published ones if absent.
        anomaly_detection: as released.
    """

    model: Segmenter
    optimizer: torch.optim.Optimizer
    weights: LossWeights | None = None
    anomaly_detection: bool = False

    def __post_init__(self) -> None:
        assert self.model.memory is not None
        self.slots = self.model.memory.memory.clone()
        self.tester = copy.deepcopy(self.model)
        self.writer = copy.deepcopy(self.model)

    def step(
        self,
        meta_train: Batch,
        meta_test: Batch,
        inner_lr: float,
        *,
        amp_dtype: torch.dtype | None = None,
    ) -> tuple[Losses, Losses]:
        """One meta-iteration (docs/math.md), labels int64; the inner and the outer losses."""
        before = self.slots.detach().clone()
        checking = (
            torch.autograd.set_detect_anomaly(True)
            if self.anomaly_detection
            else contextlib.nullcontext()
        )
        with checking:
            self.optimizer.zero_grad()
            with autocast(meta_train.images, amp_dtype):
                inner, _ = self._pass(self.model, before, meta_train, writing=True)
            assert inner is not None
            inner.total.item()  # logged
            inner.total.backward(retain_graph=True)

            # The copies' weights are functions of the model's, so gradients add up there.
            _put_weights(self.tester, self.model, inner_lr)
            _put_weights(self.writer, self.model, inner_lr)
            _freeze_all_but_memory(self.writer)
            with autocast(meta_train.images, amp_dtype):
                _, written = self._pass(self.writer, before, meta_train, writing=True)
            assert written is not None
            with autocast(meta_test.images, amp_dtype):
                outer, _ = self._pass(self.tester, written.slots, meta_test, writing=False)
            assert outer is not None
            outer.total.item()  # logged
            outer.total.backward()
            self.optimizer.step()

            with torch.no_grad():
                self.model.eval()
                with autocast(meta_train.images, amp_dtype):
                    _, written = self._pass(self.model, before, meta_train, writing=True)
                assert written is not None
                self.slots = written.slots.detach()
                self.model.train()
        return inner.detach(), outer.detach()

    def _pass(
        self, network: Segmenter, slots: Tensor, batch: Batch, writing: bool
    ) -> tuple[Losses | None, published.Written | None]:
        """A full pass; losses in training mode only."""
        images, labels = batch
        assert network.memory is not None and network.low_level is not None
        features = network.encode(images)
        found = published.read(network.memory, slots, features.query, labels)
        written = (
            published.write(network.memory, slots, features.query, labels) if writing else None
        )
        fine = network.low_level(features.low_level)
        joined = torch.cat([fine, upsample(found.features, fine.shape[2:])], dim=1)
        logits = upsample(network.classifier(network.decoder(joined)), images.shape[2:])
        if not network.training:
            return None, written
        weights = self.weights or LossWeights()
        segmentation = F.cross_entropy(logits, labels, ignore_index=published.IGNORED)
        aux_logits = network.aux_head(features.stage3)
        small = F.interpolate(labels[:, None].float(), aux_logits.shape[2:], mode="nearest")
        aux = F.cross_entropy(aux_logits, small[:, 0].long(), ignore_index=published.IGNORED)
        total = segmentation + weights.aux * aux + weights.reading * found.loss
        divergence = classification = torch.zeros_like(segmentation)
        if written is not None:
            divergence, classification = written.divergence, written.classification
            total = total + weights.divergence * divergence
            total = total + weights.classification * classification
        return Losses(total, segmentation, aux, found.loss, divergence, classification), written


def _put_weights(target: nn.Module, model: nn.Module, lr: float) -> None:
    """Give ``target`` the model's weights after one step, still attached to the model's."""
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        grad = parameter.grad
        stepped = parameter.detach() if grad is None else parameter - lr * grad
        target.get_submodule(path)._parameters[leaf] = stepped  # type: ignore[assignment]


def _freeze_all_but_memory(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if not name.startswith("memory."):
            parameter.detach_().requires_grad_(False)
