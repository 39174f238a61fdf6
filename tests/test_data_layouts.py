"""Every arrangement of folders a dataset is handed out in is found, paired and decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from pinmem.data import IGNORE_INDEX, LAYOUTS, build_dataset
from pinmem.data.encodings import MAPILLARY_TO_TRAIN_ID, SYNTHIA_TO_TRAIN_ID
from pinmem.data.splits import standard_split
from tests.data_files import (
    gtav_tree,
    label_ids,
    picture,
    target,
    write,
    write_palette,
    write_synthia,
)


def synthia_label(path: Path, train_ids: np.ndarray) -> Path:
    codes = {t: c for c, t in SYNTHIA_TO_TRAIN_ID.items() if t != IGNORE_INDEX}
    return write_synthia(path, np.vectorize(lambda t: codes.get(int(t), 22))(train_ids))


def mapillary_label(path: Path, train_ids: np.ndarray) -> Path:
    codes = {t: c for c, t in MAPILLARY_TO_TRAIN_ID.items() if t != IGNORE_INDEX}
    ids = np.vectorize(lambda t: codes.get(int(t), 65), otypes=[np.uint8])(train_ids)
    return write_palette(path, ids)


def cityscapes_label(path: Path, train_ids: np.ndarray) -> Path:
    return write(path, label_ids(train_ids))


def gtav_label(path: Path, train_ids: np.ndarray) -> Path:
    return write_palette(path, label_ids(train_ids))


CITY = "leftImg8bit/{}/bonn/bonn_000000_000019_leftImg8bit"
FINE = "gtFine/{}/bonn/bonn_000000_000019_gtFine_"
# dataset, split, folder name in "{}", image file, label file, how its label is written
VARIANTS: list[tuple[str, str, str, str, str, Callable[[Path, np.ndarray], Path]]] = [
    ("gtav", "train", "train", "images/{}/00001.png", "labels/{}/00001.png", gtav_label),
    ("gtav", "val", "valid", "images/{}/x/00007.png", "labels/{}/x/00007.png", gtav_label),
    ("gtav", "val", "val", "images/{}/00007.png", "labels/{}/00007.png", gtav_label),
    ("gtav", "test", "test", "images/{}/00007.png", "labels/{}/00007.png", gtav_label),
    ("gtav", "val", "", "images/00022.png", "labels/00022.png", gtav_label),
    ("synthia", "train", "train", "RGB/{}/0000001.png", "GT/LABELS/{}/0000001.png", synthia_label),
    ("synthia", "val", "", "RGB/0000000.png", "GT/LABELS/0000000.png", synthia_label),
    (
        "synthia", "train", "", "RAND_CITYSCAPES/RGB/0000001.png",
        "RAND_CITYSCAPES/GT/LABELS/0000001.png", synthia_label,
    ),
    ("cityscapes", "val", "val", CITY + ".png", FINE + "labelIds.png", cityscapes_label),
    (
        "cityscapes", "train", "train", "leftImg8bit_trainvaltest/" + CITY + ".png",
        "gtFine_trainvaltest/" + FINE + "labelIds.png", cityscapes_label,
    ),
    (
        "cityscapes", "train", "train", "leftImg8bit_trainvaltest/" + CITY + ".png",
        FINE + "labelIds.png", cityscapes_label,
    ),
    ("idd", "val", "val", CITY + ".png", FINE + "labelcsTrainIds.png", write),
    (
        "idd", "val", "val", "leftImg8bit_trainvaltest/" + CITY + ".jpg",
        "gtFine_trainvaltest/" + FINE + "labelcsTrainIds.png", write,
    ),
    ("bdd100k", "val", "val", "images/{}/a.jpg", "labels/{}/a_train_id.png", write),
    ("bdd100k", "val", "val", "images/10k/{}/a.jpg", "labels/sem_seg/masks/{}/a.png", write),
    ("mapillary", "train", "training", "{}/images/a.jpg", "{}/labels/a.png", mapillary_label),
    ("mapillary", "val", "validation", "{}/images/a.jpg", "{}/v1.2/labels/a.png", mapillary_label),
]  # fmt: skip


@pytest.mark.parametrize(("name", "split", "folder", "image", "label", "write_label"), VARIANTS)
def test_variant(tmp_path, name, split, folder, image, label, write_label):
    image_path = write(tmp_path / image.format(folder), picture(3))
    label_path = write_label(tmp_path / label.format(folder), target(3))
    dataset = build_dataset(name, tmp_path, split)
    assert len(dataset) == 1
    assert dataset.paths(0) == (image_path, label_path)
    pixels, labels = dataset[0]
    assert isinstance(pixels, tv_tensors.Image)
    assert isinstance(labels, tv_tensors.Mask)
    assert pixels.dtype == labels.dtype == torch.uint8
    assert np.array_equal(labels.numpy(), target(3))
    if image.endswith(".png"):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), picture(3))


def test_every_layout_has_a_variant_tested():
    assert {variant[0] for variant in VARIANTS} == set(LAYOUTS)


def test_pairs_are_in_order_of_name_and_hidden_files_are_left(tmp_path):
    gtav_tree(tmp_path, 4)
    (tmp_path / "images/train/a/._00001.png").write_bytes(b"resource fork")
    (tmp_path / "images/train/a/notes.txt").write_text("no image")
    dataset = build_dataset("gtav", str(tmp_path), "train")
    assert [dataset.paths(i)[0].name for i in range(4)] == [f"0000{i}.png" for i in range(1, 5)]


def test_linked_folders_are_followed(tmp_path):
    gtav_tree(tmp_path / "real")
    for part in ("images", "labels"):
        (tmp_path / "here" / part / "train").mkdir(parents=True)
        (tmp_path / "here" / part / "train/a").symlink_to(tmp_path / "real" / part / "train/a")
    assert len(build_dataset("gtav", tmp_path / "here", "train")) == 3


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
        gtav_label(tmp_path / f"labels/{number:05d}.png", target())
    sets = {split: build_dataset("gtav", tmp_path, split) for split in ("train", "val", "test")}
    assert sum(map(len, sets.values())) == 40
    names = [int(d.paths(i)[0].stem) for d in sets.values() for i in range(len(d))]
    assert sorted(names) == list(range(1, 41))


def test_files_of_another_split_are_never_taken_for_a_flat_folder(tmp_path):
    """00022 is of the standard val split, but here it lies in train."""
    write(tmp_path / "images/train/00022.png", picture())
    gtav_label(tmp_path / "labels/train/00022.png", target())
    assert len(build_dataset("gtav", tmp_path, "train")) == 1
    with pytest.raises(ValueError, match="no image of gtav, split 'val'"):
        build_dataset("gtav", tmp_path, "val")


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
