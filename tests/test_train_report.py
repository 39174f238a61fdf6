"""What a run tells while it runs, and which of its networks it calls the best."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pinmem import checkpoint, report, train
from pinmem.config import TrainConfig
from pinmem.evaluate import Score
from pinmem.prepare import judges
from pinmem.report import similarity
from pinmem.train import Trainer

from .scenes import streets, tiny_run


def small_run(out: Path, **options: object) -> dict:
    network = "deeplabv3plus_shufflenetv2"
    return tiny_run(out, model=network, validate_images=1, memory_init_draws=1, **options)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_metrics_and_tensorboard_have_the_same_numbers(tmp_path: Path, monkeypatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(
        report, "Console", lambda: Console(file=screen, force_terminal=True, width=200)
    )
    Trainer(TrainConfig(**small_run(tmp_path, iterations=2))).fit()
    assert [row["iteration"] for row in rows(tmp_path)] == [0, 1, 2, 2]
    start, first, second, end = rows(tmp_path)
    sides = [f"loss/{side}/{name}" for side in ("inner", "outer") for name in ("total", "reading")]
    for name in (
        *sides, "gradient/norm", "memory/norm", "memory/movement", "memory/similarity", "lr",
        "skipped", "speed/images_per_second", "speed/data_wait", "memory_gib",
    ):  # fmt: skip
        assert first[name] >= 0 or name == "memory/similarity", name
    assert first["memory/movement"] > 0 and 0 < first["speed/data_wait"] < 1
    assert first["loss/inner/total"] != second["loss/inner/total"]
    # A class that no label holds has no IoU: null, not a word that JSON does not have.
    assert {"iou/seen/gtav/road", "miou/unseen/cityscapes"} <= start.keys()
    assert None in [value for name, value in end.items() if name.startswith("iou/")]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    images = board.Tags()["images"]
    assert {"memory/similarity", "unseen/cityscapes"} <= set(images)
    for name in sides:
        shown = [event.value for event in board.Scalars(name)]
        assert shown == pytest.approx([first[name], second[name]])
    text = screen.getvalue()
    for word in ("images/s", "data ", "GiB peak", "ETA 0:", "inner/total", "2/2"):
        assert word in text, word


def test_the_log_says_early_how_long_it_takes(tmp_path: Path) -> None:
    Trainer(TrainConfig(**small_run(tmp_path, iterations=3, log_every=100))).fit()
    log = (tmp_path / "log.txt").read_text()
    assert "iteration 2/3" in log and log.index("ETA") < log.index("iteration 3/3")


def test_what_is_run_again_is_logged_once(tmp_path: Path) -> None:
    options = small_run(tmp_path, checkpoint_every=2, iterations=4)
    trainer = Trainer(TrainConfig(**options))
    step = trainer.step

    def killed(images, labels):
        if trainer.iteration == 3:
            raise KeyboardInterrupt
        return step(images, labels)

    trainer.step = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 2, "cut o')
    assert checkpoint.load(tmp_path / "last.pt")["iteration"] == 2
    Trainer(TrainConfig(**options, resume=True)).fit()
    trained = [row["iteration"] for row in rows(tmp_path) if "lr" in row]
    scored = [row["iteration"] for row in rows(tmp_path) if "miou/seen/gtav" in row]
    assert trained == [1, 2, 3, 4] and scored == [0, 2, 4]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("lr")] == [1, 2, 3, 4]


def test_similarity_is_the_cosine_of_slots() -> None:
    slots = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    shown = similarity(slots, pixels=2)
    assert shown.shape == (1, 8, 8) and shown.dtype == torch.uint8
    assert shown[0, ::2, ::2][0].tolist() == [255, 128, 0, 128]


class Wandb(types.ModuleType):
    """As much of Weights & Biases as a run calls."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict] = []
        self.rows: list[tuple[int, dict]] = []
        self.finished = 0

    def init(self, **options: object) -> Wandb:
        self.started.append(options)
        return self

    def log(self, row: dict, step: int) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        self.finished += 1


