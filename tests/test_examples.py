"""The examples run, and show what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import pinmem
from examples import imagenet, maml, op_pictures, own_backbone, own_dataset, prototypes
from examples.study import report
from examples.study import run as study
from pinmem.train import Trainer

from .scenes import small_run


def test_maml(capsys: pytest.CaptureFixture[str]) -> None:
    """The second order is that of plain PyTorch, and far from the first."""
    angle = maml.main()
    assert "second order: norm" in capsys.readouterr().out
    assert angle > 3
    with pinmem.backend("reference"):
        assert abs(maml.main() - angle) < 0.01


def test_own_backbone() -> None:
    first, last = own_backbone.main(12)
    assert last < 0.5 * first


def test_prototypes() -> None:
    assert prototypes.main() > 0.8  # by chance: a quarter


def test_own_dataset() -> None:
    share = own_dataset.main()
    assert share.sum() == pytest.approx(1) and (share > 0.005).all()


def test_op_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of every op that the page about them shows."""
    monkeypatch.setattr(op_pictures, "FOLDER", tmp_path)
    op_pictures.main()
    page = Path("docs/ops.md").read_text()
    assert all(f"(images/ops/{p.name})" in page for p in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == page.count("(images/ops/") == 5


def test_imagenet_weights(tmp_path: Path) -> None:
    """They are those of the package, under the names of timm's network."""
    from safetensors.torch import load_file

    path = tmp_path / "weights.safetensors"
    assert imagenet.main(["--out", str(path)]) == 0
    network = pinmem.build_model(f"timm:{imagenet.MODEL}", weights=str(path)).backbone.net
    written = load_file(path)
    state = network.state_dict()
    assert set(state) <= set(written)
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())
    assert float(written["bn1.running_mean"].abs().max()) > 0  # trained


def test_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's result is the same when it is made again, and the document is made from results."""
    options = small_run(tmp_path)
    monkeypatch.setattr(study, "CONFIG", tmp_path / "default.yaml")
    study.CONFIG.write_text(yaml.safe_dump(options | {"crop_size": [64, 64]}))
    results = [tmp_path / "results", tmp_path / "again"]
    for cell, folder in (("joint", 0), ("memory-mldg", 0), ("memory-mldg", 1)):
        study.run(cell, 0, tmp_path / f"runs{folder}", results[folder])
    first, again = (json.loads((r / "memory-mldg-0.json").read_text()) for r in results)
    own = "miou with own statistics"
    for measured in ("miou", "curves", "memory", "gradients", own):
        assert first[measured] and first[measured] == again[measured], measured
    assert first[own].keys() == first["miou"].keys() and first[own] != first["miou"]
    document = tmp_path / "study.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(results[0], document)
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| memory-mldg - joint |" in text and "own slot nearest" in text
    assert "### BatchNorm statistics" in text
    assert (tmp_path / "images" / "study-curves.svg").exists()


def test_own_statistics_are_not_those_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small_run(tmp_path)
    monkeypatch.setattr(study, "CONFIG", tmp_path / "default.yaml")
    study.CONFIG.write_text(yaml.safe_dump(options | {"crop_size": [64, 64]}))
    trainer = Trainer(study.config_of("joint", 0, tmp_path / "run", "cpu"))
    before = study.own_statistics(trainer)
    for name, buffer in trainer.model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn_like(buffer) * 10)
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(100)
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert study.own_statistics(trainer) == before
    assert all(torch.equal(state[name], v) for name, v in trainer.model.state_dict().items())


def test_intervals() -> None:
    """Student's t: the mean of 1, 2, 3 and 2.484 to either side."""
    assert report.interval([1.0, 2.0, 3.0]) == "+2.0 [-0.5, +4.5]"
    assert report.interval([1.0]) == "+1.0"
