"""An iteration that is replayed is the iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pinmem.config import TrainConfig
from pinmem.cuda_graph import GraphedStep
from pinmem.models import build_model
from pinmem.passes import Batch
from pinmem.step import be_deterministic, build_optimizer, iterate
from pinmem.train import Trainer

from .scenes import SMALL, end_of, tiny_run

# Exact in float32, which is what a graph reads them in; small, since so small a network multiplies
# a difference of rounding by ten in every iteration at rates of 0.01.
RATES = [2**-11, 2**-12, 2**-11, 2**-13, 2**-10, 2**-11, 2**-12, 2**-13]


def trained(
    graphed: bool, dtype: torch.dtype, **options: Any
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Losses of eight iterations on batches of two sizes, and the weights after them."""
    config = TrainConfig(sources=["a=a", "b=b", "c=c"], cuda_graph=graphed, **options)
    config.validate()
    be_deterministic(True)
    torch.manual_seed(0)
    model = build_model(SMALL, 19, memory=config.has_memory)
    if model.memory is not None:
        model.memory.gumbel = "training"
    model = model.to("cuda", dtype).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(config, model)
    step = GraphedStep(config, model, optimizer) if graphed else None
    batches = [
        Batch(
            torch.randn(4 * n, 3, 64, 96, device="cuda", dtype=dtype),
            torch.randint(19, (4 * n, 64, 96), device="cuda", dtype=torch.uint8),
        )
        for n in (1, 2, 1)
    ]
    losses = []
    for iteration, rate in enumerate(RATES):
        for group in optimizer.param_groups:
            group["lr"] = rate
        pair = batches[iteration % 2 :][:2] if config.meta else batches[:1]
        if step is None:
            found = iterate(config, model, optimizer, pair, rate / 4)
        else:
            found = step(pair, rate / 4)
        losses += [value.clone() for side in found.values() for value in side]
    return losses, model.state_dict()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "options",
    [{}, {"meta_order": 2}, {"mode": "joint"}, {"mode": "memory-joint"}, {"amp": "bfloat16"}],
    ids=["memory-mldg", "second order", "joint", "memory-joint", "bfloat16"],
)
def test_replayed_is_computed(options: dict[str, Any], dtype: torch.dtype) -> None:
    if "amp" in options and dtype == torch.float64:
        options = {"mode": "mldg"}
    exact = dtype == torch.float64
    close = {"rtol": 1e-6, "atol": 1e-8} if exact else {"rtol": 0.01, "atol": 0.001}
    try:
        losses, weights = trained(False, dtype, **options)
        replayed, same = trained(True, dtype, **options)
    finally:
        be_deterministic(False)
    torch.testing.assert_close(replayed, losses, **close)
    torch.testing.assert_close(same, weights, **close)


@pytest.mark.gpu
def test_a_run_of_replays(tmp_path: Path) -> None:
    """It is logged, validated and saved as any, and goes on after it was stopped."""
    options = tiny_run(tmp_path / "run", device="cuda", cuda_graph=True, iterations=8, lr=0.02)
    whole = Trainer(TrainConfig(**options))
    whole.fit()
    stopped = options | {"out": str(tmp_path / "stopped"), "iterations": 5, "schedule": "constant"}
    Trainer(TrainConfig(**stopped)).fit()
    again = Trainer(TrainConfig(**stopped | {"iterations": 8, "resume": True}))
    again.fit()
    assert again.iteration == 8
    assert whole.graphed is not None and again.graphed is not None
    assert all(parameter.isfinite().all() for parameter in again.model.parameters())


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
