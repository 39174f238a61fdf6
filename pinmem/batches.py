"""The batches of a run, a function of the seed and the iteration."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pinmem.config import TrainConfig
from pinmem.data import DomainDataset, SegmentationDataset, seeded
from pinmem.data.statistics import ClassPlaces
from pinmem.data.transforms import Photometric
from pinmem.distributed import Ranks
from pinmem.meta import split_domains
from pinmem.program import SHARED_MEMORY_REMEDY
from pinmem.stop import leave_signals_to_the_parent

# What seeds what: kept apart so that no two streams share numbers; 4 is in covariances.py.
_DRAWS, _PHOTOMETRIC, _SPLIT, _INIT_DRAWS, _INIT_PHOTOMETRIC = 0, 1, 2, 3, 5
_SHARED = Path("/dev/shm")


class Batches:
    """Draws of the sources, loaded, jittered and split.

    Args:
        config: of the run.
        sources: the training sets: uint8 crops, before jitter.
        device: where jitter is computed.
        ranks: that share every batch; this one loads its own images.
    """

    def __init__(
        self,
        config: TrainConfig,
        sources: Sequence[SegmentationDataset],
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        self.config = config
        self.sources = sources
        self.device = device
        self.ranks = ranks
        self.places: list[ClassPlaces] = []  # for class-uniform draws
        self._photometric = {hard: Photometric(hard=hard) for hard in (False, True)}

    def loader(self, iteration: int) -> DataLoader[Any]:
        """Images uint8 [B,D,3,h,w] and labels uint8 [B,D,h,w] from an iteration on."""
        draws = self._draws()
        rest = range(iteration * self.config.batch_size, len(draws))
        return load_draws(draws, rest, self.config, self.device, self.ranks)

    def files(self, iteration: int) -> list[Path]:
        """The image files of an iteration."""
        draws, size = self._draws(), self.config.batch_size
        batch = range(iteration * size, (iteration + 1) * size)
        return [path for draw in batch for path in draws.files(draw)]

    def for_memory(self) -> DataLoader[Any]:
        """The batches that initialise the memory, loaded: two passes of draws of their own."""
        count = 2 * self.config.memory_init_draws
        seed = seed_of(self.config.seed, _INIT_DRAWS) % 2**32
        draws = DomainDataset(self.sources, count, seed=seed)
        return load_draws(draws, range(count), self.config, self.device, self.ranks)

    def split(self, iteration: int) -> tuple[list[int], list[int]]:
        """The meta-train and the meta-test domains of an iteration; all and none without."""
        domains = len(self.sources)
        if not self.config.meta:
            return list(range(domains)), []
        seed = seed_of(self.config.seed, _SPLIT, iteration)
        return split_domains(domains, torch.Generator().manual_seed(seed))

    def augment(self, images: Tensor, hard: Sequence[int], iteration: int) -> Tensor:
        """Jitter, blur and normalise uint8 [B,D,3,h,w] on the device; some domains harder."""
        return self._augment(images, hard, self.config.batch_size, _PHOTOMETRIC, iteration)

    def augment_for_memory(self, images: Tensor, index: int) -> Tensor:
        """Likewise the batch of that index of `for_memory`."""
        size = self.config.batch_size
        whole = min(size, 2 * self.config.memory_init_draws - index * size)
        return self._augment(images, [], whole, _INIT_PHOTOMETRIC, index)

    def _augment(self, images: Tensor, hard: Sequence[int], whole: int, *key: int) -> Tensor:
        """``whole``: how many images of a domain all ranks have together."""
        images = images.to(self.device, non_blocking=True)
        with seeded(self.config.seed, *key):
            domains = [
                self._jittered(self._photometric[domain in hard], images[:, domain], whole)
                for domain in range(images.shape[1])
            ]
        return torch.stack(domains, dim=1)

    def _jittered(self, photometric: Photometric, images: Tensor, whole: int) -> Tensor:
        if self.ranks is None:
            return photometric(images)
        mine = self.ranks.share(whole)
        # What is drawn for others' images passes by, on a pixel.
        pixel = torch.zeros(3, 1, 1, dtype=torch.uint8)
        every = [photometric(images[i - mine.start] if i in mine else pixel) for i in range(whole)]
        return torch.stack(every[mine.start : mine.stop])

    def _draws(self) -> DomainDataset:
        config = self.config
        return DomainDataset(
            self.sources,
            config.iterations * config.batch_size,
            seed=seed_of(config.seed, _DRAWS) % 2**32,
            class_uniform=config.class_uniform,
            places=self.places,
        )


def seed_of(*key: int) -> int:
    """A seed that is a function of some numbers."""
    with seeded(*key):
        return int(torch.randint(2**62, ()))


def load_draws(
    dataset: DomainDataset,
    draws: range,
    config: TrainConfig,
    device: torch.device,
    ranks: Ranks | None = None,
) -> DataLoader[Any]:
    """Batches of some draws, in order; with ranks this one's part of each.

    Raises:
        ValueError: /dev/shm, through which workers hand over their batches, has no room for one.
    """
    size = config.crop_size
    height, width = (size, size) if isinstance(size, int) else size
    images, mine = config.batch_size, list(draws)
    if ranks is not None:
        starts = range(0, len(draws), images)
        batches = [draws[start : start + images] for start in starts]
        mine = [batch[i] for batch in batches for i in ranks.share(len(batch))]
        images //= ranks.size
    batch = images * len(dataset.datasets) * 4 * height * width
    if config.workers and _SHARED.exists():
        free = shutil.disk_usage(_SHARED).free
        if free < batch + 2**16:  # some pages for semaphores
            raise ValueError(
                f"workers: got {config.workers}, but {_SHARED} has {free / 2**20:.1f} MiB free for "
                f"batches of {batch / 2**20:.1f} MiB; {SHARED_MEMORY_REMEDY}"
            )
    return DataLoader(
        dataset,
        batch_size=images,
        sampler=mine,
        num_workers=config.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_the_parent,
        # A generator of its own: the loader must not draw from the one that is checkpointed.
        generator=torch.Generator(),
    )
