"""Every arrangement of files a dataset comes in is found, paired and decoded."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from pinmem.data import DataError, build_dataset, known_datasets
from pinmem.data.check import main as check
from pinmem.data.describe import describe
from pinmem.data.files import find_files
from pinmem.data.parse import open_description
from pinmem.data.splits import standard_split
from pinmem.prediction.inputs import find
from tests.data_files import gtav_tree, picture, target, write, write_palette
from tests.data_trees import VARIANTS, make, scene


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(tmp_path, name):
    variant = VARIANTS[name]
    pairs = make(tmp_path, variant)
    dataset = build_dataset(variant.dataset, tmp_path, variant.split)
    assert [dataset.paths(i) for i in range(len(dataset))] == pairs
    for index, number in enumerate(variant.numbers):
        pixels, labels = dataset[index]
        assert isinstance(pixels, tv_tensors.Image)
        assert isinstance(labels, tv_tensors.Mask)
        assert pixels.dtype == labels.dtype == torch.uint8
        assert np.array_equal(labels.numpy(), scene(number)[1])
        if variant.image.endswith(".png"):
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), scene(number)[0])


def test_every_dataset_has_a_variant_tested():
    assert {variant.dataset.partition(":")[0] for variant in VARIANTS.values()} == set(
        known_datasets()
    )


@pytest.mark.parametrize("dataset", ["mapillary", "synthia", "idd", "gtav", "cityscapes"])
def test_every_raw_value_of_a_known_dataset_has_a_meaning(dataset):
    """Tables are complete: 0..65 and 0..123 of Mapillary, 0..22 of SYNTHIA, 0..33 of Cityscapes."""
    counts = {"mapillary": (66, 66, 124), "synthia": (23,), "idd": (0,), "gtav": (35,)}
    layouts = known_datasets()[dataset].layouts
    for layout, count in zip(layouts, counts.get(dataset, (34,)), strict=False):
        assert set(range(count)) <= set(layout.encoding.values)
    published = {13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7}
    if dataset == "mapillary":
        values = layouts[0].encoding.values
        assert {k: v for k, v in values.items() if v < 8} == published
    if dataset == "idd":
        names = layouts[-1].encoding.names
        assert len(names) == 40 and names["non-drivable fallback"] == 9


def test_pairs_are_in_order_of_name_and_hidden_files_are_left(tmp_path):
    gtav_tree(tmp_path, 4)
    (tmp_path / "images/train/a/._00001.png").write_bytes(b"resource fork")
    (tmp_path / "images/train/a/notes.txt").write_text("no image")
    write(tmp_path / "images/train/a/.ipynb_checkpoints/00001-checkpoint.png", picture())
    dataset = build_dataset("gtav", str(tmp_path), "train")
    assert [dataset.paths(i)[0].name for i in range(4)] == [f"0000{i}.png" for i in range(1, 5)]
    left = find_files(*open_description("gtav")[:1], tmp_path, "train").skipped
    assert sorted(path.name for paths in left.values() for path in paths) == [
        "._00001.png",
        "00001-checkpoint.png",
        "notes.txt",
    ]


def test_suffixes_of_any_case_are_paired(tmp_path):
    """Some cameras, and some programs, write .JPG: all of them, or one among others."""
    for number, suffix in enumerate(("jpg", "JPG", "Jpeg")):
        write(tmp_path / f"images/10k/val/{number}.{suffix}", picture(number))
        write(tmp_path / f"labels/sem_seg/masks/val/{number}.png", target(number))
    assert len(build_dataset("bdd100k", tmp_path, "val")) == 3


def test_pictures_that_are_not_looked_for_are_said(tmp_path, caplog):
    gtav_tree(tmp_path)
    write(tmp_path / "images/train/a/00009.bmp", picture())
    write(tmp_path / "labels/train/a/00010.png", target())
    assert len(build_dataset("gtav", tmp_path, "train")) == 3
    assert "gtav/train: 1 pictures skipped" in caplog.text
    assert "gtav/train: 1 labels without an image skipped" in caplog.text


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    gtav_tree(tmp_path / "real")
    for part in ("images", "labels"):
        (tmp_path / "here" / part / "train").mkdir(parents=True)
        (tmp_path / "here" / part / "train/a").symlink_to(tmp_path / "real" / part / "train/a")
        (tmp_path / "here" / part / "train/again").symlink_to(tmp_path / "here" / part / "train")
    assert len(build_dataset("gtav", tmp_path / "here", "train")) == 3


def test_two_links_to_one_folder_are_both_taken(tmp_path):
    gtav_tree(tmp_path / "real", 2)
    for part in ("images", "labels"):
        (tmp_path / "here" / part / "train").mkdir(parents=True)
        for name in ("a", "b"):
            (tmp_path / "here" / part / "train" / name).symlink_to(
                tmp_path / "real" / part / "train/a"
            )
        (tmp_path / "here" / part / "train/up").symlink_to(tmp_path)
    assert len(build_dataset("gtav", tmp_path / "here", "train")) == 4


@pytest.mark.parametrize("where", ["images/train/a", "labels/train", "images"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys, where):
    """In every program: nothing below it is taken for missing."""
    closed = gtav_tree(tmp_path) / where
    list_folder, look = os.scandir, Path.stat

    def scandir(path):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return list_folder(path)

    def stat(path, **options):
        if closed in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, **options)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(Path, "stat", stat)
    named = rf"{closed}\S*: cannot be read: Permission denied"
    with pytest.raises(DataError, match=named):
        build_dataset("gtav", tmp_path, "train")
    with pytest.raises(DataError, match=named):
        describe(tmp_path)
    with pytest.raises(DataError, match=named):
        find([str(tmp_path)], True, tmp_path / "out")
    assert check(["--dataset", "gtav", "--root", str(tmp_path), "--split", "train"]) == 1
    assert re.search(named, capsys.readouterr().out)


@pytest.mark.parametrize("name", VARIANTS)
def test_suffixes_of_any_case_in_every_layout(tmp_path, name):
    """One image and one label among others in upper case, as some programs write them."""
    variant = VARIANTS[name]
    image, label = make(tmp_path, variant)[0]
    for path in (image, label):
        path.rename(path.with_name(path.stem + path.suffix.upper()))
    listed = [file for file, _ in variant.more]
    for file in listed:
        text = (tmp_path / file).read_text().replace(image.name, image.stem + ".PNG")
        (tmp_path / file).write_text(text)
    dataset = build_dataset(variant.dataset, tmp_path, variant.split)
    assert len(dataset) == len(variant.numbers)
    found = {dataset.paths(i)[0].stem: dataset[i][1] for i in range(len(dataset))}
    assert np.array_equal(found[image.stem].numpy(), scene(variant.numbers[0])[1])


def test_linked_files(tmp_path):
    gtav_tree(tmp_path / "real")
    for path in (tmp_path / "real").rglob("*.png"):
        link = tmp_path / "here" / path.relative_to(tmp_path / "real")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    dataset = build_dataset("gtav", tmp_path / "here", "train")
    assert np.array_equal(dataset[2][1].numpy(), target(2))


def test_variant_with_labels_wins(tmp_path):
    """A folder of BDD's detection images must not hide the segmentation set beside it."""
    write(tmp_path / "images/val/only_detection.jpg", picture())
    write(tmp_path / "images/10k/val/a.jpg", picture())
    write(tmp_path / "labels/sem_seg/masks/val/a.png", target())
    dataset = build_dataset("bdd100k", tmp_path, "val")
    assert [dataset.paths(i)[0].name for i in range(len(dataset))] == ["a.jpg"]


