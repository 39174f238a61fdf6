"""A draw is a function of the seed and its number; the domains' indices are independent."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pinmem.data import DomainDataset, SegmentationDataset, build_dataset, seeded, train_transform
from tests.data_files import gtav_tree


class Numbers(SegmentationDataset):
    """Images that are nothing but their own index, and three kinds of noise."""

    def __init__(self, count: int, size: int = 2) -> None:
        super().__init__("numbers", [], lambda raw: raw)
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = (torch.rand(()), np.random.rand(), random.random())
        image = torch.zeros(3, self.size, 2)
        image[:, 0, 0] = torch.tensor([float(n) for n in noise])
        image[:, 0, 1] = index
        return image, torch.zeros(self.size, 2, dtype=torch.uint8)


def indices(dataset: DomainDataset) -> np.ndarray:
    return np.array([dataset[i][0][:, 0, 0, 1].tolist() for i in range(len(dataset))], dtype=int)


def test_shapes_and_types(tmp_path):
    dataset = build_dataset("gtav", gtav_tree(tmp_path), "train", train_transform((8, 12)))
    domains = DomainDataset(
        [dataset, dataset.with_transform(train_transform((8, 12), hard=True))], 5
    )
    assert len(domains) == 5
    images, targets = domains[4]
    assert images.shape == (2, 3, 8, 12)
    assert images.dtype == torch.float32
    assert targets.shape == (2, 8, 12)
    assert targets.dtype == torch.uint8
    assert type(images) is type(targets) is torch.Tensor


def test_uint8_images_stay_uint8(tmp_path):
    geometry = train_transform(8).geometry
    dataset = build_dataset("gtav", gtav_tree(tmp_path), "train", geometry)
    assert DomainDataset([dataset], 1)[0][0].dtype == torch.uint8


def test_a_draw_depends_on_seed_and_number_alone():
    domains = DomainDataset([Numbers(50), Numbers(70)], 20, seed=3)
    forward = [domains[i][0] for i in range(20)]
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    backward = [domains[i][0] for i in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    other = DomainDataset([Numbers(50), Numbers(70)], 20, seed=4)
    assert not any(torch.equal(forward[i], other[i][0]) for i in range(20))
    noise = torch.stack(forward)[..., 0, 0].flatten()
    assert noise.unique().numel() == noise.numel()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing(tmp_path, workers):
    dataset = build_dataset("gtav", gtav_tree(tmp_path), "train", train_transform(8))
    domains = DomainDataset([dataset, dataset], 4, seed=1)
    loader = torch.utils.data.DataLoader(domains, batch_size=2, num_workers=workers)
    images = torch.cat([batch[0] for batch in loader])
    assert torch.equal(images, torch.stack([domains[i][0] for i in range(4)]))


def test_the_outer_streams_go_on_as_if_nothing_had_happened():
    domains = DomainDataset([Numbers(5)], 3)
    with seeded(0):
        alone = (torch.rand(()), np.random.rand(), random.random())
    with seeded(0):
        domains[1]
        around = (torch.rand(()), np.random.rand(), random.random())
    assert alone == around


def test_streams_are_restored_after_an_error():
    before = torch.default_generator.get_state()
    with pytest.raises(RuntimeError), seeded(1):
        torch.rand(3)
        raise RuntimeError
    assert torch.equal(before, torch.default_generator.get_state())


def test_indices_are_uniform_and_independent():
    """The chi-squared of 8 x 8 cells stays below its 99.99% quantile of 63 degrees (117)."""
    drawn = indices(DomainDataset([Numbers(8), Numbers(8)], 2560))
    for column in drawn.T:
        assert np.bincount(column, minlength=8).min() > 240
    cells = np.bincount(drawn[:, 0] * 8 + drawn[:, 1], minlength=64)
    assert ((cells - 40.0) ** 2 / 40).sum() < 117
    after = np.bincount(drawn[:-1, 0] * 8 + drawn[1:, 0], minlength=64)
    assert ((after - 40.0) ** 2 / 40).sum() < 117


def test_indices_reach_all_of_every_domain():
    drawn = indices(DomainDataset([Numbers(3), Numbers(40)], 600))
    assert set(drawn[:, 0]) == set(range(3))
    assert set(drawn[:, 1]) == set(range(40))


def test_the_files_of_a_draw_are_those_that_it_reads(tmp_path, monkeypatch):
    dataset = build_dataset("gtav", gtav_tree(tmp_path, 5), "train", train_transform(8))
    domains = DomainDataset([dataset, dataset, dataset], 6)
    read = []
    original = SegmentationDataset.read_pair
    monkeypatch.setattr(
        SegmentationDataset,
        "read_pair",
        lambda self, index: read.append(self.paths(index)[0]) or original(self, index),
    )
    for draw in range(6):
        domains[draw]
    assert read == [path for draw in range(6) for path in domains.files(draw)]
    assert len(set(read)) > 1


def test_bad_arguments():
    with pytest.raises(ValueError, match="datasets: expected at least one, got none"):
        DomainDataset([], 5)
    with pytest.raises(ValueError, match=r"datasets: .*'numbers', 0 images.* is empty"):
        DomainDataset([Numbers(3), Numbers(0)], 5)
    with pytest.raises(ValueError, match="length: expected a number >= 0, got -1"):
        DomainDataset([Numbers(3)], -1)
    with pytest.raises(ValueError, match="seed: expected a number >= 0, got -2"):
        DomainDataset([Numbers(3)], 1, seed=-2)
    with pytest.raises(IndexError):
        DomainDataset([Numbers(3)], 2)[2]


def test_sizes_that_differ_name_the_domains():
    with pytest.raises(ValueError, match=r"different sizes.*numbers \[2, 2\], numbers \[3, 2\]"):
        DomainDataset([Numbers(3), Numbers(3, size=3)], 1)[0]
