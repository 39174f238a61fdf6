"""The published sampler: every draw takes one image of every domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pinmem.data.dataset import SegmentationDataset
from pinmem.data.errors import DataError
from pinmem.data.random_state import seeded
from pinmem.data.statistics import ClassPlaces

__all__ = ["DomainDataset"]


class DomainDataset(Dataset[tuple[Tensor, Tensor]]):
    """``length`` draws of one image from every domain, their indices independent and uniform.

    ``dataset[i]`` is ``(images, targets)``: [D, 3, h, w] of the type the transforms give (float32
    after ``train_transform``) and uint8 [D, h, w]. It depends on ``(seed, i)`` alone: the worker,
    their number and what was drawn before change nothing, so a run that resumes at draw ``i`` sees
    what it would have seen. An epoch of the published code is 2975 draws, whatever the datasets.

    To train on one domain as two (the paper's setting G), pass it twice, the second through
    ``with_transform`` if its views are to differ.

    With ``class_uniform``, that share of the draws of a domain starts with one of its classes, all
    equally likely, and one of the class's places; the crop covers that pixel. The published code
    (Zhu et al., CVPR 2019) fixes the numbers an epoch instead of drawing.

    Args:
        datasets: one per domain, each with a transform that ends in one size for all.
        length: how many draws there are.
        seed: of the whole sequence, non-negative.
        class_uniform: share of class-uniform draws, 0..1.
        places: of every dataset, for these.

    Raises:
        ValueError: no dataset, an empty one, a negative length or seed, or places missing; at
            access, when the domains' images differ in size.
    """

    def __init__(
        self,
        datasets: Sequence[SegmentationDataset],
        length: int,
        seed: int = 0,
        class_uniform: float = 0.0,
        places: Sequence[ClassPlaces] = (),
    ) -> None:
        if not datasets:
            raise ValueError("datasets: expected at least one, got none")
        for dataset in datasets:
            if len(dataset) == 0:
                raise ValueError(f"datasets: {dataset!r} is empty")
        for name, value in (("length", length), ("seed", seed)):
            if value < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {value}")
        if class_uniform and len(places) != len(datasets):
            raise ValueError(f"places: expected {len(datasets)}, one a dataset, got {len(places)}")
        self.datasets = list(datasets)
        self.seed = seed
        self.class_uniform = class_uniform
        self.places = list(places)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, draw: int) -> tuple[Tensor, Tensor]:
        if not 0 <= draw < self._length:
            raise IndexError(f"draw {draw} of {self._length}")
        images, targets = [], []
        for domain, dataset in enumerate(self.datasets):
            with seeded(self.seed, draw, domain):
                index, centre = self._choose(domain)
                image, target = dataset[index] if centre is None else dataset.read(index, centre)
            # stack() keeps neither the Image nor the Mask type: say so once, here.
            images.append(image.as_subclass(Tensor))
            targets.append(target.as_subclass(Tensor))
        sizes = {tuple(target.shape) for target in targets}
        if len(sizes) > 1:
            names = ", ".join(
                f"{dataset.name} {list(target.shape)}"
                for dataset, target in zip(self.datasets, targets, strict=True)
            )
            raise DataError(f"domains give images of different sizes, expected one: {names}")
        return torch.stack(images), torch.stack(targets)

    def files(self, draw: int) -> list[Path]:
        """The image files of a draw, one per domain."""
        chosen = []
        for domain, dataset in enumerate(self.datasets):
            with seeded(self.seed, draw, domain):
                chosen.append(dataset.paths(self._choose(domain)[0])[0])
        return chosen

    def _choose(self, domain: int) -> tuple[int, tuple[int, int] | None]:
        """An image of a domain, and the pixel its crop has to cover, if any."""
        if self.class_uniform and float(torch.rand(())) < self.class_uniform:
            classes = self.places[domain].classes
            places = classes[int(torch.randint(len(classes), ()))]
            index, y, x = places[int(torch.randint(len(places), ()))].tolist()
            return index, (y, x)
        return int(torch.randint(len(self.datasets[domain]), ())), None
