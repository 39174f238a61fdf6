"""``python -m pinmem.evaluate``: several datasets, protocols, class lists, files."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pinmem import checkpoint, evaluate
from pinmem.data import CITYSCAPES
from pinmem.evaluation import (
    Inference,
    choose_classes,
    confusion_of,
    open_dataset,
    reading,
    score,
    table,
)
from pinmem.models import build_model
from pinmem.prediction.pictures import denormalize
from pinmem.program import run
from tests.data_own import own_tree
from tests.data_trees import VARIANTS, make
from tests.scenes import streets

NAME = "deeplabv3plus_r18"


def save_network(path: Path, classes: int = 19, memory: bool = True) -> Path:
    """A checkpoint of a network with random weights."""
    config = {
        "model": NAME, "num_classes": classes, "memory": memory, "output_stride": None,
        "memory_momentum": 0.8, "memory_temperature": 1.0,
    }  # fmt: skip
    torch.manual_seed(0)
    model = build_model(NAME, classes, memory)
    checkpoint.save(path, {"model": model.state_dict(), "config": config})
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "net.pt")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the program with arguments; its exit status."""
    monkeypatch.setattr("sys.argv", ["evaluate", *map(str, arguments), "--workers", "0"])
    try:
        run(evaluate.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_several_datasets_and_every_file(network: Path, tmp_path, monkeypatch, capsys) -> None:
    datasets = [f"{name}={streets() / name}" for name in ("cityscapes", "gtav")]
    status = call(
        monkeypatch, "--checkpoint", network, "--dataset", datasets[0], "--dataset", datasets[1],
        "--mode", "slide", "--crop", "[48, 80]", "--stride", "40", "--scales", "[0.5, 1.0]",
        "--flip", "--json", tmp_path / "scores.json", "--picture", tmp_path / "confusion.png",
    )  # fmt: skip
    captured = capsys.readouterr()
    assert status == 0, captured.err
    content = json.loads((tmp_path / "scores.json").read_text())
    model = checkpoint.load_trained(network)
    inference = Inference("slide", (48, 80), (40, 40), (0.5, 1.0), True)
    means = []
    for name, text in zip(("cityscapes", "gtav"), datasets, strict=True):
        confusion = confusion_of(model, open_dataset("d", text, "val"), inference=inference)
        found, expected = content["datasets"][name], score(confusion)
        assert found["confusion"] == confusion.tolist()
        assert found["miou"] == expected.miou
        iou = [None if value != value else value for value in expected.iou.tolist()]
        assert found["iou"] == dict(zip(CITYSCAPES.names, iou, strict=True))
        assert found["protocol"].startswith("windows of 48x80, stride 40x40, over images at own")
        assert "scales 0.5, 1, flip, split val, 2 images" in found["protocol"]
        assert f"{name}: mIoU {100 * expected.miou:.2f}, protocol: windows" in captured.out
        means.append(expected.miou)
    assert content["mean_miou"] == sum(means) / 2
    assert content["checkpoint"]["sha256"] == hashlib.sha256(network.read_bytes()).hexdigest()
    assert content["versions"]["torch"] == torch.__version__
    lines = captured.out[captured.out.index(" " * 14) :].splitlines()
    assert lines[0].split() == ["cityscapes", "gtav", "mean"]
    assert any(line.split()[0] == "train" and "-" in line.split()[1:] for line in lines)
    assert "nan" not in captured.out.lower()
    assert Image.open(tmp_path / "confusion.png").width > 1000


def test_existing_files_are_kept(network: Path, tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "scores.json"
    file.write_text("mine")
    options = ("--checkpoint", network, "--dataset", f"gtav={streets() / 'gtav'}", "--json", file)
    assert call(monkeypatch, *options) == 2
    assert f"json: {file} exists" in capsys.readouterr().err and file.read_text() == "mine"
    assert call(monkeypatch, *options, "--overwrite", "--images", 1) == 0
    assert "mean_miou" in json.loads(file.read_text())


def test_one_empty_dataset_of_two(tmp_path, monkeypatch, capsys) -> None:
    path = save_network(tmp_path / "five.pt", classes=5)
    full, empty = own_tree(tmp_path / "full"), own_tree(tmp_path / "empty")
    for text in (full, empty):  # unnamed classes are numbered
        content = text.read_text()
        for number, name in enumerate(("flat", "built", "thing", "green", "sky")):
            content = content.replace(name, f"'{number}'")
        text.write_text(content)
    for label in (tmp_path / "empty/masks/val").iterdir():
        Image.new("L", Image.open(label).size, 0).save(label)
    options = ("--checkpoint", path, "--dataset", full, "--dataset", empty)
    assert call(monkeypatch, *options, "--json", tmp_path / "a.json") == 1
    captured = capsys.readouterr()
    assert f"error: {empty}: split val: no labelled pixel" in captured.err
    assert "my: mIoU" in captured.out
    content = json.loads((tmp_path / "a.json").read_text())
    assert list(content["datasets"]) == ["my"] and content["mean_miou"] is None


def test_class_lists() -> None:
    sixteen, thirteen = (choose_classes([n], CITYSCAPES) for n in ("synthia16", "synthia13"))
    assert len(sixteen) == 16 and len(thirteen) == 13
    missing = {CITYSCAPES.names[k] for k in set(range(19)) - set(thirteen)}
    assert missing == {"terrain", "truck", "train", "wall", "fence", "pole"}
    assert choose_classes(["car", "road"], CITYSCAPES) == [0, 13]
    assert choose_classes([], CITYSCAPES) is None
    with pytest.raises(ValueError, match="classes: got 'cart', expected synthia16"):
        choose_classes(["cart"], CITYSCAPES)


def test_a_mean_over_a_class_list(network: Path, monkeypatch, capsys) -> None:
    text = f"cityscapes={streets() / 'cityscapes'}"
    options = ("--checkpoint", network, "--dataset", text, "--classes", "synthia13")
    assert call(monkeypatch, *options) == 0
    out = capsys.readouterr().out
    confusion = confusion_of(checkpoint.load_trained(network), open_dataset("d", text, "val"))
    expected = score(confusion, choose_classes(["synthia13"], CITYSCAPES))
    assert f"mIoU {100 * expected.miou:.2f}" in out and "mean over synthia13" in out


def test_protocols_read_datasets_at_their_sizes(tmp_path) -> None:
    text = f"cityscapes={streets() / 'cityscapes'}"
    image, labels = open_dataset("d", text, "val", protocol="half")[0]
    assert (image.shape, labels.shape) == ((3, 32, 64), (64, 128))
    image, labels = open_dataset("d", text, "val", protocol="robustnet")[0]
    assert (image.shape, labels.shape) == ((3, 64, 128), (64, 128))
    make(tmp_path, VARIANTS["mapillary v1.2 of 2.0"])
    text = f"mapillary={tmp_path}"
    image, labels = open_dataset("d", text, "val", protocol="robustnet")[0]
    assert (image.shape, labels.shape) == ((3, 1536, 1536), (1536, 1536))
    assert (labels != 255).any()
    whole = open_dataset("d", text, "val")[0][1]
    image, labels = open_dataset("d", text, "val", protocol="half")[0]
    assert labels.shape == whole.shape and image.shape[1] == whole.shape[0] // 2
    assert "1536" in reading("robustnet", "mapillary").words
    assert reading("half", "bdd100k").words == "own size"
    with pytest.raises(ValueError, match="size: got 512, expected none with protocol half"):
        reading("half", "cityscapes", 512)


@pytest.mark.parametrize("shape", [(600, 901), (768, 1024), (700, 1001)])
def test_mapillary_is_resized_as_the_published_code_does(shape: tuple[int, int]) -> None:
    """Pillow's bicubic and nearest resizing to height 1536, and the centre."""
    from pinmem.evaluation.protocols import _centre_square

    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (3, shape[0] // 6, shape[1] // 6), generator=generator)
    pixels = F.interpolate(coarse[None].float(), shape, mode="bicubic")[0].clamp(0, 255).byte()
    labels = torch.randint(0, 19, shape, generator=generator, dtype=torch.uint8)
    got, truth = _centre_square(pixels, labels)
    size = (int(shape[1] / shape[0] * 1536), 1536)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
    left = round((size[0] - 1536) / 2)
    box = (left, 0, left + 1536, 1536)
    expected = Image.fromarray(labels.numpy()).resize(size, Image.Resampling.NEAREST).crop(box)
    assert (truth.numpy() == np.asarray(expected)).all()
    difference = denormalize(got).int() - torch.from_numpy(
        np.asarray(image.crop(box)).copy()
    ).permute(2, 0, 1)
    assert difference.abs().max() <= 2 and (difference.abs() > 1).float().mean() < 1e-3


def test_a_narrow_image_is_padded_with_ignored_pixels() -> None:
    from pinmem.evaluation.protocols import _centre_square

    image = torch.full((3, 1536, 1001), 200, dtype=torch.uint8)
    labels = torch.ones(1536, 1001, dtype=torch.uint8)
    padded, truth = _centre_square(image, labels)
    assert padded.shape == (3, 1536, 1536) and truth.shape == (1536, 1536)
    columns = (truth != 255).all(dim=0).nonzero().flatten()
    assert (columns[0], columns[-1], len(columns)) == (267, 1267, 1001)
    assert (padded[:, :, 267:1268] > padded[:, :, :1].max()).all()


def test_a_table_of_several_has_their_mean_and_dashes() -> None:
    one = score(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    two = score(torch.tensor([[4, 0, 0], [0, 0, 0], [0, 0, 4]]))
    lines = [line.split() for line in table({"a": one, "b": two}).splitlines()]
    assert lines == [
        ["a", "b", "mean"],
        ["0", "75.00", "100.00", "87.50"],
        ["1", "80.00", "-", "80.00"],
        ["2", "-", "100.00", "100.00"],
        ["mIoU", "77.50", "100.00", "88.75"],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--classes", "[road, cart]"), "classes: got 'cart'"),
        (("--stride", "900"), r"stride: got [900, 900], expected 1 up to the crop, [768, 768]"),
        (("--protocol", "half", "--size", "64"), "size: got 64, expected none with protocol half"),
        (("--device", "abacus"), "device: got 'abacus'"),
    ],
)
def test_options_that_cannot_be(network, options, message, monkeypatch, capsys) -> None:
    text = f"gtav={streets() / 'gtav'}"
    assert call(monkeypatch, "--checkpoint", network, "--dataset", text, *options) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1


def test_without_matplotlib_the_picture_names_the_extra(network, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = f"gtav={streets() / 'gtav'}"
    options = ("--checkpoint", network, "--dataset", text, "--picture", tmp_path / "a.png")
    assert call(monkeypatch, *options) == 2
    assert "pip install 'pinmem[visualize]'" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