def test_weights_and_biases_gets_the_same_rows(tmp_path: Path, monkeypatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    Trainer(TrainConfig(**small_run(tmp_path, iterations=1, logger="wandb"))).fit()
    assert [step for step, _ in wandb.rows] == [row["iteration"] for row in rows(tmp_path)]
    assert wandb.rows[1][1]["loss/outer/total"] == rows(tmp_path)[1]["loss/outer/total"]
    assert wandb.started[0]["config"]["iterations"] == 1 and wandb.finished == 1
    Trainer(TrainConfig(**small_run(tmp_path, iterations=2, logger="wandb", resume=True))).fit()
    assert wandb.started[0]["id"] == wandb.started[1]["id"]


def test_weights_and_biases_that_is_not_installed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"logger: wandb needs wandb: pip install") as caught:
        Trainer(TrainConfig(**small_run(tmp_path / "run", logger="wandb")))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


# The best network


def scored_as(trainer: Trainer, monkeypatch, scores: dict[str, list[float]]) -> None:
    """Let validations give these mIoUs, one after the other."""
    given = {name: iter(values) for name, values in scores.items()}
    names = iter(list(trainer.validation) * 10)
    monkeypatch.setattr(train, "score", lambda _: Score(torch.zeros(19), next(given[next(names)])))


def test_best_is_chosen_on_seen_domains_alone(tmp_path: Path, monkeypatch) -> None:
    trainer = Trainer(TrainConfig(**small_run(tmp_path, iterations=3, validate_every=1)))
    scored_as(trainer, monkeypatch, {
        "seen/gtav": [0.1, 0.5, 0.3, 0.2],
        "seen/synthia": [0.1, 0.3, 0.3, 0.2],
        "unseen/cityscapes": [0.1, 0.2, 0.3, 0.9],
    })  # fmt: skip
    trainer.fit()
    assert checkpoint.load(tmp_path / "best.pt")["iteration"] == 1
    assert trainer.best == pytest.approx(0.4)


def test_a_named_set_chooses_instead(tmp_path: Path, monkeypatch) -> None:
    city = f"synthia={streets() / 'synthia'}"
    options = small_run(tmp_path, iterations=2, validate_every=1, select_on=[city])
    trainer = Trainer(TrainConfig(**options))
    scored_as(trainer, monkeypatch, {
        "seen/gtav": [0.9, 0.1, 0.1], "seen/synthia": [0.9, 0.1, 0.1],
        "select/synthia": [0.1, 0.2, 0.1], "unseen/cityscapes": [0.9, 0.1, 0.1],
    })  # fmt: skip
    trainer.fit()
    assert checkpoint.load(tmp_path / "best.pt")["iteration"] == 1


def test_an_unseen_set_chooses_nothing(tmp_path: Path) -> None:
    options = small_run(tmp_path)
    with pytest.raises(ValueError, match=r"select_on: got 'cityscapes=.*has seen it"):
        TrainConfig(**options | {"select_on": options["unseen"]}).validate()
    assert judges(TrainConfig(**options), ["unseen/cityscapes"]) == []


# The memory's first state


def test_every_batch_of_the_memory_has_draws_of_its_own(tmp_path: Path) -> None:
    options = small_run(tmp_path) | {"memory_init_draws": 4}
    trainer = Trainer(TrainConfig(**options))
    drawn = []

    def drawing(images: torch.Tensor) -> torch.Tensor:
        drawn.append(float(torch.rand(())))
        return images.float() / 255

    trainer.batches._photometric = {False: drawing, True: drawing}  # type: ignore[dict-item]
    assert len(list(trainer._memory_batches())) == 4
    assert len(drawn) == 8 == len(set(drawn))  # a batch has two domains
    again, drawn[:] = list(drawn), []
    list(trainer._memory_batches())
    assert drawn == again
