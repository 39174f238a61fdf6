"""Numbers that are not finite end a run before anything of them is saved."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pinmem import checkpoint, loop
from pinmem.batches import Batches
from pinmem.config import TrainConfig
from pinmem.evaluate import load_trained
from pinmem.health import NotFinite
from pinmem.train import Trainer

from .kill_check import check_whole, differences
from .scenes import at, end_of, small_run, streets


def test_a_huge_rate_ends_with_status_1_and_nothing_bad_on_disk(tmp_path, capsys):
    options = small_run(tmp_path, lr=1e30, iterations=8, checkpoint_every=1, validate_every=1)
    status, error = end_of(options, capsys)
    assert status == 1 and error.startswith("error: iteration ") and error.count("\n") == 1
    for word in ("not finite", "its batch: ", str(streets() / "gtav"), "last.pt is of iteration"):
        assert word in error, error
    for name in ("last.pt", "best.pt"):
        load_trained(tmp_path / name)  # refuses what is not finite
    scores = [s for s in (tmp_path / "scores.txt").read_text().splitlines() if "iteration" in s]
    saved = checkpoint.load(tmp_path / "last.pt")["iteration"]
    assert scores and all(int(line.split()[1].strip(",")) <= saved for line in scores)


def harm_memory(trainer: Trainer) -> None:
    assert trainer.model.memory is not None
    trainer.model.memory.memory[3, 0] = torch.nan


def harm_weight(trainer: Trainer) -> None:
    next(trainer.model.parameters()).data[0, 0] = torch.inf


@pytest.mark.parametrize(
    ("harm", "named"), [(harm_memory, "memory/norm (inner/total"), (harm_weight, "backbone.")]
)
def test_memory_and_weights_are_watched(harm, named: str, tmp_path: Path) -> None:
    trainer = Trainer(TrainConfig(**small_run(tmp_path)))
    at(trainer, 1, lambda: harm(trainer))
    with pytest.raises(NotFinite, match=r"iteration 2: not finite") as caught:
        trainer.fit()
    assert named in str(caught.value) and "is of iteration 1" in str(caught.value)
    files = trainer.batches.files(1)
    assert len(files) == 4 and all(str(path) in str(caught.value) for path in files)
    assert checkpoint.load(tmp_path / "last.pt")["iteration"] == 1


def test_gradients_are_watched(tmp_path: Path) -> None:
    trainer = Trainer(TrainConfig(**small_run(tmp_path, mode="joint", lr=0.0)))
    weight = next(trainer.model.parameters())
    weight.register_hook(lambda grad: grad * (torch.inf if trainer.iteration else 1))
    with pytest.raises(NotFinite, match=r"iteration 2: not finite: gradient/norm"):
        trainer.fit()


def test_on_a_gpu_numbers_are_read_when_they_are_wanted(tmp_path: Path, monkeypatch) -> None:
    """With the CPU taken for another device: one reading an interval, none bad saved."""
    trainer = Trainer(TrainConfig(**small_run(tmp_path, log_every=3, checkpoint_every=4,
                                              iterations=6, validate_every=0)))  # fmt: skip
    trainer.device = torch.device("meta")
    trainer.batches.loader = Batches(  # type: ignore[method-assign]
        trainer.config, trainer.sources, torch.device("cpu")
    ).loader
    step, read = trainer.step, []

    def stepped(images, labels):
        trainer.device = torch.device("cpu")
        try:
            return step(images, labels)
        finally:
            trainer.device = torch.device("meta")

    trainer.step = stepped  # type: ignore[method-assign]
    at(trainer, 3, lambda: harm_memory(trainer))
    fetch = trainer.watch.fetch
    trainer.watch.fetch = lambda: read.append(trainer.iteration) or fetch()  # type: ignore
    trainer.has_memory = True
    with pytest.raises(NotFinite, match=r"iteration 4: .*is of iteration 0"):
        trainer.fit()
    assert set(read) == {0, 3, 4}


def test_on_a_gpu_the_last_row_has_losses(tmp_path: Path, monkeypatch) -> None:
    """An interval that the last iteration cuts short is read too."""
    trainer = Trainer(TrainConfig(**small_run(tmp_path, log_every=3, iterations=4)))
    added = []
    trainer.report.add = lambda rows: added.append((trainer.iteration, len(rows)))  # type: ignore
    trainer.device = SimpleNamespace(type="cuda")  # type: ignore[assignment]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    trainer.step = lambda images, labels: {}  # type: ignore[method-assign]
    trainer.watch.fetch = lambda: [{}]  # type: ignore[method-assign]
    trainer.has_memory = True
    trainer.validate = trainer.save = lambda *_: None  # type: ignore[assignment, method-assign]
    trainer.batches.loader = lambda _: [(None, None)] * 9  # type: ignore
    loop._iterate(trainer)
    assert added == [(3, 1), (4, 1)]


def test_no_scale_of_the_losses_makes_it_finite(tmp_path: Path) -> None:
    """float16 whose forward pass overflows ends the run, instead of skipping every iteration."""
    trainer = Trainer(TrainConfig(**small_run(tmp_path, mode="joint", amp="float16")))
    assert trainer.scale is not None
    trainer.scale.value = 2.0**-14
    next(trainer.model.parameters()).register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(NotFinite, match=r"iteration 1: .*whatever the losses' scale, 3e-05; its b"):
        trainer.fit()


def test_bad_batches_are_skipped_up_to_a_number(tmp_path: Path) -> None:
    for name, every in (("a", 1), ("b", 3)):
        options = small_run(tmp_path / name, skip_bad_batches=1, iterations=4)
        trainer = Trainer(TrainConfig(**options | {"checkpoint_every": every}))
        at(trainer, 1, lambda trainer=trainer: harm_memory(trainer))
        trainer.fit()
        assert trainer.skipped == [1]
        log = (tmp_path / name / "log.txt").read_text()
        assert "iteration 2: not finite" in log and "1 skipped" in log
    # However far it went back, the other iterations are the same.
    assert differences(tmp_path / "a", tmp_path / "b") == []
    check_whole(tmp_path / "a")
    trainer = Trainer(TrainConfig(**small_run(tmp_path / "c", skip_bad_batches=1)))
    at(at(trainer, 1, lambda: harm_memory(trainer)), 2, lambda: harm_memory(trainer))
    with pytest.raises(NotFinite, match="iteration 3"):
        trainer.fit()
    assert checkpoint.load(tmp_path / "c" / "last.pt")["skipped"] == [1]
