"""The trainer's step on fake tensors: what it would hold in memory at most, and what would fit."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pinmem.backends import as_on_gpu
from pinmem.config import TrainConfig
from pinmem.models import Segmenter
from pinmem.prepare import build_network
from pinmem.step import batches_of, build_optimizer, iterate, loss_scale_of
from pinmem.storages import BATCH, GRADIENTS, OPTIMISER, WEIGHTS, Storages

# Crops are tried in steps of the largest output stride.
CROP_STEP = 32


class Run:
    """A network in training without data: on fake tensors, or on real ones with random numbers.

    Args:
        config: of the run.
        network: in training mode; fake, it lies on the CPU whatever the device.
        device: the run's.
        storages: follows the fake tensors.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: Segmenter,
        device: torch.device,
        storages: Storages | None = None,
    ) -> None:
        self.network, self.device, self.storages = network, device, storages
        if storages:
            storages.shapes = {p.shape for p in network.parameters()}
            storages.kind = OPTIMISER
        # apex's fused SGD, which needs a GPU, keeps the same momentum.
        self.optimizer = build_optimizer(replace(config, optimizer="sgd"), network)
        # A step without gradients makes the optimiser's state.
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, config: TrainConfig, learn_from: int) -> None:
        """One iteration, of another batch or crop size perhaps.

        Args:
            config: that of the run but for ``batch_size`` and ``crop_size``.
            learn_from: how many domains are meta-train.
        """
        domains = list(range(len(config.sources)))
        height, width = crop_of(config)
        shape = (config.batch_size, len(domains), 3, height, width)
        if self.storages:
            self.storages.kind = BATCH
        on = next(self.network.parameters()).device
        # What the loader gave stays alive, on the host.
        loaded = torch.zeros(shape, dtype=torch.uint8) if self.device.type == "cpu" else None
        labels = torch.empty(shape[:2] + shape[3:], dtype=torch.uint8, device=on)
        labels.random_(config.num_classes)
        images = torch.randn(shape, device=on)
        if self.storages:
            self.storages.kind = None
        split = (domains, []) if not config.meta else (domains[:learn_from], domains[learn_from:])
        iterate(
            config, self.network, self.optimizer, batches_of(images, labels, split),
            config.inner_lr, loss_scale_of(config),
        )  # fmt: skip
        del loaded


def network_of(config: TrainConfig) -> Segmenter:
    """The network of a run, without its weights."""
    network = build_network(replace(config, weights=None, start=None))
    return network.to(memory_format=torch.channels_last)


def crop_of(config: TrainConfig) -> tuple[int, int]:
    """Height and width of a crop."""
    crop = config.crop_size
    return (crop, crop) if isinstance(crop, int) else crop


def splits(config: TrainConfig) -> list[int]:
    """How many domains a step may learn from, the extreme cases; they are drawn in training."""
    domains = len(config.sources)
    return sorted({1, domains - 1}) if config.meta else [domains]


class Peak(NamedTuple):
    """Bytes by kind at the peak of a step, and how many domains it learns from."""

    kinds: Counter[str]
    learn_from: int

    @property
    def total(self) -> int:
        """Bytes."""
        return self.kinds.total()

    def growth(self, room: int) -> float:
        """How many times the images may be as large in ``room`` bytes, about."""
        fixed = sum(self.kinds[kind] for kind in (WEIGHTS, OPTIMISER, GRADIENTS))
        return max(room - fixed, 0) / (self.total - fixed)


class Planner:
    """Runs a configuration's step on fake tensors.

    Args:
        config: validated.
        device: the one to plan for; it need not be there.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.mode, self.storages = (
            FakeTensorMode(allow_fallback_kernels=False),
            Storages(device.type),
        )
        with torch.device("meta"):
            network = network_of(config)
        with self._fake():
            network._apply(
                lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu")
            )
            self.run = Run(config, network, device, self.storages)

    @contextlib.contextmanager
    def _fake(self) -> Iterator[None]:
        ops = as_on_gpu() if self.device.type == "cuda" else contextlib.nullcontext()
        with ops, self.mode, self.storages:
            yield

    def peak(self, config: TrainConfig | None = None) -> Peak:
        """The peak of a step, in the worst split of the domains.

        Args:
            config: with another ``batch_size`` or ``crop_size``.
        """
        config = config or self.config
        peaks = []
        for learn_from in splits(config):
            self.storages.reset()
            with self._fake():
                self.run.step(config, learn_from)
            peaks.append(Peak(self.storages.peak, learn_from))
        return max(peaks, key=lambda peak: peak.total)

    def largest_batch(self, room: int, peak: Peak) -> int:
        """The most images of a domain that fit in ``room`` bytes; 0: fewer than a step takes.

        Args:
            room: bytes.
            peak: of the configuration, from which the search starts.
        """
        # In micro-batches, as many images each.
        parts = self.config.accumulate
        batch = self.config.batch_size // parts
        least = 2 if self.config.meta or len(self.config.sources) == 1 else 1
        guess = int(batch * peak.growth(room))

        def peak_of(number: int) -> int:
            return self.peak(replace(self.config, batch_size=number * parts)).total

        return parts * largest(peak_of, room, least, guess)

    def largest_crop(self, room: int, peak: Peak) -> tuple[int, int] | None:
        """The largest crop of the same shape that fits in ``room`` bytes, in steps of 32.

        Args:
            room: bytes.
            peak: of the configuration, from which the search starts.
        """
        height, width = crop_of(self.config)
        short = min(height, width)

        def scaled(number: int) -> tuple[int, int]:
            sides = (round(side * number / short) * CROP_STEP for side in (height, width))
            return next(sides), next(sides)

        def peak_of(number: int) -> int:
            return self.peak(replace(self.config, crop_size=scaled(number))).total

        guess = int(short * peak.growth(room) ** 0.5 / CROP_STEP)
        number = largest(peak_of, room, 1, guess)
        return scaled(number) if number else None


def largest(peak_of: Callable[[int], int], room: int, least: int, guess: int) -> int:
    """The largest number whose peak is at most ``room``, by bisection; 0 where none is.

    Args:
        peak_of: grows with the number.
        room: bytes.
        least: the smallest number.
        guess: where to start.
    """
    below, above, stride = least - 1, None, 1
    at = max(guess, least)
    while above is None or above - below > 1:
        if peak_of(at) <= room:
            below = at
        else:
            above = at
        if above is None:
            at = below + stride
        elif below < least:
            at = max(above - stride, least)
        else:
            at = (below + above) // 2
        stride *= 2
    return below if below >= least else 0
