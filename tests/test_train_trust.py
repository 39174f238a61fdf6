"""A run that can be trusted: what goes wrong is said, and nothing of it is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from pinmem import checkpoint, loop, train
from pinmem.batches import Batches
from pinmem.config import TrainConfig
from pinmem.evaluate import load_trained
from pinmem.health import NotFinite
from pinmem.program import run
from pinmem.stop import Stopped
from pinmem.train import Trainer

from .kill_check import check_whole, differences
from .scenes import end_of, small_run, streets


def at(trainer: Trainer, iteration: int, act: Callable[[], object]) -> Trainer:
    """Do something after the step of an iteration, counted from 0."""
    step = trainer.step

    def stepped(images: torch.Tensor, labels: torch.Tensor):
        losses = step(images, labels)
        if trainer.iteration == iteration:
            act()
        return losses

    trainer.step = stepped  # type: ignore[method-assign]
    return trainer


# Numbers that are not finite


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
