"""An iteration that is replayed is the iteration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pinmem.config import TrainConfig
from pinmem.cuda_graph import GraphedStep
from pinmem.health import Watch
from pinmem.losses import Losses
from pinmem.models import build_model
from pinmem.passes import Batch
from pinmem.step import be_deterministic, build_optimizer, iterate
from pinmem.train import Trainer

from .scenes import SMALL, end_of, tiny_run

# Exact in float32, which is what a graph reads them in; small, since so small a network multiplies
# a difference of rounding by ten in every iteration at rates of 0.01.
RATES = [2**-11, 2**-12, 2**-11, 2**-13, 2**-10, 2**-11, 2**-12, 2**-13]


def trained(
    graphed: bool,
    dtype: torch.dtype,
    each: Callable[[Watch], None] | None = None,
    rates: Sequence[float] = RATES,
    **options: Any,
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Losses of some iterations on batches of two sizes, and the network after them."""
    config = TrainConfig(sources=["a=a", "b=b", "c=c"], cuda_graph=graphed, **options)
    config.validate()
    torch.manual_seed(0)
    model = build_model(SMALL, 19, memory=config.has_memory)
    if model.memory is not None:
        model.memory.gumbel = "training"
    model = model.to("cuda", dtype).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(config, model)
    watch = Watch(model, optimizer, lambda _: [])
    step = GraphedStep(config, model, optimizer) if graphed else None
    batches = [
        Batch(
            torch.randn(4 * n, 3, 64, 96, device="cuda", dtype=dtype),
            torch.randint(19, (4 * n, 64, 96), device="cuda", dtype=torch.uint8),
        )
        for n in (1, 2, 1)
    ]
    losses = []
    for iteration, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        pair = batches[iteration % 2 :][:2] if config.meta else batches[:1]
        if step is None:
            found = iterate(config, model, optimizer, pair, rate / 4)
        else:
            found = step(pair, rate / 4)
        losses += [value.clone() for side in found.values() for value in side]
        if each is not None:
            each(watch)
    if step is not None:
        assert all(recording.graph is not None for recording in step._recordings.values())
    return losses, model.state_dict()


@pytest.fixture
def deterministic() -> Iterator[None]:
    be_deterministic(True)
    yield
    be_deterministic(False)


OPTIONS: dict[str, dict[str, Any]] = {
    "memory-mldg": {},
    "second order": {"meta_order": 2},
    "mldg": {"mode": "mldg"},
    "joint": {"mode": "joint"},
    "memory-joint": {"mode": "memory-joint"},
    "bfloat16": {"amp": "bfloat16"},
}


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in OPTIONS
        for dtype in (torch.float64, torch.float32)
        if (name, dtype) != ("bfloat16", torch.float64)  # which autocast leaves alone
    ],
)
def test_replayed_is_computed(name: str, dtype: torch.dtype) -> None:
    """Losses, and how far weights, statistics and memory have moved, each for itself."""
    start = trained(False, dtype, rates=[], **OPTIONS[name])[1]
    losses, end = trained(False, dtype, **OPTIONS[name])
    replayed, same = trained(True, dtype, **OPTIONS[name])
    exact = dtype == torch.float64
    close = {"rtol": 1e-6, "atol": 1e-8} if exact else {"rtol": 0.01, "atol": 0.001}
    torch.testing.assert_close(replayed, losses, **close)
    for kind in ("weight", "running_", "memory.memory"):
        names = [name for name in start if kind in name]
        if not names:  # without a memory
            continue
        moved, also = (
            torch.cat([(state[name] - start[name]).flatten() for name in names])
            for state in (end, same)
        )
        assert moved.norm() > 0
        assert (also - moved).norm() <= (1e-6 if exact else 0.2) * moved.norm(), kind


@pytest.mark.gpu
def test_a_run_of_replays(tmp_path: Path) -> None:
    """It is logged, validated and saved as any, and goes on after it was stopped."""
    # A worker: then a thread pins memory while an iteration is recorded.
    options = tiny_run(
        tmp_path / "run", device="cuda", cuda_graph=True, iterations=8, lr=0.02, workers=1,
        log_every=3, checkpoint_every=100, validate_every=0,
    )  # fmt: skip
    whole = Trainer(TrainConfig(**options))
    whole.fit()
    stopped = options | {"out": str(tmp_path / "stopped"), "iterations": 5, "schedule": "constant"}
    Trainer(TrainConfig(**stopped)).fit()
    again = Trainer(TrainConfig(**stopped | {"iterations": 8, "resume": True}))
    again.fit()
    assert again.iteration == 8
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-2])
    assert last["iteration"] == 8 and last["loss/inner/total"] > 0
    assert whole.graphed is not None and again.graphed is not None
    assert all(parameter.isfinite().all() for parameter in again.model.parameters())


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
def test_every_graph_writes_the_norm_that_is_watched() -> None:
    """The norm of the gradient, whichever split's graph is replayed."""
    found = [norms(graphed) for graphed in (False, True)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=0)
    assert len(set(found[0])) == len(found[0])


def norms(graphed: bool) -> list[float]:
    noted: list[float] = []

    def note(watch: Watch) -> None:
        watch.add(len(noted), {"train": Losses(*torch.zeros(len(Losses._fields), device="cuda"))})
        noted.append(watch.fetch()[0]["gradient/norm"])

    trained(graphed, torch.float64, each=note)
    return noted


@pytest.mark.gpu
def test_an_iteration_waits_for_nothing(tmp_path: Path) -> None:
    """From the batch on the host to the step: no operator makes Python wait for the GPU."""
    trainer = Trainer(TrainConfig(**tiny_run(tmp_path, device="cuda")))
    images, labels = next(iter(trainer.batches.loader(0)))
    images, labels = images.pin_memory(), labels.pin_memory()
    for _ in range(2):  # what is made once
        trainer.step(images, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.watch.add(0, trainer.step(images, labels))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"amp": "float16"}, "amp float16"),
        ({"accumulate": 2, "batch_size": 4}, "accumulate"),
        ({"checkpoint_activations": True}, "checkpoint_activations"),
        ({"meta_order": 2, "lean_second_order": True}, "lean_second_order"),
        ({}, "expected a GPU"),
    ],
)
def test_what_cannot_be_recorded(
    options: dict[str, Any], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, error = end_of(tiny_run(tmp_path, cuda_graph=True, **options), capsys)
    assert status == 2 and error.startswith("error: cuda_graph: got true") and word in error
