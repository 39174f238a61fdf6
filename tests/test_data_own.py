"""A dataset is a page of YAML: patterns or pairs, classes, an encoding."""

from __future__ import annotations

import numpy as np
import pytest

from pinmem.data import DataError, build_dataset, dataset_name
from tests.data_files import write
from tests.data_own import (
    COLORS,
    HEAD,
    NAMES,
    PATTERNS,
    TABLE,
    WRITERS,
    colors_of,
    five,
    own_tree,
    raw,
)


def assert_reads(path, root=None, split="train", numbers=(0, 1, 2, 3)):
    dataset = build_dataset(str(path), root, split)
    assert len(dataset) == len(numbers)
    for index, number in enumerate(numbers):
        assert np.array_equal(dataset[index][1].numpy(), five(number))
    return dataset


def test_patterns_and_a_table(tmp_path):
    path = own_tree(tmp_path)
    dataset = assert_reads(path)
    assert dataset.classes.names == NAMES and dataset.classes.colors == COLORS
    assert dataset.name == "my/train"
    assert_reads(path, split="val", numbers=(4, 5))
    assert_reads(path, root=tmp_path, split="validation", numbers=(4, 5))


def test_the_root_may_come_with_the_name(tmp_path):
    own_tree(tmp_path / "data")
    (tmp_path / "d.yaml").write_text(PATTERNS + HEAD + TABLE)
    assert_reads(tmp_path / "d.yaml", root=tmp_path / "data")
    with pytest.raises(ValueError, match=r"root: .*d\.yaml names no folder of its own, expected"):
        build_dataset(str(tmp_path / "d.yaml"), "", "train")


TABLES = {
    "class: raw": "{flat: 10, built: [20], thing: 30, green: 40, sky: 50, ignore: 0-9}\n",
    "values": "{values: {10: flat, 20: built, 30: thing, 40: green, sky: 50}}\nignore: 0\n",
    "joined": "{flat: 10, built: 20, thing: [30-39], green: 40, sky: '45-55'}\nignore: 0\n",
}


