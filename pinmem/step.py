"""The step that a run's options ask for: what the trainer takes and ``--plan`` weighs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pinmem.config import TrainConfig
from pinmem.distributed import Ranks
from pinmem.extras import NVIDIA, apex_state, optional
from pinmem.loss_scale import LossScale
from pinmem.losses import Losses, LossWeights
from pinmem.meta import gather_domains, joint_step, mldg_step
from pinmem.models import Segmenter
from pinmem.passes import Batch


def amp_dtype_of(config: TrainConfig) -> torch.dtype | None:
    """The type a run autocasts to; None computes in the parameters' own."""
    return None if config.amp == "none" else getattr(torch, config.amp)


def loss_scale_of(config: TrainConfig) -> LossScale | None:
    """What a float16 run scales its losses with."""
    return LossScale() if config.amp == "float16" else None


def loss_weights_of(config: TrainConfig) -> LossWeights:
    """The losses' weights of a run."""
    return LossWeights(
        config.aux_weight,
        config.reading_weight,
        config.divergence_weight,
        config.classification_weight,
        config.whitening_weight,
    )


def be_deterministic(wanted: bool) -> None:
    """Whether PyTorch's own GPU algorithms are deterministic from here on, as all of ours are."""
    if wanted:
        # Read when cuBLAS starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    # Every output is written: poisoning it first is a test's work.
    torch.utils.deterministic.fill_uninitialized_memory = not wanted  # type: ignore[attr-defined]


def rate_of(config: TrainConfig, iteration: int) -> float:
    """The optimiser's rate at an iteration."""
    if config.schedule == "exp":
        return config.lr * math.exp(-9 * iteration / 120_000)
    if config.schedule == "poly":
        return config.lr * (1 - min(iteration / config.iterations, 1)) ** 0.9
    return config.lr


def compile_parts(model: Segmenter) -> None:
    """torch.compile the backbone and the heads; what is read and written by ops stays as it is."""
    for part in (model.backbone, model.aspp, model.bottleneck, model.low_level, model.decoder):
        if part is not None:
            part.compile()


def build_optimizer(config: TrainConfig, model: Segmenter) -> torch.optim.Optimizer:
    """The optimiser of a run.

    Raises:
        ValueError: ``apex_sgd`` without NVIDIA's apex, or for a network that is not on a GPU.
    """
    how: dict[str, Any] = {
        "lr": config.lr,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), **how, fused=True)
    apex = apex_state()
    if apex != NVIDIA:
        raise ValueError(f"optimizer: got apex_sgd, which is NVIDIA's apex; apex: {apex}")
    device = next(model.parameters()).device
    if device.type != "cuda":
        raise ValueError(f"optimizer: got apex_sgd on {device}, expected a GPU")
    return optional("apex.optimizers", "apex", "apex_sgd").FusedSGD(model.parameters(), **how)


def batches_of(
    images: Tensor, labels: Tensor, split: tuple[Sequence[int], Sequence[int]]
) -> list[Batch]:
    """The batches of an iteration: meta-train and meta-test, or one where nothing is split.

    Args:
        images: [B,D,3,h,w], normalised.
        labels: [B,D,h,w].
        split: meta-train and meta-test domains; where the mode has no split, all and none.
    """
    return [gather_domains(images, labels, domains) for domains in split if domains]


def iterate(
    config: TrainConfig,
    model: Segmenter,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    inner_lr: float | Tensor,
    scale: LossScale | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Losses]:
    """The step that the options ask for.

    Args:
        config: the mode, the order, the losses' weights and the type.
        model: the network, in training mode.
        optimizer: over its parameters.
        batches: of `batches_of`: one, or meta-train and meta-test.
        inner_lr: rate of the inner step.
        scale: of the losses, in float16.
        ranks: that share the batch; images and labels are this one's.
    """
    weights = loss_weights_of(config)
    how: dict[str, Any] = {
        "amp_dtype": amp_dtype_of(config),
        "scale": scale,
        "accumulate": config.accumulate,
        "checkpoint": config.checkpoint_activations,
        "ranks": ranks,
    }
    if not config.meta:
        return {"train": joint_step(model, optimizer, batches[0], weights, **how)}
    train, test = batches
    inner, outer = mldg_step(
        model,
        optimizer,
        train,
        test,
        inner_lr,
        weights,
        order=config.meta_order,
        lean=config.lean_second_order,
        **how,
    )
    return {"inner": inner, "outer": outer}
