"""A run that can be trusted: what goes wrong is said, and nothing of it is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from pinmem import checkpoint, loop, train
from pinmem.config import TrainConfig
from pinmem.program import run
from pinmem.stop import Stopped
from pinmem.train import Trainer

from .kill_check import check_whole, differences
from .scenes import at, small_run


def test_going_back_keeps_what_a_resume_changed(whole, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    changed = {"momentum": 0.5, "weight_decay": 0.25, "validate_size": 32, "resume": True}
    trainer = Trainer(TrainConfig(**small_run(out, **changed)))
    assert trainer.best == -1.0  # scores at another size do not compare
    loop.restore(trainer, checkpoint.load(out / "last.pt"))
    (group,) = trainer.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], trainer.best) == (0.5, 0.25, -1.0)


# Signals


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    Trainer(TrainConfig(**small_run(out))).fit()
    return out


@pytest.mark.parametrize(
    ("number", "during"), [(signal.SIGTERM, "step"), (signal.SIGINT, "validation")]
)
def test_a_signal_stops_a_run_that_goes_on(number, during, whole, tmp_path, monkeypatch) -> None:
    options = small_run(tmp_path / "run", checkpoint_every=100)
    trainer = Trainer(TrainConfig(**options))
    if during == "step":
        at(trainer, 0, lambda: os.kill(os.getpid(), number))
    else:
        scored = train.confusion_of

        def interrupted(*arguments, **named):
            if trainer.iteration == 2:
                os.kill(os.getpid(), number)
            return scored(*arguments, **named)

        monkeypatch.setattr(train, "confusion_of", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=rf"stopped by {number.name}.*--resume true") as caught:
        trainer.fit()
    assert caught.value.signal == number and signal.getsignal(number) is before
    last = checkpoint.load(tmp_path / "run" / "last.pt")
    assert last["iteration"] == (1 if during == "step" else 2) and last["validated"] == 0
    monkeypatch.undo()
    command = str(caught.value).partition("--config ")[2].split()
    again = TrainConfig(**yaml.safe_load(Path(command[0]).read_text()) | {"resume": True})
    Trainer(again).fit()
    assert differences(whole, tmp_path / "run") == []


@pytest.mark.parametrize("during", ["validation", "covariances"])
def test_what_stops_at_once_draws_nothing(during: str, tmp_path: Path, monkeypatch) -> None:
    """What is interrupted is done again, with the random numbers it had the first time."""
    trainer = Trainer(TrainConfig(**small_run(tmp_path, checkpoint_every=100, whitening_start=2)))
    module, name = (
        (train, "confusion_of") if during == "validation" else (loop, "choose_covariances")
    )
    replaced, states = getattr(module, name), []

    def interrupted(*arguments, **named):
        if trainer.iteration == 2:
            states.append(torch.get_rng_state())
            torch.rand(1)
            os.kill(os.getpid(), signal.SIGTERM)
        return replaced(*arguments, **named)

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(Stopped, match="at iteration 2"):
        trainer.fit()
    last = checkpoint.load(tmp_path / "last.pt")
    assert last["iteration"] == 2 and torch.equal(last["rng"], states[0])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_its_processes(number, status: int, tmp_path: Path) -> None:
    """As a terminal and a scheduler send it; the processes that load data leave it to the run."""
    out = tmp_path / "run"
    TrainConfig(**small_run(out, workers=1, iterations=100_000)).save(tmp_path / "c.yaml")
    command = [sys.executable, "-m", "pinmem.train", "--config", str(tmp_path / "c.yaml")]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if (out / "last.pt").exists() and checkpoint.load(out / "last.pt")["iteration"] > 0:
                break
            time.sleep(0.1)
        os.killpg(process.pid, number)
        error = process.communicate(timeout=120)[1]
    assert process.returncode == status, error
    assert error.count("\n") == 1 and f"stopped by {number.name} at iteration" in error, error
    assert f"{checkpoint.load(out / 'last.pt')['iteration']}; to go on" in error


def test_kills_at_random_moments() -> None:
    command = [sys.executable, "-m", "tests.kill_check", "--kills", "4", "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "4 kills" in result.stdout and "no file half written" in result.stdout


# Full disks


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A full disk: no file grows beyond a size. Python leaves SIGXFSZ alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "named"), [(100_000, "last.pt: could not be written"), (400, "could not be written")]
)
def test_a_full_disk_loses_nothing(size, named, whole, tmp_path, capsys) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    before = (out / "last.pt").read_bytes()
    trainer = Trainer(TrainConfig(**small_run(out, resume=True, iterations=5, validate_every=0)))
    capsys.readouterr()

    def fill() -> None:
        with files_up_to(size):
            trainer.fit()

    with pytest.raises(SystemExit) as end:
        run(fill)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1, error
    assert str(out) in error and named in error and "File too large" in error, error
    assert (out / "last.pt").read_bytes() == before
    check_whole(out)
    # With room again it goes on.
    Trainer(TrainConfig(**small_run(out, resume=True, iterations=5, validate_every=0))).fit()
    assert checkpoint.load(out / "last.pt")["iteration"] == 5


def own_mounts() -> list[str]:
    """A command that runs another with mounts of its own; empty where that is not allowed."""
    for flags in ("-m", "-rm"):
        command = ["unshare", flags]
        try:
            mounts = [*command, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
            if subprocess.run(mounts, capture_output=True).returncode == 0:
                return command
        except FileNotFoundError:
            break
    return []


@pytest.mark.parametrize("size", ["8k", "160k"])
def test_full_shared_memory_names_the_remedy(size: str, tmp_path: Path) -> None:
    if not (unshare := own_mounts()):
        pytest.skip("no right to mount a small /dev/shm on this machine")
    TrainConfig(**small_run(tmp_path / "run", workers=1)).save(tmp_path / "c.yaml")
    script = (
        f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} -m pinmem.train"
    )
    result = subprocess.run(
        [*unshare, "sh", "-c", f"{script} --config {tmp_path / 'c.yaml'}"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: workers"), result
    assert "/dev/shm" in result.stderr and "--workers 0" in result.stderr
