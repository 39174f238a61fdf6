"""Class-uniform draws, the statistics they need, and the cache of decoded pairs."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pinmem.data import DataError, DomainDataset, build_dataset, dataset
from pinmem.data.check import main as check
from pinmem.data.statistics import ClassPlaces, places_of, statistics_file
from pinmem.data.transforms import Geometry
from tests.data_files import gtav_tree, label_ids, target, write_palette
from tests.data_own import five, own_tree
from tests.data_trees import VARIANTS, make


@pytest.mark.parametrize("tile", [4, 7, 1024])
def test_places_are_centroids_in_tiles(tile):
    labels = target(5, (9, 13))
    found = {tuple(row) for row in places_of(labels, 19, tile).tolist()}
    expected = set()
    for top in range(0, 9, tile):
        for left in range(0, 13, tile):
            part = labels[top : top + tile, left : left + tile]
            for number in np.unique(part[part < 19]):
                y, x = (axis.mean() for axis in np.nonzero(part == number))
                expected.add((int(number), top + int(y), left + int(x)))
    assert found == expected


def test_a_crop_covers_its_centre():
    geometry = Geometry((20, 30), scale=(0.6, 2.0))
    image = torch.zeros(3, 60, 90, dtype=torch.uint8)
    for y, x in ((0, 0), (59, 89), (30, 41), (59, 3)):
        labels = torch.full((60, 90), 9, dtype=torch.uint8)
        labels[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = 1
        for _ in range(40):
            assert (geometry(image, labels, (y, x))[1] == 1).any()


def test_draws_are_uniform_over_classes(tmp_path):
    """A rare class is in every nineteenth draw at least, a common one no more often."""
    for index in range(40):
        labels = np.zeros((6, 10), np.uint8)
        if index == 3:
            labels[5, 9] = 13
        gtav_tree(tmp_path, 0)
        write_palette(tmp_path / f"labels/train/{index:02d}.png", label_ids(labels))
        write_palette(tmp_path / f"images/train/{index:02d}.png", label_ids(labels))
    source = build_dataset("gtav", tmp_path, "train", Geometry((3, 3), scale=(1.0, 1.0)))
    places = ClassPlaces.of(source, tmp_path / "statistics")
    assert len(places.classes) == 2
    shares = {}
    for share in (0.0, 0.5, 1.0):
        draws = DomainDataset([source], 400, class_uniform=share, places=[places])
        shares[share] = sum(bool((draws[i][1] == 13).any()) for i in range(400)) / 400
    assert shares[0.0] < 0.05
    assert 0.15 < shares[0.5] < 0.35
    assert 0.4 < shares[1.0] < 0.6
    again = DomainDataset([source], 400, class_uniform=1.0, places=[places])
    torch.manual_seed(5)  # a draw is a function of its number
    assert all(torch.equal(again[i][1], draws[i][1]) for i in range(30, 0, -1))
    with pytest.raises(ValueError, match="places: expected 1, one a dataset, got 0"):
        DomainDataset([source], 4, class_uniform=0.5)


def test_the_check_writes_the_statistics(tmp_path, monkeypatch):
    path = own_tree(tmp_path)
    folder = tmp_path / "statistics"
    source = build_dataset(str(path), None, "train")
    made = ClassPlaces.of(source, tmp_path / "other")
    arguments = ["--dataset", str(path), "--split", "train", "--statistics", str(folder)]
    assert check(arguments) == 0
    assert [entry.name for entry in folder.iterdir()] == [statistics_file(source, folder).name]
    monkeypatch.setattr(type(source), "read_target", None)  # nothing is read again
    again = ClassPlaces.of(source, folder)
    assert all(np.array_equal(a, b) for a, b in zip(made.classes, again.classes, strict=True))


def test_statistics_of_changed_labels_are_made_anew(tmp_path):
    path = own_tree(tmp_path)
    source = build_dataset(str(path), None, "train")
    before = statistics_file(source, tmp_path)
    os.utime(source.paths(2)[1], ns=(1, 1))
    assert statistics_file(source, tmp_path) != before
    path.write_text(path.read_text().replace("40: green", "40: sky"))
    assert statistics_file(build_dataset(str(path), None, "train"), tmp_path) != before


def test_a_cached_pair_is_the_pair(tmp_path, monkeypatch):
    path = own_tree(tmp_path)
    plain = build_dataset(str(path), None, "train")
    expected = [plain[i] for i in range(4)]
    for _ in range(2):  # written, then read
        cached = build_dataset(str(path), None, "train", cache=tmp_path / "cache")
        for (image, labels), (pixels, classes) in zip(
            expected, map(cached.read, range(4)), strict=True
        ):
            assert torch.equal(image, pixels) and torch.equal(labels, classes)
            assert pixels.is_contiguous(memory_format=torch.contiguous_format) or (
                pixels.stride(0) == 1
            )
            pixels.fill_(3)  # in place, as a transform may: the file stays as it is
        monkeypatch.setattr(dataset, "read_image", None)  # nothing is decoded again
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_a_changed_source_is_decoded_again(tmp_path):
    path = own_tree(tmp_path)
    cached = build_dataset(str(path), None, "train", cache=tmp_path / "cache")
    assert np.array_equal(cached[0][1].numpy(), five(0))
    label = cached.paths(0)[1]
    label.write_bytes(cached.paths(1)[1].read_bytes())
    assert np.array_equal(cached[0][1].numpy(), five(1))
    label.unlink()
    with pytest.raises(DataError, match=f"{label}: file cannot be read: No such file"):
        cached[0]


def test_two_processes_build_one_cache(tmp_path):
    path = own_tree(tmp_path)
    plain = build_dataset(str(path), None, "train")
    cached = build_dataset(str(path), None, "train", cache=tmp_path / "cache")
    loaders = [iter(DataLoader(cached, sampler=[0, 1, 2, 3], num_workers=2)) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for batches in pool.map(list, loaders):
            for index, (image, labels) in enumerate(batches):
                assert torch.equal(image[0], plain[index][0])
                assert torch.equal(labels[0], plain[index][1])
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_a_broken_cache_file_is_named(tmp_path):
    path = own_tree(tmp_path)
    cached = build_dataset(str(path), None, "train", cache=tmp_path / "cache")
    cached[0]
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{file}: cached pair cannot be read"):
        cached[0]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    path = own_tree(tmp_path)
    cached = build_dataset(str(path), None, "train", cache=path)  # a file, not a folder
    with pytest.raises(DataError, match=r"cache .*my\.yaml/\w+\.npy: could not be written: "):
        cached[0]


@pytest.mark.parametrize("name", ["acdc", "acdc:night"])
def test_the_check_and_a_run_name_the_statistics_alike(tmp_path, name):
    make(tmp_path, VARIANTS["acdc one condition"])
    arguments = ["--dataset", name, "--root", str(tmp_path), "--split", "val"]
    assert check([*arguments, "--statistics", str(tmp_path / "s")]) == 0
    assert statistics_file(build_dataset(name, tmp_path, "val"), tmp_path / "s").is_file()
