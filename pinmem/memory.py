"""The class memory: one vector per class, read by attention and written with labelled features."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem import ops
from pinmem.distributed import active


class Written(NamedTuple):
    """What a write returns: the new memory [K,C] and the two writing losses, scalars."""

    memory: Tensor
    divergence: Tensor
    classification: Tensor


class ClassMemory(nn.Module):
    """A memory of class vectors (paper, section 3.2), reading and writing kept apart.

    The memory is the persistent buffer ``memory`` [K,C], float32, unit rows. Reading and writing
    never change it: :meth:`write` returns the new memory and :meth:`store` puts one in place, so
    meta-learning can read a memory that still carries its gradient.

    Args:
        num_classes: K, the number of slots, one per class.
        dim: C, the channels of the feature map.
        momentum: how much of the old memory a write keeps, in [0,1].
        temperature: divides the scores in the reading loss, > 0.
        gumbel: when the attention's scores get Gumbel noise. The published code adds it always.
    """

    memory: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        momentum: float = 0.8,
        temperature: float = 1.0,
        *,
        gumbel: Literal["never", "training", "always"] = "never",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dim = dim
        self.momentum = momentum
        self.temperature = temperature
        self.gumbel = gumbel
        self.project = nn.Conv2d(2 * dim, dim, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(dim)
        self.write_conv = nn.Conv2d(dim, dim, 1, bias=False)
        self.write_norm = nn.BatchNorm2d(dim)
        self.classifier = nn.Linear(dim, num_classes)
        self.register_buffer("memory", F.normalize(torch.rand(num_classes, dim), dim=1))
        self._initialise()

    def _initialise(self) -> None:
        """The published initialisation."""
        for conv in (self.project, self.write_conv):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        for norm in (self.project_norm, self.write_norm):
            nn.init.constant_(norm.bias, 1e-4)
        nn.init.normal_(self.classifier.weight, std=1e-4)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, query: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same as :meth:`read`."""
        return self.read(query, memory)

    def read(self, query: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read the memory at every pixel and project the readout.

        Args:
            query: features [B,C,h,w].
            memory: slots [K,C] to read instead of the buffer.

        Returns:
            Features [B,C,h,w] and the scores [B,K,h,w] of every slot, without noise.
        """
        slots = self.memory if memory is None else memory
        projected, scores = ops.memory_read_project(
            query, slots, self.project.weight.flatten(1), gumbel=self._noise(query)
        )
        return F.relu(self.project_norm(projected)), scores

    def reading_loss(self, scores: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
        """The cohesion loss: cross-entropy of the upsampled scores against labels [B,H,W]."""
        return ops.upsampled_cross_entropy(
            scores, labels, temperature=self.temperature, ignore_index=ignore_index
        )

    def write(
        self,
        query: Tensor,
        labels: Tensor,
        memory: Tensor | None = None,
        ignore_index: int = 255,
    ) -> Written:
        """Write labelled features into the memory; the buffer itself stays as it is.

        Args:
            query: features [B,C,h,w].
            labels: [B,H,W], uint8 or int64.
            memory: old slots [K,C], instead of the buffer.
            ignore_index: the label that is not written.

        Returns:
            The new memory, which carries the gradient of the features, and the writing losses.
        """
        return self.update(*self.sums(query, labels, ignore_index), memory)

    def sums(self, query: Tensor, labels: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
        """Class sums [K,C] and masses [K] of labelled features: those of two batches add up."""
        features = F.relu(query + self.write_norm(self.write_conv(query)))
        return ops.class_sums(features, labels, self.num_classes, ignore_index=ignore_index)

    def update(self, sums: Tensor, mass: Tensor, memory: Tensor | None = None) -> Written:
        """Update the memory, or other slots, with class sums; the second half of a write.

        Ranks that share a batch add theirs up: the new memory is the same on all.
        """
        old = self.memory if memory is None else memory
        if (ranks := active()) is not None:
            both = ranks.sum(torch.cat([sums, mass[:, None]], dim=1))
            sums, mass = both[:, :-1].contiguous(), both[:, -1].contiguous()
        new = ops.memory_update(
            old.to(sums.dtype),
            sums,
            mass,
            self.classifier.weight.to(sums.dtype),
            self.classifier.bias.to(sums.dtype),
            momentum=self.momentum,
        )
        return Written(*new)

    @torch.no_grad()
    def store(self, memory: Tensor) -> None:
        """Put a new memory [K,C] in place, detached."""
        if memory.shape != self.memory.shape:
            raise ValueError(
                f"memory: got shape {list(memory.shape)}, expected {list(self.memory.shape)}"
            )
        self.memory.copy_(memory)

    def _noise(self, query: Tensor) -> Tensor | None:
        if self.gumbel == "never" or (self.gumbel == "training" and not self.training):
            return None
        batch, _, height, width = query.shape
        exponential = torch.empty(
            (batch, self.num_classes, height, width), dtype=torch.float32, device=query.device
        ).exponential_()
        return exponential.log().neg().to(query.dtype)

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return (
            f"num_classes={self.num_classes}, dim={self.dim}, momentum={self.momentum}, "
            f"temperature={self.temperature}, gumbel={self.gumbel!r}"
        )
