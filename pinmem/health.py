"""The numbers of every iteration, fetched together, and whether they are finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pinmem.losses import Losses
from pinmem.models import Segmenter

_SHOWN = 5


class NotFinite(FloatingPointError):
    """A loss, a gradient, the memory or a weight is not finite after ``iteration``, from 0."""

    def __init__(self, iteration: int, message: str) -> None:
        super().__init__(message)
        self.iteration = iteration


class Watch:
    """What a step computed, kept on its device until it is fetched: reading waits for a GPU.

    Args:
        model: the network.
        optimizer: over its parameters; the norm of the gradient is taken as it steps.
        files: the images of an iteration's batch, for messages.
    """

    def __init__(
        self,
        model: Segmenter,
        optimizer: torch.optim.Optimizer,
        files: Callable[[int], Iterable[Path]],
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._files = files
        self._gradient: Tensor | None = None
        self._rows: list[tuple[int, list[str], Tensor]] = []
        optimizer.register_step_pre_hook(self._before_step)

    def add(self, iteration: int, losses: Mapping[str, Losses]) -> None:
        """Keep the losses of an iteration, the norms of its gradient and of the memory."""
        if not losses:
            return
        row = {
            f"loss/{side}/{name}": value
            for side, values in losses.items()
            for name, value in values._asdict().items()
        }
        if self._gradient is not None:
            row["gradient/norm"] = self._gradient
        if self._model.memory is not None:
            row["memory/norm"] = self._model.memory.memory.norm()
        self._rows.append((iteration, list(row), torch.stack([v.float() for v in row.values()])))

    def fetch(self) -> list[dict[str, float]]:
        """The numbers since the last call, one synchronisation for all.

        Raises:
            NotFinite: naming the first iteration with such a number, its loss terms and its files.
        """
        kept, self._rows = self._rows, []
        if not kept:
            return []
        fetched = torch.stack([row for *_, row in kept]).tolist()
        rows = []
        for (iteration, names, _), values in zip(kept, fetched, strict=True):
            row = dict(zip(names, values, strict=True))
            if bad := [name for name, value in row.items() if not math.isfinite(value)]:
                losses = (f"{k.removeprefix('loss/')} {v:.4g}" for k, v in row.items())
                raise self.not_finite(iteration, bad, f" ({', '.join(losses)})")
            rows.append(row)
        return rows

    def check_state(self, iteration: int) -> None:
        """Raise ``NotFinite`` unless weights, memory, statistics and momenta are all finite."""
        state: dict[str, Any] = dict(self._model.state_dict())
        for index, entry in enumerate(self._optimizer.state.values()):
            state |= {f"optimizer/{index}/{name}": value for name, value in entry.items()}
        floats = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.is_floating_point()}
        # Momenta are where the weights are; a count of steps may lie elsewhere.
        device = next(self._model.parameters()).device
        flags = torch.stack([v.isfinite().all().to(device) for v in floats.values()]).tolist()
        if bad := [name for name, fine in zip(floats, flags, strict=True) if not fine]:
            raise self.not_finite(iteration, bad)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # In one place, which a CUDA graph that is replayed writes again.
        self._gradient = norm if self._gradient is None else self._gradient.copy_(norm)

    def not_finite(self, iteration: int, what: list[str], values: str = "") -> NotFinite:
        """An error that names what is not finite, and the images of the iteration."""
        more = f" and {len(what) - _SHOWN} more" if len(what) > _SHOWN else ""
        files = "before the first batch"
        if iteration >= 0:
            files = f"its batch: {', '.join(map(str, self._files(iteration)))}"
        return NotFinite(
            iteration,
            f"iteration {iteration + 1}: not finite: "
            f"{', '.join(what[:_SHOWN])}{more}{values}; {files}",
        )
