"""What a run on fake tensors would hold in memory, by following the lifetimes of its storages."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# PyTorch's allocator on a GPU gives out multiples of it.
CUDA_BLOCK = 512
KINDS = (
    "weights",
    "optimiser state",
    "images and labels",
    "gradients of the weights",
    "activations",
    "made in backward passes",
)
WEIGHTS, OPTIMISER, BATCH, GRADIENTS, ACTIVATIONS, BACKWARD = KINDS


class Storages(TorchDispatchMode):
    """Follows the lifetimes of storages: bytes alive now and at most, by kind.

    PyTorch's ``MemTracker`` does not take a network that runs twice before its backward pass, as
    in a meta-iteration.

    Args:
        device: the type of device whose memory counts.

    Attributes:
        kind: of what is made next; None: by the pass that makes it and by its shape.
        shapes: the weights' shapes; what has one is a weight after a step, or a gradient.
        now: bytes by kind.
        peak: the bytes by kind when their sum was largest since :meth:`reset`.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.kind: str | None = WEIGHTS
        self.shapes = set[torch.Size]()
        self.now = Counter[str]()
        self.peak = Counter[str]()
        self.total = self.most = 0
        self._alive = dict[int, tuple[str, int, Any]]()

    def reset(self) -> None:
        """Begin a new peak."""
        self.most, self.peak = self.total, Counter(self.now)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if not func._schema.returns:
            return None  # changes its arguments; PyTorch has no fake form of some, as of fused SGD
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return made

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        if self.device == "cuda":
            size = math.ceil(size / CUDA_BLOCK) * CUDA_BLOCK
        kind = self.kind or self._kind_of(tensor)
        gone = weakref.ref(storage, lambda _: self._drop(key))
        self._alive[key] = kind, size, gone
        self.now[kind] += size
        self.total += size
        if self.total > self.most:
            self.reset()

    def _drop(self, key: int) -> None:
        kind, size, _ = self._alive.pop(key)
        self.now[kind] -= size
        self.total -= size

    def _kind_of(self, tensor: Tensor) -> str:
        in_backward = torch._C._current_graph_task_id() != -1
        if tensor.shape in self.shapes and tensor.ndim:
            return GRADIENTS if in_backward else WEIGHTS
        return BACKWARD if in_backward else ACTIVATIONS
