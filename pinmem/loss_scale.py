"""Loss scaling for float16, for steps that use two gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class LossScale:
    """A factor on the loss that keeps float16 gradients from vanishing or overflowing.

    The schedule is that of ``torch.amp.GradScaler``, which scales one backward pass for one
    optimiser: halved where a gradient is not finite, doubled after so many steps where all were.

    Args:
        value: the first factor.
        interval: finite steps before it is doubled.

    Attributes:
        skipped: steps that were not taken.
    """

    def __init__(self, value: float = 2.0**16, interval: int = 2000) -> None:
        self.value, self.interval = value, interval
        self.finite_steps = self.skipped = 0

    def unscaled(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Gradients divided by the factor."""
        return list(torch._foreach_mul(list(grads), 1 / self.value))

    def update(self, grads: Sequence[Tensor]) -> bool:
        """Whether all gradients are finite, so that the step may be taken; waits for the device."""
        largest = torch._foreach_norm(list(grads), float("inf"))
        if bool(torch.stack([norm.float() for norm in largest]).isfinite().all()):
            self.finite_steps += 1
            if self.finite_steps % self.interval == 0:
                self.value *= 2
            return True
        self.value /= 2
        self.finite_steps = 0
        self.skipped += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        names = ("value", "finite_steps", "skipped")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.value, self.skipped = state["value"], state["skipped"]
        self.finite_steps = state["finite_steps"]