@pytest.mark.parametrize("table", TABLES)
def test_ways_to_write_a_table(tmp_path, table):
    path = own_tree(tmp_path)
    path.write_text("root: .\n" + PATTERNS + HEAD + "encoding: " + TABLES[table])
    assert_reads(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_encodings(tmp_path, kind):
    writer, encoding = WRITERS[kind]
    path = own_tree(tmp_path)
    for number in range(4):
        old = tmp_path / f"masks/train/shot {number}.png"
        old.unlink()
        writer(old.with_suffix(".tif" if "tiff" in kind else ".png"), number)
    patterns = PATTERNS.replace("*.png", "*.{png,tif}")
    path.write_text("root: .\n" + patterns + HEAD + encoding)
    assert_reads(path)


def test_lists_of_pairs(tmp_path):
    path = own_tree(tmp_path)
    pairs = [[f"photos/train/shot {n}.jpg", f"masks/train/shot {n}.png"] for n in (2, 0)]
    path.write_text(f"root: .\npairs: {{train: {pairs}}}\n" + HEAD + TABLE)
    assert_reads(path, numbers=(2, 0))
    with pytest.raises(DataError, match=r"no image of .*my\.yaml, split 'val'.*no such split"):
        build_dataset(str(path), None, "val")
    lines = "".join(f"{image}\t{label}\n" for image, label in pairs)
    (tmp_path / "train.txt").write_text(lines)
    path.write_text("root: .\npairs: {train: train.txt}\n" + HEAD + TABLE)
    assert_reads(path, numbers=(2, 0))
    (tmp_path / "masks/train/shot 0.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 pairs lack a file: .*shot 0\.png"):
        build_dataset(str(path), None, "train")


def test_a_list_of_names(tmp_path):
    path = own_tree(tmp_path)
    for name in ("photos", "masks"):
        for number in range(4):
            file = next((tmp_path / name / "train").glob(f"shot {number}.*"))
            file.rename(tmp_path / name / f"shot {number}{file.suffix}")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/train.txt").write_text("shot 1\nphotos/shot 3.jpg masks/shot 3.png\n")
    path.write_text(
        "root: .\nimages: photos/*.jpg\nlabels: masks/*.png\nlist: sets/{split}.txt\n"
        + HEAD
        + TABLE
    )
    assert_reads(path, numbers=(1, 3))


def test_images_and_labels_in_one_folder(tmp_path):
    for number in range(2):
        write(tmp_path / f"train/{number}_rgb.png", np.zeros((*raw(0).shape, 3), np.uint8))
        write(tmp_path / f"train/{number}_mask.png", raw(number))
    path = tmp_path / "my.yaml"
    both = "images: '{split}/*_rgb.png'\nlabels: '{split}/*_mask.png'\n"
    path.write_text("root: .\n" + both + HEAD + TABLE)
    assert_reads(path, numbers=(0, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected keys and values"),
        ("a: [", "not YAML: "),
        (PATTERNS + TABLE, r"classes: expected name: \[red, green, blue\]"),
        (
            PATTERNS + HEAD + "encodng: trainIds\n",
            "no such key 'encodng'; did you mean",
        ),
        (PATTERNS + HEAD + "  flat: [1, 2, 3]\n" + TABLE, "key 'flat' is there twice"),
        (PATTERNS + HEAD, "encoding: got None, expected trainIds"),
        (PATTERNS + HEAD + "encoding: {1: flatt}\n", "no class 'flatt'; did you mean 'flat'?"),
        (PATTERNS + HEAD + "encoding: {flat: [1, 2], sky: 2}\n", "raw value 2 means two classes"),
        (PATTERNS + HEAD + "encoding: trainIds\nignore: [9, 0]\n", "ignore: 0 is a class in the"),
        (PATTERNS + HEAD + "encoding: {70000: flat}\n", "raw value 70000, expected 0..65535"),
        (PATTERNS + HEAD + "encoding: labelIds\n", "labelIds are those of classes: cityscapes"),
        ("images: a/*.png\n" + HEAD + TABLE, "labels: missing, expected a pattern"),
        ("images: a/*.png\nlabels: b/*_*.png\n" + HEAD + TABLE, "has not the wildcards of images"),
        ("images: a.png\nlabels: b.png\n" + HEAD + TABLE, "expected a pattern with *"),
        (PATTERNS + "classes: {flat: [1, 2]}\n", r"got \[1, 2\], expected a colour"),
        (PATTERNS + "classes: {ignore: [1, 2, 3]}\n" + TABLE, "'ignore' stands for"),
        ("images: '{subset}/*'\nlabels: '{subset}/*'\n" + HEAD + TABLE, "subsets: missing"),
        ("pairs: {train: [[a, b, c]]}\n" + HEAD + TABLE, "expected an image and a label"),
        ("pairs: {train: no.txt}\n" + HEAD + TABLE, "No such file"),
        ("pairs: [[a, b]]\n" + HEAD + TABLE, r"pairs: got \[\['a', 'b'\]\], expected keys and"),
        (PATTERNS + HEAD + "encoding: {flat: 0-99999999999}\n", "expected 0..65535"),
        (PATTERNS + HEAD + "encoding: {flat: 9-3}\n", "raw value 9-3, expected 0..65535"),
        (PATTERNS + HEAD + "encoding: {true: flat}\n", "no class True"),
        (PATTERNS + HEAD + "encoding: {colors: {flat: []}}\n", r"got \[\], expected a colour"),
        (
            PATTERNS + HEAD + "encoding: {channel: 7, values: {1: flat}}\n",
            "channel: got 7, expected",
        ),
        (PATTERNS + "classes: {a: (1, 2, 3)}\n", r"classes: a: got '\(1', expected a colour"),
        (PATTERNS + "classes: {a: [true, 2, 3]}\n", r"classes: a: got \[True, 2, 3\], expected a"),
        ("images: {split}/*\nlabels: b/*\n" + HEAD + TABLE, "not YAML: "),
        (
            "images: 'a/{splt}/*'\nlabels: 'b/{splt}/*'\n" + HEAD + TABLE,
            "images: got {splt}, expected",
        ),
        ("images: 'a/{split/*'\nlabels: b/*\n" + HEAD + TABLE, "whose braces do not match"),
        (
            "images: /a/*\nlabels: /b/*\n" + HEAD + TABLE,
            "images: got '/a/*', expected a pattern below",
        ),
        (PATTERNS + HEAD + TABLE + "splits: train\n", "splits: got 'train', expected keys and"),
        (PATTERNS + HEAD + TABLE + "splits: {train: 3}\n", "splits: got 3, expected a text"),
        (
            PATTERNS + HEAD + TABLE + "standard_split: kitti\n",
            "standard_split: got 'kitti', expected",
        ),
        (PATTERNS + HEAD + TABLE + "layouts: []\n", r"layouts: got \[\], expected a list"),
        (
            PATTERNS + HEAD + TABLE + "layouts: [{images: a/*, labels: b/*}]\n",
            "images: is beside layouts, expected inside them",
        ),
    ],
)
def test_what_is_wrong_with_a_description(tmp_path, text, message):
    path = tmp_path / "my.yaml"
    path.write_text("root: .\n" + text if text.startswith(("images", "classes", "pairs")) else text)
    with pytest.raises(DataError) as caught:
        build_dataset(str(path), None, "train")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(
        DataError, match=message.replace("?", r"\?").replace("*", r"\*").replace("{", r"\{")
    ):
        build_dataset(str(path), None, "train")


def test_a_channel_that_the_file_has_not(tmp_path):
    path = own_tree(tmp_path)
    write(tmp_path / "masks/train/shot 1.png", colors_of(five(1)))
    path.write_text(
        "root: .\n"
        + PATTERNS
        + HEAD
        + "encoding: {channel: 3, values: {10: flat}}\nignore: 0-255\n"
    )
    with pytest.raises(DataError, match=r"shot 1\.png: label has 3 channels, expected a channel 3"):
        build_dataset(str(path), None, "train")[1]


def test_a_pattern_of_another_system(tmp_path):
    path = own_tree(tmp_path)
    for patterns in (PATTERNS.replace("/", "\\"), PATTERNS.replace(": ", ": ./")):
        path.write_text("root: .\n" + patterns + HEAD + TABLE)
        assert_reads(path)


def test_no_such_description(tmp_path):
    with pytest.raises(DataError, match=r"no\.yaml: cannot be read: No such file"):
        build_dataset(str(tmp_path / "no.yaml"), None, "train")


def test_short_names():
    assert [dataset_name(n) for n in ("gtav", "acdc:fog", "a/my.yaml", "a/my.yaml:wet")] == [
        "gtav",
        "acdc:fog",
        "my",
        "my:wet",
    ]
