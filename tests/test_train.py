"""Training end to end: modes, logs, and a killed run that ends bitwise as one left alone."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from pinmem import checkpoint
from pinmem.config import TrainConfig
from pinmem.data import eval_transform
from pinmem.evaluate import load_trained, score
from pinmem.run_state import state_of
from pinmem.step import loss_weights_of
from pinmem.train import Trainer

from .kill_check import differences
from .scenes import tiny_run

MODES = ("joint", "mldg", "memory-joint", "memory-mldg")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_and_leaves_its_files(mode: str, tmp_path: Path) -> None:
    config = TrainConfig(**tiny_run(tmp_path / "run", mode=mode, iterations=2))
    scores = Trainer(config).fit()
    assert set(scores) == {"seen/gtav", "seen/synthia", "unseen/cityscapes"}
    assert all(0 <= value <= 1 for value in scores.values())
    for name in ("last.pt", "best.pt", "log.txt", "scores.txt", "config.yaml"):
        assert (tmp_path / "run" / name).stat().st_size > 0, name
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    pictures = sorted((tmp_path / "run" / "overlays" / "unseen" / "cityscapes").iterdir())
    assert [p.name for p in pictures] == ["000000.png", "000002.png"]
    model = load_trained(tmp_path / "run" / "last.pt")
    assert (model.memory is not None) == mode.startswith("memory")
    log = (tmp_path / "run" / "log.txt").read_text()
    for word in ("images/s", "GiB peak", "ETA", "at the start", "at the end", "best.pt"):
        assert word in log, word
    again = TrainConfig(**yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()))
    assert again.mode == mode and again.sources == config.sources


def test_training_learns(tmp_path: Path) -> None:
    """The loss of a few images falls when they are trained on again and again."""
    trainer = Trainer(TrainConfig(**tiny_run(tmp_path, iterations=12, inner_lr=0.01)))
    draws = trainer.batches.loader(0)
    images, labels = next(iter(draws))
    totals = [float(trainer.step(images, labels)["outer"].total) for _ in range(12)]
    assert all(math.isfinite(t) for t in totals)
    assert min(totals[-3:]) < 0.75 * totals[0]


def start(config: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pinmem.train", "--config", str(config), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_killed_and_resumed_in_second_order(tmp_path: Path) -> None:
    options = tiny_run(
        tmp_path / "whole", iterations=5, workers=1, meta_order=2, validate_images=1,
    )  # fmt: skip
    Trainer(TrainConfig(**options)).fit()

    broken = tmp_path / "broken"
    file = tmp_path / "broken.yaml"
    TrainConfig(**(options | {"out": str(broken)})).save(file)
    # Once after a checkpoint in the middle, then again at a moment of the clock's choosing.
    for reached, wait in ((1, 0.0), (3, 0.3)):
        process = start(file, "--resume", "true")
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            last = broken / "last.pt"
            if last.exists() and checkpoint.load(last)["iteration"] >= reached:
                break
            time.sleep(0.05)
        assert process.poll() is None, process.stdout.read().decode()  # type: ignore[union-attr]
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert reached <= checkpoint.load(last)["iteration"] < 5
    Trainer(TrainConfig(**(options | {"out": str(broken), "resume": True}))).fit()
    assert differences(tmp_path / "whole", broken) == []
    assert "resumed at iteration" in (broken / "log.txt").read_text()


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    options = tiny_run(tmp_path / "run", iterations=1)
    scores = Trainer(TrainConfig(**options)).fit()
    for name in ("before", "restored"):
        shutil.copytree(tmp_path / "run", tmp_path / name)
    again = Trainer(TrainConfig(**options, resume=True))
    checkpoint.save(tmp_path / "restored" / "last.pt", state_of(again))
    assert again.fit() == scores and again.best > 0
    for name in ("before", "restored"):
        assert differences(tmp_path / name, tmp_path / "run") == []


def test_resume_without_a_checkpoint_starts(tmp_path: Path) -> None:
    trainer = Trainer(TrainConfig(**tiny_run(tmp_path / "run", resume=True)))
    assert trainer.iteration == 0


def test_the_data_of_an_iteration_does_not_depend_on_workers(tmp_path: Path) -> None:
    batches = []
    for workers in (0, 2):
        options = tiny_run(tmp_path / str(workers), workers=workers, batch_size=2)
        images, labels = next(iter(Trainer(TrainConfig(**options)).batches.loader(1)))
        batches.append((images, labels))
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][1], batches[1][1])


def test_memory_starts_as_class_means(tmp_path: Path) -> None:
    """Against the definition, written once more over the whole set of draws."""
    trainer = Trainer(TrainConfig(**tiny_run(tmp_path, memory_init_draws=2, batch_size=4)))
    seen = []
    encode = trainer.model.encode

    def watched(images: torch.Tensor):
        features = encode(images)
        seen.append(features.query)
        return features

    trainer.model.encode = watched  # type: ignore[method-assign]
    labels_seen = []
    original = trainer.report.track

    def track(items, what):
        for item in original(items, what):
            labels_seen.append(item[1])
            yield item

    trainer.report.track = track  # type: ignore[method-assign]
    trainer.initialise_memory()
    memory = trainer.model.memory
    assert memory is not None and len(seen) == 1
    query = torch.cat(seen)
    labels = torch.cat([batch.transpose(0, 1).flatten(0, 1) for batch in labels_seen])
    q = torch.nn.functional.normalize(query, dim=1)
    for k in range(19):
        soft = torch.nn.functional.interpolate(
            (labels == k)[:, None].float(), q.shape[2:], mode="bilinear", align_corners=True
        )
        total = (q * soft).sum((0, 2, 3))
        expected = total / total.norm() if soft.sum() > 0 else torch.zeros_like(total)
        torch.testing.assert_close(memory.memory[k], expected, atol=1e-5, rtol=1e-4)


def test_schedules() -> None:
    from pinmem.step import rate_of

    options = {"sources": ["a=b"], "iterations": 100, "lr": 0.01}
    rates = {
        name: rate_of(TrainConfig(**options, schedule=name), 60)
        for name in ("exp", "poly", "constant")
    }
    assert rates["exp"] == pytest.approx(0.01 * math.exp(-9 * 60 / 120_000))
    assert rates["poly"] == pytest.approx(0.01 * 0.4**0.9)
    assert rates["constant"] == 0.01


def test_every_option_weighs_its_loss() -> None:
    names = ("aux", "reading", "divergence", "classification", "whitening")
    options = {f"{name}_weight": 0.1 * i for i, name in enumerate(names, start=1)}
    weights = loss_weights_of(TrainConfig(sources=["a=b"], **options))
    assert {f"{name}_weight": getattr(weights, name) for name in names} == options


def test_iterations_have_splits_of_their_own(tmp_path: Path) -> None:
    batches = Trainer(TrainConfig(**tiny_run(tmp_path))).batches
    splits = [batches.split(iteration) for iteration in range(20)]
    assert splits == [batches.split(iteration) for iteration in range(20)]
    assert sorted({train[0] for train, _ in splits}) == [0, 1]


def test_hard_domains_are_always_jittered(tmp_path: Path) -> None:
    """An image of one colour keeps it where there is no jitter: half the images of the others."""
    batches = Trainer(TrainConfig(**tiny_run(tmp_path, batch_size=16))).batches
    grey = torch.full((16, 2, 3, 8, 8), 100, dtype=torch.uint8)
    same = [
        (batches.augment(grey, [hard], 0) - eval_transform()(grey, None)[0]).abs().amax((2, 3, 4))
        < 1e-3
        for hard in (0, 1)
    ]
    for hard, found in enumerate(same):
        assert not found[:, hard].any()
        assert 2 < found[:, 1 - hard].sum() < 14


def test_score_counts_only_classes_that_occur() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    result = score(confusion)
    assert result.iou.tolist()[:2] == [0.75, 0.8]
    assert result.iou[2].isnan()
    assert result.miou == pytest.approx(0.775)


def test_info_names_every_op() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "pinmem.info"], capture_output=True, text=True, check=True
    ).stdout
    from pinmem import ops

    for op in ops.__all__:
        assert op in shown
    for word in ("torch", "triton", "backend: auto"):
        assert word in shown
    assert ("not cuda: no CUDA device" in shown) == (not torch.cuda.is_available())
