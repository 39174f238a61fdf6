"""Train, evaluate, predict on a dataset of one's own, and on files as people have them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pinmem import checkpoint, evaluate, predict
from pinmem.data import DataError
from pinmem.data.check import main as check
from pinmem.data.describe import main as describe
from pinmem.evaluate import open_trained
from pinmem.program import run
from pinmem.train import TrainConfig, Trainer
from tests.data_own import COLORS, NAMES, colors_of, own_tree
from tests.data_trees import scene
from tests.scenes import copy_of, tiny_run


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An own dataset, described by ``describe``, its classes named by hand."""
    root = tmp_path_factory.mktemp("own")
    own_tree(root / "data").unlink()
    draft = root / "own.yaml"
    assert describe(["--root", str(root / "data"), "--out", str(draft)]) == 0
    content = yaml.safe_load(draft.read_text())
    # By hand: five names for five values, and 0 is not labelled.
    content["classes"] = {n: list(c) for n, c in zip(NAMES, COLORS, strict=True)}
    content["encoding"] = {10 * (k + 1): name for k, name in enumerate(NAMES)}
    content["ignore"] = 0
    draft.write_text(yaml.safe_dump(content, sort_keys=False))
    return draft


@pytest.fixture(scope="module")
def trained(own: Path) -> Path:
    """A network trained on it, with class-uniform draws and a cache."""
    out = own.parent / "run"
    options = tiny_run(
        out, sources=[str(own), str(own)], unseen=[str(own)], iterations=2, class_uniform=0.5,
        statistics=str(own.parent / "statistics"), cache=str(own.parent / "cache"),
    )  # fmt: skip
    Trainer(TrainConfig(**options)).fit()
    return out / "best.pt"


