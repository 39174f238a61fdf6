"""What a checkpoint holds of a run, and how a run takes it up again: nothing in it is of a rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pinmem import checkpoint
from pinmem.covariances import masks_of
from pinmem.run_folder import recorded

if TYPE_CHECKING:
    from pinmem.train import Trainer


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Everything a resumed run needs."""
    cuda = trainer.device.type == "cuda"
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scale": None if trainer.scale is None else trainer.scale.state_dict(),
        "iteration": trainer.iteration,
        "skipped": trainer.skipped,
        "best": trainer.best,
        "judged_on": trainer.judged_on,
        "validated": trainer.validated,
        "start_scores": trainer.start_scores,
        "scores": trainer.scores,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(trainer.device) if cuda else None,
        "config": dict(vars(recorded(trainer.config))),
        "sources": trainer.fingerprints,
        "classes": trainer.classes.state(),
        "whitening": masks_of(trainer.model),
    }


def restore(trainer: Trainer, content: dict[str, Any]) -> None:
    """Put everything of `state_of` in place."""
    checkpoint.load_model(trainer.folder.last, content, trainer.model)
    trainer.optimizer.load_state_dict(content["optimizer"])
    for group in trainer.optimizer.param_groups:  # which the run may have changed
        group["momentum"] = trainer.config.momentum
        group["weight_decay"] = trainer.config.weight_decay
    if trainer.graphed is not None:
        trainer.graphed.forget()
    if trainer.scale is not None and content["scale"] is not None:
        trainer.scale.load_state_dict(content["scale"])
    trainer.iteration = trainer.saved = content["iteration"]
    for mask, chosen in zip(masks_of(trainer.model), content["whitening"], strict=True):
        mask.copy_(chosen)
    trainer.unsaved = False
    trainer.validated, trainer.skipped = content["validated"], content["skipped"]
    trainer.scores = content["scores"]
    trainer.best = content["best"] if content["judged_on"] == trainer.judged_on else -1.0
    trainer.start_scores = content["start_scores"]
    torch.set_rng_state(content["rng"])
    if trainer.device.type == "cuda" and content["cuda_rng"] is not None:
        torch.cuda.set_rng_state(content["cuda_rng"], trainer.device)