def test_flat_folder_is_divided_by_the_standard_split(tmp_path):
    for number in range(1, 41):
        write(tmp_path / f"images/{number:05d}.png", picture())
        write_palette(tmp_path / f"labels/{number:05d}.png", np.zeros((6, 10), np.uint8))
    sets = {split: build_dataset("gtav", tmp_path, split) for split in ("train", "val", "test")}
    assert sum(map(len, sets.values())) == 40
    names = [int(d.paths(i)[0].stem) for d in sets.values() for i in range(len(d))]
    assert sorted(names) == list(range(1, 41))


def test_files_of_another_split_are_never_taken_for_a_flat_folder(tmp_path):
    """00022 is of the standard val split, but here it lies in train."""
    write(tmp_path / "images/train/00022.png", picture())
    write_palette(tmp_path / "labels/train/00022.png", np.zeros((6, 10), np.uint8))
    assert len(build_dataset("gtav", tmp_path, "train")) == 1
    with pytest.raises(ValueError, match="no image of gtav, split 'val'"):
        build_dataset("gtav", tmp_path, "val")


def test_a_list_names_what_is_there(tmp_path):
    gtav_tree(tmp_path)
    for part in ("images", "labels"):
        for path in (tmp_path / part / "train/a").iterdir():
            path.rename(tmp_path / part / path.name)
    (tmp_path / "train.txt").write_text("00001.png\nimages/00003.png\n00009.png\n")
    with pytest.raises(DataError, match=r"1 of 3 pairs lack a file: .*00009\.png"):
        build_dataset("gtav", tmp_path, "train")
    (tmp_path / "train.txt").write_text("00001.png\r\nimages/00003.png\r\n")
    dataset = build_dataset("gtav", tmp_path, "train")
    assert [dataset.paths(i)[0].name for i in range(len(dataset))] == ["00001.png", "00003.png"]


