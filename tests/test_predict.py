"""``python -m pinmem.predict``: which pictures it takes, what it writes, what it says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pinmem import predict
from pinmem.checkpoint import load_trained
from pinmem.data import CITYSCAPES, eval_transform
from pinmem.data.cityscapes_classes import TRAIN_ID_TO_LABEL_ID
from pinmem.data.decode import read_image
from pinmem.evaluation import Inference
from pinmem.program import run
from tests.test_evaluate_program import save_network

KINDS = ("labels", "trainids", "labelids", "color", "overlay", "side_by_side", "activation")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "net.pt")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the program with arguments; its exit status."""
    monkeypatch.setattr("sys.argv", ["predict", *map(str, arguments), "--device", "cpu"])
    try:
        run(predict.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def picture(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    """A picture of coarse random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_every_kind_of_result(network: Path, tmp_path: Path, monkeypatch) -> None:
    source = picture(tmp_path / "in/a.png")
    options = ("--checkpoint", network, "--images", source, "--out", tmp_path / "out")
    assert call(monkeypatch, *options, "--save", ",".join(KINDS)) == 0
    found = {kind: tmp_path / f"out/a_{kind}.png" for kind in KINDS}
    assert sorted(found.values()) == sorted((tmp_path / "out").iterdir())
    image, _ = eval_transform()(read_image(source), torch.zeros(48, 64, dtype=torch.uint8))
    with torch.no_grad():
        expected = load_trained(network).predict(image[None]).argmax(1)[0].numpy()
    indexed = Image.open(found["labels"])
    assert indexed.mode == "P"
    # A pixel whose best classes are as good as equal may fall to either.
    assert (np.asarray(indexed) != expected).mean() < 1e-3
    labels = np.asarray(indexed)
    assert Image.open(found["trainids"]).mode == "L"
    assert (np.asarray(Image.open(found["trainids"])) == labels).all()
    ids = np.vectorize(TRAIN_ID_TO_LABEL_ID.get)(labels)
    assert (np.asarray(Image.open(found["labelids"])) == ids).all()
    colours = np.array(CITYSCAPES.colors)[labels]
    assert (pixels_of(found["color"]) == colours).all()
    assert (pixels_of(found["labels"]) == colours).all()
    over = pixels_of(found["overlay"])
    assert np.abs(2 * over - pixels_of(source) - colours).max() <= 1
    row = pixels_of(found["side_by_side"])
    assert (row == np.concatenate([pixels_of(source), over, colours], axis=1)).all()
    assert Image.open(found["activation"]).size == (4 * 320, 5 * (240 + 16) + 16)


def test_the_activation_is_the_attention_on_each_slot(network: Path) -> None:
    model = load_trained(network)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        scores = model(images).scores
    query = scores.softmax(dim=1)
    results = list(predict.segment(model, images, activation=True))
    assert results[1].activation is not None
    got = results[1].activation(4)
    assert got.shape == (64, 96)
    torch.testing.assert_close(got[[0, 0, -1, -1], [0, -1, 0, -1]], query[1, 4].flatten()[
        [0, query.shape[3] - 1, -query.shape[3], -1]
    ])  # fmt: skip
    total = sum(results[1].activation(k) for k in range(19))
    torch.testing.assert_close(total, torch.ones(64, 96))


def test_three_hundred_pictures_ten_broken_two_alike(
    network: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    folder, suffixes = tmp_path / "in", (".png", ".jpg", ".JPG", ".webp", ".bmp")
    sizes = ((40, 32), (32, 40), (48, 48))
    files = [
        picture(folder / f"{'abc'[n % 3]}/{n % 2}/{n:03d}{suffixes[n % 5]}", sizes[n % 3], seed=n)
        for n in range(299)
    ]
    files.append(picture(files[0].with_suffix(".jpg"), (40, 32)))
    broken = files[5:25:2]
    for number, path in enumerate(broken):
        whole = path.read_bytes()
        path.write_bytes(b"" if number == 0 else whole[: len(whole) // (2 if number % 2 else 40)])
    options = ("--checkpoint", network, "--images", folder, "--out", tmp_path / "out", "--save")
    assert call(monkeypatch, *options, "labels", "--recursive", "--batch_size", 16) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0] == "error: 10 of 300 pictures failed:" and len(lines) == 11
    assert {line.partition(": ")[0] for line in lines[1:]} == {str(path) for path in broken}
    good = [path for path in files if path not in broken]
    results = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(results) == len(good) == 290
    for path in good:
        name = path.name if path.stem == "000" else path.stem
        result = tmp_path / "out" / path.parent.relative_to(folder) / f"{name}_labels.png"
        assert Image.open(result).size == Image.open(path).size
    # Again: nothing is done twice, and what is missing is done.
    before = {path: path.stat().st_mtime_ns for path in results}
    results[7].unlink()
    assert call(monkeypatch, *options, "labels", "--recursive") == 1
    assert "1 of 300 segmented" in (out := capsys.readouterr().out) and "kept: 289" in out
    after = {path: path.stat().st_mtime_ns for path in results}
    assert [path for path in results if before[path] != after[path]] == [results[7]]


def test_two_inputs_never_write_one_file(network: Path, tmp_path: Path, monkeypatch, capsys):
    one, two = picture(tmp_path / "one/a.png"), picture(tmp_path / "two/a.png")
    options = ("--checkpoint", network, "--images", one, "--images", two)
    assert call(monkeypatch, *options, "--out", tmp_path / "out") == 2
    assert f"{one} and {two} would both be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    three = picture(tmp_path / "three/a.png"), picture(tmp_path / "three/a.jpg")
    picture(tmp_path / "three/a.png.png")
    options = ("--checkpoint", network, "--images", tmp_path / "three")
    assert call(monkeypatch, *options, "--out", tmp_path / "out") == 2
    assert str(three[0]) in capsys.readouterr().err


def test_patterns_and_files_named_twice(network: Path, tmp_path: Path, monkeypatch, capsys):
    for name in ("x/a.png", "x/deep/b.jpg", "y/a.png", "y/.hidden.png", "y/notes.txt"):
        picture(tmp_path / "in" / name.replace("notes.txt", "c.png"))
    pattern = tmp_path / "in/*/*.png"
    options = ("--images", pattern, "--images", pattern, "--out", tmp_path / "out")
    assert call(monkeypatch, "--checkpoint", network, *options, "--save", "color") == 0
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    assert names == {"x/a_color.png", "y/a_color.png", "y/c_color.png"}
    pattern = tmp_path / "in/**/*.jpg"
    assert call(
        monkeypatch, "--checkpoint", network, "--images", pattern, "--out", tmp_path / "o"
    ) == 0  # fmt: skip
    assert (tmp_path / "o/x/deep/b_labels.png").exists()


def test_linked_folders_are_taken_and_loops_are_not(network: Path, tmp_path: Path, monkeypatch):
    picture(tmp_path / "elsewhere/deep/a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/again").symlink_to(tmp_path / "in")
    options = ("--images", tmp_path / "in", "--recursive", "--out", tmp_path / "out")
    assert call(monkeypatch, "--checkpoint", network, *options, "--save", "labels") == 0
    found = [p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.png")]
    assert found == [Path("link/deep/a_labels.png")]


def test_results_below_the_pictures_are_not_read(network: Path, tmp_path: Path, monkeypatch):
    picture(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    options = ("--checkpoint", network, "--images", ".", "--recursive", "--out", "out")
    for _ in range(2):
        assert call(monkeypatch, *options, "--overwrite") == 0
    assert sorted(os.listdir("out")) == ["a_labels.png", "a_overlay.png"]
    # Others may read them.
    (tmp_path / "plain").write_bytes(b"")
    assert (Path("out/a_labels.png").stat().st_mode & 0o777) == (
        Path("plain").stat().st_mode & 0o777
    )


def test_a_large_picture_by_sliding(network: Path, tmp_path: Path, monkeypatch) -> None:
    source = picture(tmp_path / "a.png", (200, 150))
    options = ("--checkpoint", network, "--images", source, "--out", tmp_path / "out")
    slide = ("--mode", "slide", "--crop", 64, "--stride", 48, "--flip", "--scales", "[1.0, 0.5]")
    assert call(monkeypatch, *options, *slide, "--save", "trainids,activation") == 0
    image, _ = eval_transform()(read_image(source), torch.zeros(150, 200, dtype=torch.uint8))
    inference = Inference("slide", (64, 64), (48, 48), (1.0, 0.5), True)
    expected = predict.predict(load_trained(network), image, inference)
    got = np.asarray(Image.open(tmp_path / "out/a_trainids.png"))
    assert (got != expected.numpy()).mean() < 1e-3 and got.shape == (150, 200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--save", "labels,colour"), "save: got 'colour', expected labels, trainids"),
        (("--batch_size", "-1"), "batch_size: got -1, expected at least 0"),
        (("--images", "nowhere"), "images: no such file or folder: 'nowhere'"),
        (("--images", "no*.png"), "images: no picture or video in 'no*.png'"),
    ],
)
def test_options_that_cannot_be(network, tmp_path, options, message, monkeypatch, capsys) -> None:
    source = picture(tmp_path / "a.png")
    assert call(
        monkeypatch, "--checkpoint", network, "--images", source, "--out", tmp_path / "o", *options
    ) == 2  # fmt: skip
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_what_a_network_does_not_have(tmp_path: Path, monkeypatch, capsys) -> None:
    bare = save_network(tmp_path / "bare.pt", classes=3, memory=False)
    options = ("--images", picture(tmp_path / "a.png"), "--out", tmp_path / "o", "--save")
    for kind, reason in (("activation", "no memory"), ("labelids", "are not Cityscapes'")):
        assert call(monkeypatch, "--checkpoint", bare, *options, kind) == 2
        assert reason in capsys.readouterr().err
    assert call(
        monkeypatch, "--checkpoint", bare, "--images", tmp_path, "--out", tmp_path
    ) == 2  # fmt: skip
    assert "which is read too" in capsys.readouterr().err
