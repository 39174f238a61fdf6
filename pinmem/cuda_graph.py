"""A whole iteration as a CUDA graph: recorded once per size of the split, then replayed.

A step launches some three thousand kernels. Where crops are small a GPU waits for Python between
them; a replay launches all of them at once. Nothing in a step asks for a value, so it can be
recorded as it is.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from pinmem.config import TrainConfig
from pinmem.covariances import masks_of
from pinmem.losses import Losses
from pinmem.models import Segmenter
from pinmem.passes import Batch
from pinmem.step import iterate

# Iterations before one is recorded: what is made once, momenta and cuDNN's plans, is made in them.
_EAGER = 2


@dataclass
class _Recording:
    """What a graph reads and writes, and how often its step ran before it was recorded."""

    batches: list[Batch]
    ran: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    losses: dict[str, Losses] = field(default_factory=dict)


class GraphedStep:
    """:func:`pinmem.step.iterate` of a run, replayed.

    Args:
        config: of the run.
        model: the network, on a GPU, in training mode.
        optimizer: over its parameters.

    Raises:
        ValueError: the network is not on a GPU or has a whitening loss, or ``PINMEM_CHECK`` asks to
            look at labels.
    """

    def __init__(
        self, config: TrainConfig, model: Segmenter, optimizer: torch.optim.Optimizer
    ) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise ValueError(f"cuda_graph: got true on {device}, expected a GPU")
        if os.environ.get("PINMEM_CHECK") == "1":
            raise ValueError("cuda_graph: got true with PINMEM_CHECK=1, which reads every label")
        if masks_of(model):
            raise ValueError(f"cuda_graph: got true, expected false for {config.model}")
        self._config, self._model, self._optimizer = config, model, optimizer
        # A graph reads the rates of the moment from here.
        self._rate, self._inner_rate = torch.zeros(2, device=device).unbind()
        self._stream = torch.cuda.Stream(device)
        self._recordings: dict[tuple[int, ...], _Recording] = {}

    def forget(self) -> None:
        """Record anew: the optimiser's momenta are other tensors than before."""
        self._recordings.clear()

    def __call__(self, batches: Sequence[Batch], inner_lr: float) -> dict[str, Losses]:
        """One iteration; the losses are overwritten by the next of the same split.

        Args:
            batches: as `pinmem.step.iterate` takes them.
            inner_lr: rate of the inner step.
        """
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            key = tuple(len(batch.images) for batch in batches)
            if key not in self._recordings:
                self._recordings[key] = _Recording([_copy(batch) for batch in batches])
            recording = self._recordings[key]
            for mine, given in zip(recording.batches, batches, strict=True):
                mine.images.copy_(given.images)
                mine.labels.copy_(given.labels)
            self._rate.fill_(self._optimizer.param_groups[0]["lr"])
            self._inner_rate.fill_(inner_lr)
            if recording.ran < _EAGER:
                recording.ran += 1
                recording.losses = self._step(recording.batches)
            else:
                if recording.graph is None:
                    self._record(recording)
                assert recording.graph is not None
                recording.graph.replay()
        current.wait_stream(self._stream)
        return recording.losses

    def _record(self, recording: _Recording) -> None:
        graph = torch.cuda.CUDAGraph()
        # One graph runs at a time: all of them may use the same memory.
        pools = (other.graph.pool() for other in self._recordings.values() if other.graph)
        # Nodes of autograd's that still live in a cycle would wait for another stream.
        gc.collect()
        # The loader's thread pins memory meanwhile, which "global" would not allow it.
        with torch.cuda.graph(
            graph, next(pools, None), self._stream, capture_error_mode="thread_local"
        ):
            recording.losses = self._step(recording.batches)
        recording.graph = graph

    def _step(self, batches: Sequence[Batch]) -> dict[str, Losses]:
        with self._rate_on_the_device():
            return iterate(self._config, self._model, self._optimizer, batches, self._inner_rate)

    @contextlib.contextmanager
    def _rate_on_the_device(self) -> Iterator[None]:
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = self._rate
        try:
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate


def _copy(batch: Batch) -> Batch:
    return Batch(batch.images.clone(), batch.labels.clone())
