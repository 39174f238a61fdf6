"""Passes over a part of a batch that are those over the whole of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pinmem.batch_norm import batch_norm
from pinmem.distributed import Ranks, entered

_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
_DRAWS = (Tensor.bernoulli_, Tensor.exponential_, Tensor.normal_, Tensor.uniform_)


class WholeBatch(TorchFunctionMode):
    """Inside, each of several ranks runs a network on its images as if it ran it on those of all.

    Batch normalisation in training is over all images, and a :class:`~pinmem.memory.ClassMemory`
    is written by all. Dropout and noise are drawn for all images on every rank, in one process's
    order, and each takes its own: so ranks' random states stay equal.

    Args:
        ranks: that share the batch.
        domains: of it; its images are domain by domain, on every rank as many of each.
    """

    def __init__(self, ranks: Ranks, domains: int = 1) -> None:
        super().__init__()
        self.ranks, self.domains = ranks, domains

    def __enter__(self) -> WholeBatch:
        super().__enter__()
        entered.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        entered.pop()
        super().__exit__(*error)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return batch_norm(*args, **kwargs)
        if func in _DROPOUTS:
            return self._dropout(func, *args, **kwargs)
        if func in _DRAWS and args[0].ndim:
            whole = func(self._whole(args[0]), *args[1:], **kwargs)
            return args[0].copy_(self._own(whole))
        return func(*args, **kwargs)

    def _dropout(
        self, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return func(input, p, training, inplace)
        drawn = input
        if func is not F.dropout:  # one number for a channel
            drawn = input.new_empty((*input.shape[:2], *[1] * (input.ndim - 2)))
        noise = self._own(func(self._whole(drawn), p, True, False))
        return input.mul_(noise) if inplace else input * noise

    def _whole(self, part: Tensor) -> Tensor:
        """Ones in the shape and memory format of what a part is for all images."""
        whole = part.new_ones((part.shape[0] * self.ranks.size, *part.shape[1:]))
        if part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last):
            return whole.contiguous(memory_format=torch.channels_last)
        return whole

    def _own(self, whole: Tensor) -> Tensor:
        """This rank's rows of those of all images: its part of every domain's."""
        parts = whole.unflatten(0, (self.domains, self.ranks.size, -1))
        return parts[:, self.ranks.rank].flatten(0, 1)
