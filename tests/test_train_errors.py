"""What goes wrong is said in one line that names the file or the option, and leaves nothing."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from pinmem import checkpoint
from pinmem.config import TrainConfig
from pinmem.evaluate import EvaluateConfig, load_trained
from pinmem.program import parse
from pinmem.train import Trainer

from .scenes import copy_of, tiny_run


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pinmem.train", *(str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def assert_one_line(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: "), error
    for word in words:
        assert word in error, error


def test_a_damaged_image_ends_a_run_with_one_line(tmp_path: Path) -> None:
    root = copy_of("gtav", tmp_path)
    broken = sorted((root / "images").rglob("*.png"))
    for path in broken:
        path.write_bytes(path.read_bytes()[:300])
    options = tiny_run(tmp_path / "run", sources=[f"gtav={root}", f"gtav={root}"], workers=1)
    TrainConfig(**options).save(tmp_path / "c.yaml")
    result = program("--config", tmp_path / "c.yaml")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert any(str(path) in result.stderr for path in broken)


@pytest.mark.parametrize("harm", ["missing", "other size", "outside the encoding"])
def test_a_bad_label_names_its_file(harm: str, tmp_path: Path) -> None:
    from PIL import Image

    root = copy_of("cityscapes", tmp_path)
    labels = sorted(root.rglob("*_labelIds.png"))
    for path in labels:
        if harm == "missing":
            path.unlink()
        else:
            size = (32, 16) if harm == "other size" else (128, 64)
            Image.new("L", size, 7 if harm == "other size" else 99).save(path)
    with pytest.raises(ValueError) as caught:
        options = tiny_run(tmp_path / "run", unseen=[f"cityscapes={root}"])
        Trainer(TrainConfig(**options)).fit()
    message = str(caught.value)
    assert any(str(path) in message for path in labels), message
    assert "\n" not in message
    assert not (tmp_path / "run" / "last.pt").exists()


def test_an_empty_split_is_said_before_anything_is_made(tmp_path: Path) -> None:
    root = copy_of("gtav", tmp_path)
    for path in root.rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"gtav.*train"):
        Trainer(TrainConfig(**tiny_run(tmp_path / "run", sources=[f"gtav={root}"] * 2)))
    assert not (tmp_path / "run").exists()


def test_misspelt_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(TrainConfig, ["--bach_size", "3"])
    assert caught.value.code == 2
    assert_one_line(capsys, "--bach_size", "'batch_size'")


def test_misspelt_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("batch_size: 3\niteratons: 5\n")
    with pytest.raises(SystemExit):
        parse(TrainConfig, ["--config", str(file)])
    assert_one_line(capsys, str(file), "'iteratons'", "'iterations'")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--lr", "fast"], ["lr", "fast"]),
        (["--mode", "memory"], ["mode", "memory-mldg"]),
        (["--config", "/nowhere.yaml"], ["/nowhere.yaml"]),
    ],
)
def test_wrong_values(arguments, words, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(TrainConfig, arguments)
    assert_one_line(capsys, *words)


def test_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("lr: 1e-3\nbatch_size: 3\n")
    config = parse(TrainConfig, ["--config", str(file), "--batch_size", "5"])
    assert (config.lr, config.batch_size, config.momentum) == (1e-3, 5, 0.9)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sources": []}, "sources: got none"),
        ({"sources": ["gtav=x"]}, "sources: got one domain, expected at least two for mode"),
        ({"sources": ["gtav=x", "gtav"]}, "sources: got 'gtav', expected name=folder"),
        ({"batch_size": 1}, "batch_size: got 1 in 1 micro-batches, expected at least 2"),
        ({"iterations": 0}, "iterations: got 0"),
        ({"lean_second_order": True}, "lean_second_order: got true, expected false"),
        ({"meta_order": 3}, "meta_order: got 3, expected 1 or 2"),
        ({"meta_order": 2, "mode": "joint"}, "meta_order: got 2, expected 1 for mode joint"),
        ({"device": "tpu"}, "device: got 'tpu'"),
        ({"model": "deeplabv3plus_r19"}, "deeplabv3plus_r18"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(TrainConfig(**tiny_run(tmp_path / "run", **options)))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    Trainer(TrainConfig(**tiny_run(out, iterations=1))).fit()
    return out


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"num_classes": 21}, ["num_classes", "21", "19"]),
        ({"model": "deeplabv3plus_r50"}, ["model", "deeplabv3plus_r50", "deeplabv3plus_r18"]),
        ({"mode": "joint"}, ["mode", "joint", "memory-mldg"]),
    ],
)
def test_resuming_another_run_is_refused(changed, words, trained: Path) -> None:
    before = (trained / "last.pt").read_bytes()
    with pytest.raises(ValueError) as caught:
        Trainer(TrainConfig(**tiny_run(trained, resume=True, **changed)))
    assert all(word in str(caught.value) for word in [*words, str(trained / "last.pt")])
    assert (trained / "last.pt").read_bytes() == before


def test_a_checkpoint_of_another_network_names_the_keys(trained: Path, tmp_path: Path) -> None:
    content = checkpoint.load(trained / "last.pt")
    content["config"]["num_classes"] = 7
    checkpoint.save(tmp_path / "other.pt", content)
    with pytest.raises(ValueError, match=r"other.pt.*classifier.weight.*19.*expected.*7"):
        load_trained(tmp_path / "other.pt")


def test_a_truncated_checkpoint_is_named(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes((trained / "last.pt").read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"checkpoint {path}: not readable"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt: no such file"):
        checkpoint.load(tmp_path / "nothing.pt")
    torch.save({"epoch": 3}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"foreign\.pt: not written by"):
        checkpoint.load(tmp_path / "foreign.pt")


def test_disk_full_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """A real limit on the size of files, in a process of its own."""
    code = f"""
        import resource, signal, sys, torch
        from pathlib import Path
        from pinmem import checkpoint
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        path = Path({str(tmp_path)!r}) / "last.pt"
        checkpoint.save(path, {{"model": torch.zeros(10)}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        checkpoint.save(path, {{"model": torch.zeros(1_000_000)}})
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"OSError: checkpoint {tmp_path / 'last.pt'}: could not be written"), (
        last
    )
    assert checkpoint.load(tmp_path / "last.pt")["model"].shape == (10,)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_a_failing_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    checkpoint.save(tmp_path / "last.pt", {"model": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"last\.pt: could not be written: No space left"):
        checkpoint.save(tmp_path / "last.pt", {"model": 2})
    assert checkpoint.load(tmp_path / "last.pt")["model"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    code = f"""
        import torch
        from pathlib import Path
        from pinmem import checkpoint
        path = Path({str(tmp_path)!r}) / "last.pt"
        for i in range(10_000):
            checkpoint.save(path, {{"model": torch.full((10**6,), i)}})
    """
    for wait in (0.05, 0.11):
        writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
        while not (tmp_path / "last.pt").exists():
            time.sleep(0.01)
        time.sleep(wait)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        values = checkpoint.load(tmp_path / "last.pt")["model"]
        assert bool((values == values[0]).all())
        (tmp_path / "last.pt").unlink()


def test_evaluate_needs_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(EvaluateConfig, ["--dataset", "gtav=x"])
    assert_one_line(capsys, "checkpoint")


def test_apex_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package index calls apex has no optimisers; NVIDIA's has none for the CPU."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    config = TrainConfig(**tiny_run(tmp_path / "run", optimizer="apex_sgd"))
    with pytest.raises(ValueError, match=r"optimizer: got apex_sgd.*not installed"):
        Trainer(config)
    package = tmp_path / "site" / "apex"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"optimizer: got apex_sgd.*not NVIDIA's"):
        Trainer(config)
    (package / "optimizers").mkdir()
    with pytest.raises(ValueError, match="optimizer: got apex_sgd on cpu, expected a GPU"):
        Trainer(config)
