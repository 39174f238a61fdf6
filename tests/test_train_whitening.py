"""ISW in a run: covariances are chosen once, and a resumed run goes on with them."""

from __future__ import annotations

from pathlib import Path

import torch

from pinmem import checkpoint
from pinmem.config import TrainConfig
from pinmem.train import Trainer

from .scenes import tiny_run


def test_covariances_are_chosen_and_survive_a_resume(tmp_path: Path) -> None:
    options = {
        "model": "deeplabv3plus_r50_isw", "mode": "joint", "whitening_start": 1,
        "whitening_draws": 2, "validate_every": 0, "validate_images": 1,
    }  # fmt: skip
    whole = Trainer(TrainConfig(**tiny_run(tmp_path / "whole", iterations=2, **options)))
    assert not any(mask.any() for mask in whole.model.backbone.masks)
    whole.fit()
    for mask in whole.model.backbone.masks:
        assert mask.any() and not mask.tril().any()
    part = tiny_run(tmp_path / "part", iterations=1, **options)
    Trainer(TrainConfig(**part)).fit()
    Trainer(TrainConfig(**(part | {"iterations": 2, "resume": True}))).fit()
    states = [checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "part")]
    for key, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][key]), key
    for one, other in zip(states[0]["whitening"], states[1]["whitening"], strict=True):
        assert torch.equal(one, other)
