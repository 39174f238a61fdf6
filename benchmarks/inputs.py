"""Inputs of the benchmarks: random maps, and labels in regions as in street scenes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plan import Plan, Size

IGNORED = 255


@dataclass
class Inputs:
    """What one call takes: tensors to differentiate for, and the rest by name.

    With a ``module`` the call is ``function(module, first leaf, **constants)`` and the other
    leaves are the module's parameters.
    """

    leaves: list[Tensor]
    constants: dict[str, Any]
    module: nn.Module | None = None
    cotangents: list[Tensor] = field(default_factory=list)
    directions: list[Tensor] = field(default_factory=list)

    @property
    def arguments(self) -> list[Any]:
        """What the function is called with, before the constants."""
        return self.leaves if self.module is None else [self.module, self.leaves[0]]

    def double(self) -> Inputs:
        """The same numbers in float64."""

        def wide(value: Any) -> Any:
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.detach().double() if floating else value

        constants = {name: wide(value) for name, value in self.constants.items()}
        module = None if self.module is None else copy.deepcopy(self.module).double()
        first = self.leaves if module is None else self.leaves[:1]
        leaves = [wide(leaf).requires_grad_() for leaf in first]
        if module is not None:
            leaves += list(module.parameters())
        cotangents = [wide(t).requires_grad_(t.requires_grad) for t in self.cotangents]
        return Inputs(leaves, constants, module, cotangents, [wide(t) for t in self.directions])

    @property
    def bytes(self) -> int:
        """What all of it takes in memory."""
        tensors = [*self.leaves, *self.constants.values(), *self.cotangents, *self.directions]
        return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


class Source:
    """Random tensors of one seed on the plan's device."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan = plan
        self.generator = torch.Generator(plan.device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """Normal numbers; maps come in the plan's memory format."""
        values = torch.randn(shape, generator=self.generator, device=self.plan.device)
        values = (scale * values).to(dtype)
        return (
            values.contiguous(memory_format=self.plan.memory_format) if len(shape) == 4 else values
        )

    def uniform(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Numbers in [0,1)."""
        return torch.rand(shape, generator=self.generator, device=self.plan.device).to(dtype)

    def unit_rows(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Rows of length one."""
        return F.normalize(self.normal(*shape, dtype=torch.float32), dim=1).to(dtype)

    def labels(self, size: Size) -> Tensor:
        """Labels [B,H,W], uint8: regions of a few dozen pixels, one in twenty ignored."""
        shape = (size.batch, 1, -(-size.height // 24), -(-size.width // 24))
        device = self.plan.device
        regions = torch.randint(
            0, size.classes, shape, generator=self.generator, device=device, dtype=torch.uint8
        )
        regions[torch.rand(shape, generator=self.generator, device=device) < 0.05] = IGNORED
        return F.interpolate(regions, (size.height, size.width), mode="nearest")[:, 0]

    def like(self, tensor: Tensor) -> Tensor:
        """Normal numbers of a tensor's shape, dtype and memory format; 1 for a scalar."""
        if tensor.ndim == 0:
            return torch.ones_like(tensor)
        return self.normal(*tensor.shape, dtype=tensor.dtype)
