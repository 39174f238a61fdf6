"""The baseline of the training step does what the release does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pinmem
from benchmarks import published, stream_check
from benchmarks.case import cases
from benchmarks.plan import SMOKE_SIZE, Plan
from benchmarks.published_step import PublishedTrainer
from pinmem.losses import LossWeights
from pinmem.meta import gather_domains

from .test_golden import HERE, build, close, files, load_recipe, log_of, memory_name

PLAN = Plan("cpu", True, sizes=(SMOKE_SIZE,), dtypes=(torch.float32,))


@pytest.mark.parametrize("path", files("memory_*.npz"), ids=lambda p: p.stem)
def test_published_memory(path: Path) -> None:
    """The memory module alone: what the release computes, and its gradients."""
    golden = np.load(path)
    slots = torch.from_numpy(golden["memory"]).double()
    momentum, temperature = float(golden["momentum"]), float(golden["temperature"])
    module = pinmem.ClassMemory(*slots.shape, momentum, temperature)
    load_recipe(module, memory_name, torch.float64)
    labels = torch.from_numpy(golden["mask"]).long()
    query = torch.from_numpy(golden["query"]).double().requires_grad_()

    found = published.read(module, slots, query, labels)
    written = published.write(module, slots, query, labels)
    loss = (
        (found.features * torch.from_numpy(golden["w_query"])).mean()
        + 0.3 * found.loss
        + 0.4 * written.divergence
        + 0.2 * written.classification
        + (written.slots * torch.from_numpy(golden["w_memory"])).sum()
    )
    loss.backward()
    values = {
        "read_out": found.features,
        "score_query": found.over_pixels,
        "score_memory": found.over_slots,
        "read_loss": found.loss,
        "div_loss": written.divergence,
        "cls_loss": written.classification,
        "new_memory": written.slots,
        "loss": loss,
        "grad_query": query.grad,
    }
    values |= {f"grad/{memory_name(n)}": p.grad for n, p in module.named_parameters()}
    for name, value in values.items():
        assert value is not None, name
        close(name, value, golden[name], 1e-9)


def published_steps(iterations: int):
    """Run the golden meta-iterations with the published procedure."""
    golden = np.load(HERE / "meta_memory_mldg_r18.npz")
    model, config = build(golden, torch.float64)
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config["lr"], momentum=config["momentum"], weight_decay=5e-4
    )
    weights = LossWeights(
        aux=0.0 if config["no_aux_loss"] else 0.4,
        reading=config["mem_readloss"],
        divergence=config["mem_divloss"],
        classification=config["mem_clsloss"],
    )
    trainer = PublishedTrainer(model, optimizer, weights)
    for i in range(iterations):
        images = torch.from_numpy(golden["images"][i]).double()
        labels = torch.from_numpy(golden["labels"][i]).long()
        sides = [json.loads(str(golden[f"splits_{side}"][i])) for side in ("train", "test")]
        batches = [gather_domains(images, labels, side) for side in sides]
        with stream_check.CountHostReads() as reads:
            losses = trainer.step(*batches, config["inner_lr"])
        yield golden, [log_of(log) for log in losses], trainer.slots, reads.count


def test_published_step() -> None:
    """One iteration: both passes' losses and the memory after it."""
    golden, logs, slots, reads = next(published_steps(1))
    close("memory", slots, golden["memory"][0], 1e-7)
    for j, log in enumerate(logs):
        for name, value in log.items():
            close(f"log/{name}[{j}]", value, golden[f"log/{name}"][j], 1e-7, 1e-9)
    # It asks the host about each of 19 classes in each of three writes, and logs two losses.
    assert reads >= 3 * 19 + 2


def test_published_step_leaves_its_copies_attached() -> None:
    """The outer gradient arrives at the trained network, not at the copies."""
    (case,) = cases(PLAN, ["training_step"])
    step = case.call("published")
    before = [p.detach().clone() for p in step.network.parameters()]
    memory = step.published.slots.clone()
    step()
    moved = [not torch.equal(a, b) for a, b in zip(before, step.network.parameters(), strict=True)]
    assert all(moved)
    assert not torch.equal(memory, step.published.slots)
    writer = dict(step.published.writer.named_parameters())
    assert {n for n, p in writer.items() if p.requires_grad} == {
        n for n in writer if n.startswith("memory.")
    }