def call(module, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run a program's ``main`` as its command line would; the exit status."""
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    try:
        run(module.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_check_reads_the_description(own: Path, capsys):
    assert check(["--dataset", str(own), "--decode"]) == 0
    out = capsys.readouterr().out
    assert "train: 4 pairs" in out and "val: 2 pairs" in out and "thing " in out


def test_names_and_colours_are_in_the_checkpoint(trained: Path):
    model, classes = open_trained(trained)
    assert model.num_classes == 5
    assert (classes.names, classes.colors) == (NAMES, COLORS)
    assert checkpoint.load(trained)["config"]["num_classes"] == 5
    scores = (trained.parent / "scores.txt").read_text()
    assert all(re.search(rf"^ +{name} +\d", scores, re.MULTILINE) for name in ("flat", "sky"))
    assert (trained.parent / "overlays/unseen/own").is_dir()
    assert len(list((trained.parent.parent / "cache").iterdir())) == 4
    assert len(list((trained.parent.parent / "statistics").iterdir())) == 1


def test_evaluate_prints_the_names(own: Path, trained: Path, monkeypatch, capsys):
    assert call(evaluate, monkeypatch, "--checkpoint", trained, "--dataset", own) == 0
    out = capsys.readouterr().out
    assert all(f" {name} " in out for name in NAMES) and "2 images" in out


def test_evaluate_refuses_other_classes(trained: Path, tmp_path, monkeypatch, capsys):
    path = own_tree(tmp_path)
    path.write_text(path.read_text().replace("thing", "object"))
    assert call(evaluate, monkeypatch, "--checkpoint", trained, "--dataset", path) == 2
    assert (
        "my/val: has the classes flat, built, object, green, sky, expected flat, built, thing"
        in (capsys.readouterr().err)
    )


def test_dummy_labels_are_not_scored(own: Path, trained: Path, tmp_path, monkeypatch, capsys):
    path = own_tree(tmp_path)
    for label in (tmp_path / "masks/val").iterdir():
        Image.new("L", Image.open(label).size, 0).save(label)
    command = ("--checkpoint", trained, "--dataset", path)
    assert call(evaluate, monkeypatch, *command) == 1
    captured = capsys.readouterr()
    assert f"{path}: split val: no labelled pixel" in captured.err and "mIoU" not in captured.out
    assert check(["--dataset", str(path), "--split", "val"]) == 1
    assert "no labelled pixel in 2 labels" in capsys.readouterr().out
    options = tiny_run(tmp_path / "run", sources=[str(own)] * 2, unseen=[str(path)], mode="joint")
    with pytest.raises(ValueError, match="unseen/my: no labelled pixel"):
        Trainer(TrainConfig(**options)).fit()


def test_predict_goes_on_after_a_bad_picture(trained: Path, tmp_path, monkeypatch, capsys):
    pictures = tmp_path / "in"
    pictures.mkdir()
    for name in ("a.jpg", "b.jpg", "c.JPG", "d.png", "d.jpg"):
        Image.fromarray(scene(1)[0]).save(pictures / name)
    whole = (pictures / "b.jpg").read_bytes()
    (pictures / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "._a.jpg").write_bytes(b"resource fork")
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "more").mkdir()
    command = ("--checkpoint", trained, "--images", pictures, "--out", tmp_path / "out")
    assert call(predict, monkeypatch, *command) == 1
    captured = capsys.readouterr()
    assert "skipped: 3 entries that are hidden, folders or no pictures" in captured.out
    assert captured.err.startswith("error: 1 of 5 pictures failed:\n")
    assert captured.err.splitlines()[1].startswith(f"{pictures / 'b.jpg'}: image cannot be decoded")
    assert sorted(path.name for path in (tmp_path / "out").glob("*_labels.png")) == [
        "a_labels.png",
        "c_labels.png",
        "d.jpg_labels.png",
        "d.png_labels.png",
    ]
    labels = np.asarray(Image.open(tmp_path / "out/d.png_labels.png"))
    assert labels.max() < 5
    shown = np.asarray(Image.open(tmp_path / "out/d.png_overlay.png")).astype(int)
    assert np.abs(2 * shown - scene(1)[0] - colors_of(labels)).max() <= 1


def test_predict_turns_a_phones_picture(trained: Path, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(scene(1)[0]).copy()).save(tmp_path / "a.jpg", exif=exif)
    command = ("--checkpoint", trained, "--images", tmp_path / "a.jpg", "--out", tmp_path / "out")
    assert call(predict, monkeypatch, *command) == 0
    for kind in ("labels", "overlay"):
        assert Image.open(tmp_path / f"out/a_{kind}.png").size == (96, 48)


def test_predict_refuses_16_bits(trained: Path, tmp_path, monkeypatch, capsys):
    Image.fromarray(scene(1)[0][:, :, 0].astype(np.uint16) * 257).save(tmp_path / "a.tif")
    command = ("--checkpoint", trained, "--images", tmp_path, "--out", tmp_path / "out")
    assert call(predict, monkeypatch, *command) == 1
    assert "a.tif: image has 16 bits a sample, expected 8" in capsys.readouterr().err


def test_missing_labels_are_said_before_the_first_iteration(own: Path, tmp_path):
    path = own_tree(tmp_path)
    (tmp_path / "masks/train/shot 1.png").unlink()
    options = tiny_run(tmp_path / "run", sources=[str(own), str(path)], workers=2)
    with pytest.raises(DataError, match=r"my/train: 1 of 4 pairs lack a file: .*shot 1\.png"):
        Trainer(TrainConfig(**options))
    assert not (tmp_path / "run").exists()


def test_sources_of_different_classes(own: Path, tmp_path):
    path = own_tree(tmp_path)
    path.write_text(path.read_text().replace("thing", "object"))
    options = tiny_run(tmp_path / "run", sources=[str(own), str(path)])
    with pytest.raises(ValueError, match="my/train: has the classes flat, built, object"):
        Trainer(TrainConfig(**options))
    options = tiny_run(tmp_path / "run", sources=[str(own)] * 2, num_classes=4)
    with pytest.raises(ValueError, match="num_classes: got 4, but own/train has 5 classes"):
        Trainer(TrainConfig(**options))


def test_a_run_does_not_go_on_with_other_classes(tmp_path):
    path = own_tree(tmp_path)
    options = tiny_run(
        tmp_path / "run", sources=[str(path)], unseen=[str(path)], mode="joint", iterations=1
    )
    Trainer(TrainConfig(**options)).fit()
    path.write_text(path.read_text().replace("thing", "object"))
    with pytest.raises(ValueError, match=r"have the classes flat, built, object.*last\.pt"):
        Trainer(TrainConfig(**options, resume=True))


@pytest.mark.parametrize("told", ["description", "folder"])
def test_a_source_without_validation_goes_without(told: str, own: Path, tmp_path, capsys):
    """Whether its description names no such split, or its folder holds none of it."""
    path = own_tree(tmp_path)
    if told == "description":
        path.write_text(path.read_text().replace("{split}", "train"))
    else:
        for folder in sorted(tmp_path.rglob("val")):
            shutil.rmtree(folder)
    options = tiny_run(tmp_path / "run", sources=[str(path)] * 2, unseen=[str(own)], iterations=1)
    trainer = Trainer(TrainConfig(**options))
    assert list(trainer.validation) == ["unseen/own"]
    assert "my: no image of a validation split" in (tmp_path / "run/log.txt").read_text()
    assert check(["--dataset", str(path)]) == 0
    assert ("a run that learns from it goes without" in capsys.readouterr().out) == (
        told == "folder"
    )
    with pytest.raises(DataError, match="no image of"):
        Trainer(TrainConfig(**options | {"unseen": [str(path)], "out": str(tmp_path / "other")}))


def test_a_published_validation_split_is_missed(tmp_path):
    root = copy_of("gtav", tmp_path)
    shutil.rmtree(root / "images/valid")
    with pytest.raises(DataError, match="no image of gtav, split 'val'"):
        Trainer(TrainConfig(**tiny_run(tmp_path / "run", sources=[f"gtav={root}"] * 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_uniform": 1.5}, "class_uniform: got 1.5, expected a share of 0..1"),
        ({"class_uniform": 0.5}, "statistics: missing, expected a folder"),
        ({"sources": ["photos.yaml="]}, "sources: got 'photos.yaml=', expected name=folder or a"),
    ],
)
def test_options_that_cannot_be(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**tiny_run(tmp_path, **options)).validate()
