"""Evaluation of one image: the network and its confusion matrix, against plain PyTorch.

``auto`` is what ``python -m pinmem.evaluate`` does for an image: the network with normalisation
folded away, the confusion counted from its small logits. ``plain`` is the same network, in
channels_last too, followed by interpolate, argmax and bincount; ``contiguous`` the same in
PyTorch's default memory format, and ``network`` is ``plain`` without what follows. Networks are
made once, as for a dataset.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pinmem
from benchmarks.case import Call, Results
from benchmarks.inputs import Source
from benchmarks.plan import CLASSES, Plan, Size
from pinmem.evaluation import Inference, folded, infer
from pinmem.models import Segmenter, build_model

IMAGE = Size(1, 1024, 2048, 16)
SMALL = Size(1, 65, 97, 32)
# Pixels whose best classes are as good as equal may fall to either.
TIES = 1e-3


def cases(plan: Plan, size: Size, dtype: torch.dtype) -> Iterator[EvaluationCase]:
    """One row; the image has a size of its own."""
    if size == plan.sizes[0] and dtype == (plan.dtypes[0] if plan.smoke else torch.float32):
        yield EvaluationCase(plan)


class EvaluationCase:
    """A :class:`benchmarks.case.Case` of one image."""

    op, what = "evaluation", "one image"
    keeps_state = False
    dtype = torch.float32
    moved = operations = None
    ours: tuple[str, ...] = ("auto",)
    baselines: tuple[str, ...] = ("plain", "contiguous", "network")
    sets = 1

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.image_size = SMALL if plan.smoke else IMAGE
        self.variant = "deeplabv3plus_r18" if plan.smoke else "deeplabv3plus_r50"
        self.size, self.images = f"1x{self.image_size.height}x{self.image_size.width}", 1
        self.skipped: dict[str, str] = {}
        self._folded: contextlib.ExitStack | None = None
        self._networks: dict[str, Segmenter] = {}

    def backend_of(self, name: str) -> str:
        return "auto"

    def call(self, name: str, seed: int = 0) -> Call:
        network, (image, target) = self._network(name), self._inputs(seed)
        if name == "contiguous":
            image = image.contiguous()
        return {
            "auto": lambda: (_ours(network, image, target),),
            "plain": lambda: (_plain(network, image, target),),
            "contiguous": lambda: (_plain(network, image, target),),
            "network": lambda: (_logits(network, image),),
        }[name]

    def check(self, name: str) -> str:
        """The counts of ours against the plain ones."""
        if name == "network":
            return ""
        with pinmem.backend("auto"):
            (got,), (expected,) = self.call(name)(), self.call("plain")()
        differing = int((got - expected).abs().sum())
        if got.sum() == expected.sum() and differing <= 2 * TIES * int(expected.sum()):
            return ""
        return f"{differing} of {int(expected.sum())} counts differ"

    def release(self) -> None:
        if self._folded is not None:
            self._folded.close()
        self._folded = None
        self._networks.clear()

    def _inputs(self, seed: int) -> Results:
        source, (batch, height, width) = Source(self.plan, seed), self.image_size[:3]
        image = source.normal(batch, 3, height, width, dtype=torch.float32)
        return image.to(memory_format=torch.channels_last), source.labels(self.image_size)

    def _network(self, name: str) -> Segmenter:
        key = "plain" if name == "network" else name
        if key not in self._networks:
            network = _network(self.variant).to(self.plan.device)
            if name != "contiguous":
                network = network.to(memory_format=torch.channels_last)
            self._networks[key] = network
            if name == "auto":
                self._folded = contextlib.ExitStack()
                with torch.no_grad():
                    self._folded.enter_context(folded(network))
        return self._networks[key]


def _network(name: str) -> Segmenter:
    """A network in evaluation mode whose normalisation does something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_model(name, CLASSES).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.8, 1.2)
    return network


@torch.no_grad()
def _ours(network: Segmenter, image: Tensor, target: Tensor) -> Tensor:
    (prediction,) = infer(lambda images: (network(images).logits,), image, Inference())
    return prediction.confusion(target)


@torch.no_grad()
def _logits(network: Segmenter, image: Tensor) -> Tensor:
    return network(image).logits


def _plain(network: Segmenter, image: Tensor, target: Tensor) -> Tensor:
    logits = _logits(network, image)
    size = target.shape[1:]
    guess = F.interpolate(logits, size=size, mode="bilinear", align_corners=True).argmax(dim=1)
    kept = target != 255
    cells = CLASSES * target[kept].long() + guess[kept]
    return torch.bincount(cells, minlength=CLASSES**2).view(CLASSES, CLASSES)


def test_speed(benchmark, call) -> None:
    benchmark(call)
