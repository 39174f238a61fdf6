"""How a checkpoint becomes a network: the trainer's, published ones, safetensors, a start."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

from pinmem import checkpoint, predict
from pinmem.checkpoint import load_trained, open_trained, read_weights
from pinmem.config import TrainConfig
from pinmem.evaluate import confusion_of, pick_device
from pinmem.models import Segmenter, build_model
from pinmem.train import Trainer
from pinmem.writing import write_beside

from .scenes import tiny_run
from .test_golden import HERE, build, close
from .test_models_official import official_checkpoint

NAME = "deeplabv3plus_mobilenetv2"
CONFIG = {
    "model": NAME,
    "num_classes": 5,
    "mode": "memory-mldg",
    "output_stride": None,
    "memory_momentum": 0.7,
    "memory_temperature": 2.0,
}


def small(memory: bool = True, seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    return build_model(NAME, 5, memory)


def trained(path: Path, network: Segmenter, **config: object) -> Path:
    """A checkpoint as the trainer writes it."""
    checkpoint.save(path, {"model": network.state_dict(), "config": CONFIG | config})
    return path


def published(path: Path, model: Segmenter) -> Path:
    torch.save(official_checkpoint(model), path)
    return path


def assert_same(one: Segmenter, other: Segmenter) -> None:
    expected = other.state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_checkpoint_builds_its_network_and_names_its_classes(tmp_path: Path) -> None:
    model = small()
    network, classes = open_trained(trained(tmp_path / "a.pt", model))
    assert_same(network, model)
    assert not network.training and network.memory.momentum == 0.7
    assert network.memory.temperature == 2.0 and len(classes) == 5


@pytest.mark.parametrize("memory", [True, False])
def test_a_published_checkpoint_says_all_but_its_network(memory: bool, tmp_path: Path) -> None:
    model = small(memory)
    path = published(tmp_path / "a.pth", model)
    assert_same(load_trained(path, model=NAME), model)
    eight = load_trained(path, model=NAME, output_stride=8)
    assert_same(eight, model)
    assert eight.output_stride == 8
    weights = read_weights(path, model=NAME)
    assert (weights.config["epoch"], weights.config["mean_iu"]) == (12, 0.41)


@pytest.mark.parametrize("name", ["eval_memory_r50", "eval_baseline_r18"])
def test_a_published_checkpoint_gives_the_golden_logits(name: str, tmp_path: Path) -> None:
    golden = np.load(HERE / f"{name}.npz")
    source, config = build(golden, torch.float32)
    path = published(tmp_path / "a.pth", source)
    architecture = {
        "eval_memory_r50": "deeplabv3plus_r50",
        "eval_baseline_r18": "deeplabv3plus_r18",
    }
    network = load_trained(path, model=architecture[name])
    images, truth = torch.from_numpy(golden["images"]), torch.from_numpy(golden["argmax"])
    with torch.no_grad():
        logits = network.predict(images)
    close("logits", logits[:, :, ::3, ::3], golden["logits"], 1e-4)
    # A pixel whose best two classes are as good as equal may fall to either.
    best = logits.topk(2, dim=1).values
    sure = best[:, 0] - best[:, 1] > 1e-4 * logits.abs().max()
    labels = torch.stack([predict.predict(network, image) for image in images])
    assert sure.float().mean() > 0.99 and torch.equal(labels[sure].long(), truth[sure].long())
    ignored = torch.where(sure, truth, 255).to(torch.uint8)
    confusion = confusion_of(network, list(zip(images, ignored, strict=True)))
    assert confusion.trace() == confusion.sum() == sure.sum()
    assert config["memory"] == (network.memory is not None)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    ours, theirs = trained(tmp_path / "a.pt", small()), published(tmp_path / "a.pth", small())
    with pytest.raises(ValueError, match=rf"{theirs}: not written by pinmem.*--model"):
        load_trained(theirs)
    with pytest.raises(ValueError, match=rf"model: got 'x', but checkpoint {ours} has '{NAME}'"):
        load_trained(ours, model="x")
    with pytest.raises(ValueError, match=r"output_stride: got 8, but .* has None"):
        load_trained(ours, output_stride=8)
    with pytest.raises(ValueError, match=r"a\.pth: does not fit the model: \d+ missing"):
        load_trained(theirs, model="deeplabv3plus_r18")
    with pytest.raises(ValueError, match=r"other\.pt: does not fit the network: .*classifier"):
        load_trained(trained(tmp_path / "other.pt", small(), num_classes=7))
    bare = tmp_path / "bare.pth"
    torch.save(official_checkpoint(small())["state_dict"], bare)
    with pytest.raises(ValueError, match=r"bare\.pth: .* not the memory itself"):
        load_trained(bare, model=NAME)
    torch.save({"epoch": 3}, bare)
    with pytest.raises(ValueError, match=r"bare\.pth: no published checkpoint"):
        load_trained(bare, model=NAME)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    model = small()
    with torch.no_grad():
        model.decoder[0].weight[0, 0] = value
    with pytest.raises(ValueError, match=r"1 not finite: decoder\.0\.weight"):
        load_trained(trained(tmp_path / "a.pt", model))
    with pytest.raises(ValueError, match=r"1 not finite: final1\.0\.weight"):
        load_trained(published(tmp_path / "a.pth", model), model=NAME)


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"state_dict": {"final2.0.bias": Harm()}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: not readable safely"):
        load_trained(tmp_path / "a.pth", model=NAME)
    assert not (tmp_path / "harm").exists()
    (tmp_path / "b.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match=r"b\.safetensors: not a safetensors file"):
        load_trained(tmp_path / "b.safetensors")


# A start for training


def run_from(path: Path, out: Path, **options: object) -> Trainer:
    run = tiny_run(out, model=NAME, start=str(path), iterations=1, **options)
    return Trainer(TrainConfig(**run))


def at_start(trainer: Trainer) -> dict[str, torch.Tensor]:
    """What the first validation of a run saved."""
    trainer.config.iterations = 0
    trainer.fit()
    return checkpoint.load(trainer.out / "last.pt")["model"]


def test_training_starts_from_a_published_checkpoint_with_its_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build_model(NAME, 19)
    state = at_start(run_from(published(tmp_path / "a.pth", source), tmp_path / "run"))
    assert all(torch.equal(value, state[key]) for key, value in source.state_dict().items())


def test_a_memory_is_initialised_where_the_start_has_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build_model(NAME, 19, memory=False)
    path = trained(tmp_path / "a.pt", source, num_classes=19, mode="joint")
    state = at_start(run_from(path, tmp_path / "run"))
    assert all(torch.equal(value, state[key]) for key, value in source.state_dict().items())
    norms = state["memory.memory"].norm(dim=1)
    assert ((norms - 1).abs() < 1e-5).logical_or(norms == 0).all()
    # A start from a network with a memory does not fit one without.
    with_memory = trained(tmp_path / "b.pt", build_model(NAME, 19), num_classes=19)
    with pytest.raises(ValueError, match=r"b\.pt: does not fit the network: .* unexpected: memory"):
        run_from(with_memory, tmp_path / "other", mode="joint")
    assert not (tmp_path / "other").exists()


def test_freezing_the_backbone_is_an_option_of_a_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build_model(NAME, 19)
    path = published(tmp_path / "a.pth", source)
    trainer = run_from(path, tmp_path / "run", freeze="backbone")
    trainer.fit()
    state = checkpoint.load(tmp_path / "run" / "last.pt")["model"]
    for key, value in source.state_dict().items():
        if key.startswith("backbone."):
            assert torch.equal(value, state[key]), key
    assert not torch.equal(state["classifier.weight"], source.classifier.weight)
    # Going on without it would be another run.
    with pytest.raises(ValueError, match="freeze: got None, but checkpoint"):
        run_from(path, tmp_path / "run", resume=True)


def test_evaluate_reads_a_published_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pinmem import evaluate

    torch.manual_seed(0)
    path = published(tmp_path / "a.pth", build_model(NAME, 19))
    dataset = tiny_run(tmp_path)["unseen"][0]
    options = ["--checkpoint", str(path), "--dataset", dataset, "--model", NAME, "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *options])
    evaluate.main()
    assert "mIoU" in capsys.readouterr().out


def test_a_random_backbone_is_not_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^freeze: got backbone, expected weights or a start"):
        TrainConfig(**tiny_run(tmp_path / "run", freeze="backbone")).validate()


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    """Its folder is made, an old file stays, and nothing is left beside it."""
    path = tmp_path / "new" / "file"
    write_beside(path, lambda file: file.write(b"old"))

    def fail(file: IO[bytes]) -> None:
        file.write(b"ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=f"export {path}: could not be written: No space left"):
        write_beside(path, fail, "export")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert pick_device("cuda:1") == torch.device("cuda:1") and current == [torch.device("cuda:1")]
    with pytest.raises(ValueError, match="device: got 'cuda:2' of 2 GPUs"):
        pick_device("cuda:2")
