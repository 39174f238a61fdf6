"""The folder of a run: one run at a time, and what a resumed run may change."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from pinmem import checkpoint
from pinmem.config import TrainConfig
from pinmem.data import Classes
from pinmem.run_folder import check_resume
from pinmem.step import loss_weights_of
from pinmem.train import Trainer

from .scenes import end_of, small_run, streets

_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    Trainer(TrainConfig(**small_run(out))).fit()
    return out


def test_a_folder_in_use_is_refused(whole: Path) -> None:
    code = f"""
        import fcntl, sys
        file = open({str(whole / ".lock")!r}, "w")
        fcntl.lockf(file, fcntl.LOCK_EX)
        print("process 7 on elsewhere", file=file, flush=True)
        print("held", flush=True)
        sys.stdin.read()
    """
    before = (whole / "last.pt").read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError, match="in use by process 7 on elsewhere"):
                Trainer(TrainConfig(**small_run(whole, **how)))
        other.kill()  # the system lets go of the lock
    assert (whole / "last.pt").read_bytes() == before
    trainer = Trainer(TrainConfig(**small_run(whole, resume=True)))
    code = f"import fcntl; fcntl.lockf(open({str(whole / '.lock')!r}, 'a'), {_TRY})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 1
    assert trainer.iteration == 3


def test_a_second_run_into_a_folder(tmp_path: Path, capsys) -> None:
    Trainer(TrainConfig(**small_run(tmp_path, iterations=1))).fit()
    (tmp_path / "notes.txt").write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
    status, error = end_of(small_run(tmp_path, seed=1), capsys)
    assert status == 2 and error.count("\n") == 1
    assert f"out: {tmp_path} holds a run" in error
    assert "--resume true" in error and "--overwrite true" in error
    assert all(path.read_bytes() == content for path, content in before.items())
    with pytest.raises(ValueError, match="overwrite: got true with resume true"):
        TrainConfig(**small_run(tmp_path, resume=True, overwrite=True)).validate()
    # What is wrong with the new run is found before the old one goes.
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such file"):
        Trainer(TrainConfig(**small_run(tmp_path, overwrite=True, start="nowhere.pt")))
    assert (tmp_path / "last.pt").read_bytes() == before[tmp_path / "last.pt"]
    Trainer(TrainConfig(**small_run(tmp_path, overwrite=True, seed=1)))
    assert not (tmp_path / "last.pt").exists() and not list((tmp_path / "overlays").glob("*"))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["overwrite"] is False


OTHER = {
    "mode": "joint", "model": "deeplabv3plus_r50", "weights": "imagenet", "start": "a.pt",
    "freeze": "backbone", "hard_augmentation": "none", "scale": (0.1, 0.2), "crop_size": (8, 8),
    "optimizer": "apex_sgd",
}  # fmt: skip
FIXED = [option.name for option in fields(TrainConfig) if option.metadata.get("fixed")]


@pytest.mark.parametrize("name", FIXED)
def test_options_a_resumed_run_must_share(name: str, whole: Path) -> None:
    content = checkpoint.load(whole / "last.pt")
    config = TrainConfig(**content["config"])
    old = getattr(config, name)
    if name in OTHER:
        other: object = OTHER[name]
    else:
        other = not old if isinstance(old, bool) else (old or 0) + 1
    setattr(config, name, other)
    classes = Classes.of_state(content["classes"])
    with pytest.raises(ValueError, match=rf"^{name}: got .*last\.pt was trained with"):
        check_resume(whole / "last.pt", content, config, content["sources"], classes)


def test_options_that_may_change_are_applied(whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    changed = {
        "iterations": 4, "lr": 0.003, "momentum": 0.5, "weight_decay": 0.0, "schedule": "constant",
        "inner_lr": 0.5, "inner_lr_anneal": False, "aux_weight": 0.1, "memory_momentum": 0.5,
        "workers": 1, "validate_every": 0, "validate_images": 2, "unseen": [],
    }  # fmt: skip
    trainer = Trainer(TrainConfig(**small_run(out, resume=True) | changed))
    group = trainer.optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.0)
    assert trainer.inner_lr == 0.5 and loss_weights_of(trainer.config).aux == 0.1
    assert trainer.model.memory is not None and trainer.model.memory.momentum == 0.5
    assert trainer.best == -1.0  # on other images, so that the scores do not compare
    assert set(trainer.fit()) == {"seen/gtav", "seen/synthia"}
    assert group["lr"] == 0.003
    log = (out / "log.txt").read_text()
    written = yaml.safe_load((out / "config.yaml").read_text())
    for name, value in changed.items():
        assert written[name] == value and f"applied from here: {name} " in log, name
    assert checkpoint.load(out / "last.pt")["iteration"] == 4


def test_iterations_already_done_are_refused(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"iterations: got 2, but .*last\.pt is of iteration 3"):
        Trainer(TrainConfig(**small_run(whole, resume=True, iterations=2)))


def test_a_moved_dataset_is_the_same_and_a_changed_one_is_not(whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    moved = Path(shutil.copytree(streets(), tmp_path / "elsewhere"))
    sources = [f"gtav={moved / 'gtav'}", f"synthia={moved / 'synthia'}"]
    options = small_run(out, resume=True, sources=sources, iterations=4)
    Trainer(TrainConfig(**options)).fit()
    assert checkpoint.load(out / "last.pt")["config"]["sources"] == sources
    before = (out / "last.pt").read_bytes()
    image = sorted((moved / "synthia").rglob("*.png"))[0]
    image.write_bytes(image.read_bytes() + b"0")
    with pytest.raises(ValueError, match=r"sources: the files of synthia=.*differ") as caught:
        Trainer(TrainConfig(**options))
    assert "\n" not in str(caught.value) and (out / "last.pt").read_bytes() == before


def test_weights_of_other_classes_begin_no_run(whole: Path, tmp_path: Path) -> None:
    content = checkpoint.load(whole / "last.pt")
    names = content["classes"]["names"]
    names[:2] = names[1::-1]
    checkpoint.save(tmp_path / "other.pt", content)
    options = small_run(tmp_path / "run", start=str(tmp_path / "other.pt"))
    with pytest.raises(
        ValueError, match=r"start: .*other.pt has the classes sidewalk, road, .*road"
    ):
        Trainer(TrainConfig(**options))
    content["classes"]["names"] = [str(k) for k in range(len(names))]  # named by nobody
    checkpoint.save(tmp_path / "other.pt", content)
    assert Trainer(TrainConfig(**options)).has_memory


def test_a_checkpoint_that_is_no_run_is_refused(whole: Path, tmp_path: Path) -> None:
    content = checkpoint.load(whole / "last.pt")
    del content["optimizer"]
    checkpoint.save(tmp_path / "last.pt", content)
    with pytest.raises(ValueError, match=r"holds no run to go on with, it lacks optimizer"):
        Trainer(TrainConfig(**small_run(tmp_path, resume=True)))
