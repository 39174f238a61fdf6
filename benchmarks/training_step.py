"""One training step: a whole meta-iteration (docs/math.md) against the published procedure.

Two domains, one to learn from and one to test on. ``auto`` is :func:`pinmem.meta.mldg_step` as
the trainer calls it, in channels_last; ``eager`` the same on plain PyTorch; ``published`` the
procedure of the release (benchmarks/published_step.py), in its memory format, also with autograd's
anomaly mode, which the release leaves on. ``second order`` differentiates through the inner step
too, which the release cannot, keeping its activations or computing them again (``lean``). All share
one optimiser, one network and the same images; dropout is off so that losses compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

import pinmem
from benchmarks.case import Call, Results
from benchmarks.inputs import Source
from benchmarks.plan import Plan, Size
from benchmarks.published_step import PublishedTrainer
from pinmem.meta import mldg_step
from pinmem.models import Segmenter, build_model
from pinmem.passes import Batch

INNER_LR = 0.001
ANOMALY = "published, anomaly mode"
SECOND, LEAN = "second order", "second order, lean"
# In float64 both procedures are the same function.
EXACT = 1e-6
# In the row's own type, the losses of the first step.
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class Setting(NamedTuple):
    """The network and the images of one domain."""

    model: str
    images: Size


SETTINGS = {
    "cpu": Setting("deeplabv3plus_r18", Size(2, 768, 768, 32)),
    "cuda": Setting("deeplabv3plus_r50", Size(4, 768, 768, 16)),
}
SMALL = Size(2, 64, 64, 32)


def cases(plan: Plan, size: Size, dtype: torch.dtype) -> Iterator[StepCase]:
    """One row a type; the step has a size of its own."""
    if size == plan.sizes[0]:
        yield StepCase(plan, dtype)


class StepCase:
    """A :class:`benchmarks.case.Case` whose calls go on from one step to the next."""

    op = "training_step"
    keeps_state = True
    moved = operations = None
    ours: tuple[str, ...] = ("auto",)
    baselines: tuple[str, ...] = ("eager", "published", ANOMALY, SECOND, LEAN)

    def __init__(self, plan: Plan, dtype: torch.dtype) -> None:
        setting = SETTINGS[plan.device]
        self.domain = SMALL if plan.smoke else setting.images
        self.plan, self.dtype = plan, dtype
        self.model = setting.model if not plan.smoke else SETTINGS["cpu"].model
        self.variant, self.what = self.model, "one iteration"
        batch, height, width = self.domain[:3]
        self.size, self.images = f"2 domains of {batch}x{height}x{width}", 2 * batch
        self.skipped: dict[str, str] = {}
        self._done: dict[str, Results] = {}

    @property
    def sets(self) -> int:
        return 1

    def backend_of(self, name: str) -> str:
        return "auto" if name in ("auto", SECOND, LEAN) else "reference"

    def call(self, name: str, seed: int = 0) -> Call:
        amp = self.dtype if self.dtype.itemsize < 4 else None
        return _Stepper(self.plan, self.model, self.domain, name, torch.float32, amp, seed)

    def check(self, name: str) -> str:
        """Losses, memory and weights of one step, against the published procedure.

        Both forms of second order against each other; they are not first order.
        """
        if name in (SECOND, LEAN):
            fault = _difference(self._exactly(name), self._exactly(SECOND), EXACT)
            if not _difference(self._exactly(name), self._exactly("auto"), EXACT):
                fault = "equals the step of first order"
            return fault and f"in float64 at {SMALL.height}x{SMALL.width}: {fault}"
        if name in (*self.ours, "eager"):
            fault = _difference(self._exactly(name), self._exactly("published"), EXACT)
            if fault:
                return f"in float64 at {SMALL.height}x{SMALL.width}: {fault}"
        return _difference(self._first(name), self._first("published"), CLOSE[self.dtype])

    def release(self) -> None:
        self._done.clear()

    def _exactly(self, name: str) -> Results:
        """Losses, memory and weights of one small step in float64."""
        key = f"{name} in float64"
        if key not in self._done:
            step = _Stepper(self.plan, self.model, SMALL, name, torch.float64, None, 0)
            with pinmem.backend(self.backend_of(name)):
                self._done[key] = step() + step.state()
        return self._done[key]

    def _first(self, name: str) -> Results:
        """The losses of the first step."""
        if name not in self._done:
            with pinmem.backend(self.backend_of(name)):
                self._done[name] = self.call(name)()
        return self._done[name]


class _Stepper:
    """A network in training, with what it learns from."""

    def __init__(
        self,
        plan: Plan,
        model: str,
        images: Size,
        name: str,
        dtype: torch.dtype,
        amp_dtype: torch.dtype | None,
        seed: int,
    ) -> None:
        self.name, self.amp_dtype = name, amp_dtype
        self.network = _network(model, images.classes, seed).to(plan.device, dtype)
        if not name.startswith("published"):
            self.network.to(memory_format=torch.channels_last)
        source = Source(plan, seed)
        self.batches = []
        for _ in range(2):
            pictures = source.normal(images.batch, 3, images.height, images.width, dtype=dtype)
            labels = source.labels(images)
            # The release stores its labels in int64, converted before the step.
            self.batches.append(
                Batch(pictures, labels.long() if name.startswith("published") else labels)
            )
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
        )
        self.published = None
        if name.startswith("published"):
            self.published = PublishedTrainer(
                self.network, self.optimizer, anomaly_detection=name == ANOMALY
            )

    def __call__(self) -> Results:
        if self.published is not None:
            inner, outer = self.published.step(*self.batches, INNER_LR, amp_dtype=self.amp_dtype)
        else:
            second = {"order": 2, "lean": self.name == LEAN} if self.name in (SECOND, LEAN) else {}
            inner, outer = mldg_step(
                self.network,
                self.optimizer,
                *self.batches,
                INNER_LR,
                amp_dtype=self.amp_dtype,
                **second,
            )
        return (*inner, *outer)

    def state(self) -> Results:
        """The memory and every weight."""
        assert self.network.memory is not None
        slots = self.published.slots if self.published else self.network.memory.memory
        return (slots, *(p.detach() for p in self.network.parameters()))


def _network(model: str, classes: int, seed: int) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_model(model, num_classes=classes)
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return network.train()


def _difference(ours: Results, theirs: Results, allowed: float) -> str:
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        error = float((one.double() - other.double()).abs().max())
        bound = allowed * float(other.double().abs().max()) + 1e-9
        # Not the other way round: NaN is a fault.
        if not error <= bound:
            return f"result {i} differs from the published one by {error:.3g}, allowed {bound:.3g}"
    return ""


def test_speed(benchmark, call) -> None:
    benchmark(call)