def test_a_condition_is_not_another(tmp_path):
    make(tmp_path, VARIANTS["acdc"])
    make(tmp_path, VARIANTS["acdc one condition"])
    assert len(build_dataset("acdc", tmp_path, "val")) == 4
    assert len(build_dataset("acdc:fog", tmp_path, "val")) == 2
    with pytest.raises(ValueError, match="no subset 'sun', expected fog, night, rain, snow"):
        build_dataset("acdc:sun", tmp_path, "val")


def test_a_dataset_without_splits_is_for_training(tmp_path):
    make(tmp_path, VARIANTS["urbansyn"])
    with pytest.raises(DataError, match="split 'val'"):
        build_dataset("urbansyn", tmp_path, "val")


def test_standard_splits_have_the_published_sizes():
    gtav = [standard_split("gtav", split) for split in ("train", "val", "test")]
    assert [len(part) for part in gtav] == [12388, 6382, 6181]
    assert len(frozenset.union(*gtav)) == 24951
    synthia = [standard_split("synthia", split) for split in ("train", "val")]
    assert [len(part) for part in synthia] == [6580, 2820]
    assert frozenset.union(*synthia) == frozenset(range(9400))


@pytest.mark.parametrize("alias", ["valid", "validation", "val"])
def test_split_aliases(tmp_path, alias):
    gtav_tree(tmp_path, 2, "valid")
    assert len(build_dataset("gtav", tmp_path, alias)) == 2


@pytest.mark.parametrize("size", [3, (3, 5)])
def test_reading_at_a_size(tmp_path, size):
    gtav_tree(tmp_path)
    image, labels = build_dataset("gtav", tmp_path, "train", size=size)[0]
    assert image.shape == (3, 3, 5)
    assert labels.shape == (3, 5)
    assert image.dtype == labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) <= set(np.unique(target(0)).tolist())


def test_with_transform_leaves_the_first_view_alone(tmp_path):
    dataset = build_dataset("gtav", gtav_tree(tmp_path), "train")
    other = dataset.with_transform(lambda image, labels: (image.flip(-1), labels.flip(-1)))
    assert torch.equal(other[1][1], dataset[1][1].flip(-1))
    assert dataset.transform is None


def test_a_dataset_is_read_in_worker_processes(tmp_path):
    dataset = build_dataset("gtav", gtav_tree(tmp_path), "train")
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, num_workers=1)
    images, labels = next(iter(loader))
    assert images.shape == (3, 3, 6, 10)
    assert np.array_equal(labels[2].numpy(), target(2))
