"""Evaluation and prediction of a trained network, as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pinmem.data import build_dataset, eval_transform
from pinmem.evaluate import confusion_of, load_trained, open_dataset, score
from pinmem.predict import denormalize, overlay
from pinmem.predict import predict as predict_image
from pinmem.train import TrainConfig, Trainer

from .scenes import streets, tiny_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    Trainer(TrainConfig(**tiny_run(out, iterations=2))).fit()
    return out / "last.pt"


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"pinmem.{program}", *(str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_confusion_equals_counting_argmax(trained: Path) -> None:
    model = load_trained(trained)
    dataset = build_dataset("cityscapes", streets() / "cityscapes", "val", eval_transform())
    counted = torch.zeros(19, 19, dtype=torch.int64)
    for image, target in dataset:
        guess = predict_image(model, image).long()
        for truth, seen in zip(target.flatten().tolist(), guess.flatten().tolist(), strict=True):
            if truth != 255:
                counted[truth, seen] += 1
    got = confusion_of(model, dataset)
    assert got.sum() == counted.sum()
    # Ties within rounding may fall to either side.
    assert (got - counted).abs().sum() <= 1e-3 * counted.sum()


def test_evaluate_prints_every_class_and_the_protocol(trained: Path) -> None:
    result = run("evaluate", "--checkpoint", trained, "--dataset", f"gtav={streets() / 'gtav'}")
    assert result.returncode == 0, result.stderr
    for word in ("road", "bicycle", "mIoU", "protocol: whole images", "2 images"):
        assert word in result.stdout
    expected = score(
        confusion_of(load_trained(trained), open_dataset("d", f"gtav={streets() / 'gtav'}", "val"))
    )
    assert f"{100 * expected.miou:.2f}" in result.stdout


def test_predict_writes_labels_and_overlays(trained: Path, tmp_path: Path) -> None:
    pictures = sorted((streets() / "gtav" / "images").rglob("*.png"))[:2]
    for i, picture in enumerate(pictures):
        Image.open(picture).convert("RGB").save(tmp_path / f"{i}.jpg")
    result = run(
        "predict", "--checkpoint", trained, "--images", tmp_path, "--out", tmp_path / "out"
    )
    assert result.returncode == 0, result.stderr
    labels = np.asarray(Image.open(tmp_path / "out" / "0_labels.png"))
    assert labels.shape == (64, 128) and labels.max() < 19
    assert Image.open(tmp_path / "out" / "1_overlay.png").size == (128, 64)


def test_predict_without_pictures_says_so(trained: Path, tmp_path: Path) -> None:
    result = run("predict", "--checkpoint", trained, "--images", tmp_path, "--out", tmp_path / "o")
    assert result.returncode == 2 and "no picture" in result.stderr
    assert not (tmp_path / "o").exists()


def test_overlay_and_denormalize() -> None:
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    normalised, _ = eval_transform()(image, torch.zeros(4, 5, dtype=torch.uint8))
    assert (denormalize(normalised).int() - image.int()).abs().max() <= 1
    road = torch.zeros(4, 5, dtype=torch.uint8)
    assert torch.equal(overlay(image, road, opacity=0.0), image)
    assert overlay(image, road, opacity=1.0)[:, 0, 0].tolist() == [128, 64, 128]


def test_a_subset_is_spread_evenly() -> None:
    dataset = open_dataset("d", f"gtav={streets() / 'gtav'}", "train", count=2)
    assert dataset.indices == [0, 3]
