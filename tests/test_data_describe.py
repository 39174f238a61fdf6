"""A first description out of a folder."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from pinmem.data import build_dataset
from pinmem.data.describe import main as describe
from tests.data_files import write
from tests.data_own import WRITERS, five, own_tree, raw
from tests.data_trees import scene


@pytest.mark.parametrize("kind", ["table", "trainIds", "colours", "palette"])
def test_describe_writes_a_first_draft(tmp_path, kind, capsys):
    """What it writes reads the labels it looked at: the same regions, by whatever names."""
    own_tree(tmp_path)
    (tmp_path / "my.yaml").unlink()
    if kind != "table":
        for number in range(6):
            split = "train" if number < 4 else "val"
            WRITERS[kind][0](tmp_path / f"masks/{split}/shot {number}.png", number)
    draft = tmp_path / "draft.yaml"
    assert describe(["--root", str(tmp_path), "--out", str(draft)]) == 0
    content = yaml.safe_load(draft.read_text())
    assert content["images"] == "photos/{split}/*.jpg"
    assert content["labels"] == "masks/{split}/*.png"
    assert "6 images, 6 labels, 6 pairs" in draft.read_text()
    for split, numbers in (("train", range(4)), ("val", (4, 5))):
        dataset = build_dataset(str(draft), None, split)
        for index, number in enumerate(numbers):
            drafted = dataset[index][1].numpy()
            both = {*zip(drafted.ravel().tolist(), five(number).ravel().tolist(), strict=True)}
            assert len(both) == len({pair[1] for pair in both})
    before = draft.read_text()
    assert describe(["--root", str(tmp_path), "--out", str(draft)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert draft.read_text() == before


@pytest.mark.parametrize("mark", ["", "_leftImg8bit"])
def test_describe_takes_images_of_several_formats(tmp_path, mark):
    """Upper case, JPEG and PNG side by side."""
    for number, suffix in enumerate(("JPG", "jpg", "jpeg", "png")):
        write(tmp_path / f"a/train/{number}{mark}.{suffix}", scene(number)[0])
        write(tmp_path / f"b/train/{number}.png", raw(number))
    write(tmp_path / "a/train/9.txt.bmp", np.zeros((4, 4, 3), np.uint8))
    draft = tmp_path / "draft.yaml"
    assert describe(["--root", str(tmp_path), "--out", str(draft)]) == 0
    content = yaml.safe_load(draft.read_text())
    assert content["images"].endswith(f"*{mark}.{{jpeg,jpg,png}}" if mark else "jpeg,jpg,png}")
    assert len(build_dataset(str(draft), None, "train")) == 4


def test_masks_of_black_and_white(tmp_path):
    """255 is a class where nothing else is, and when a table says so."""
    for number in range(2):
        write(tmp_path / f"a/{number}.jpg", np.zeros((8, 8, 3), np.uint8))
        write(tmp_path / f"b/{number}.png", (255 * np.eye(8)).astype(np.uint8))
    assert describe(["--root", str(tmp_path), "--out", str(tmp_path / "d.yaml")]) == 0
    dataset = build_dataset(str(tmp_path / "d.yaml"), None, "train")
    assert dataset.classes.names == ("class_0", "class_255")
    assert np.array_equal(dataset[1][1].numpy(), np.eye(8))


def test_describe_says_what_it_did_not_find(tmp_path, capsys):
    write(tmp_path / "a/1.jpg", np.zeros((4, 4, 3), np.uint8))
    assert describe(["--root", str(tmp_path)]) == 1
    assert "no images whose labels have their names: found 1 files a/*.jpg" in (
        capsys.readouterr().err
    )
    assert describe(["--root", str(tmp_path / "no")]) == 1
