"""What a run starts from: its network, its datasets and the loaders of its draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pinmem.checkpoint import network_of
from pinmem.config import TrainConfig, named_folder
from pinmem.data import (
    Classes,
    DomainDataset,
    SegmentationDataset,
    build_dataset,
    dataset_name,
    seeded,
)
from pinmem.data.parse import open_description
from pinmem.data.statistics import ClassPlaces, Track
from pinmem.data.transforms import Geometry
from pinmem.evaluate import check_classes, open_dataset
from pinmem.models import Segmenter


def seed_of(*key: int) -> int:
    """A seed that is a function of some numbers."""
    with seeded(*key):
        return int(torch.randint(2**62, ()))


def build_network(config: TrainConfig) -> Segmenter:
    """The network of a run, in training mode."""
    model = network_of(vars(config), config.weights)
    if model.memory is not None and config.gumbel:
        model.memory.gumbel = "always" if config.compat else "training"
    if config.freeze == "backbone":
        model.freeze_backbone()
    return model.train()


def open_sources(config: TrainConfig) -> list[SegmentationDataset]:
    """The training sets: uint8 crops, before jitter. Sets ``config.num_classes`` if it is open.

    Raises:
        ValueError: they differ in their classes, or have more than ``config.num_classes``.
    """
    geometry = Geometry(config.crop_size, scale=config.scale)
    sources = [
        build_dataset(*named_folder("sources", text), "train", geometry, cache=config.cache)
        for text in config.sources
    ]
    for source in sources[1:]:
        check_classes(source, sources[0].classes)
    found = len(sources[0].classes)
    config.num_classes = config.num_classes or found
    if config.num_classes < found:
        raise ValueError(
            f"num_classes: got {config.num_classes}, but {sources[0].name} has {found} classes"
        )
    return sources


def open_places(
    config: TrainConfig, sources: list[SegmentationDataset], track: Callable[[str], Track]
) -> list[ClassPlaces]:
    """Where the sources' classes lie, for class-uniform sampling; none without it."""
    if not (config.class_uniform and config.statistics):
        return []
    folder = Path(config.statistics)
    return [
        ClassPlaces.of(source, folder, track(f"class statistics of {source.name}"))
        for source in sources
    ]


def open_validation(
    config: TrainConfig, classes: Classes
) -> dict[str, Dataset[tuple[Tensor, Tensor]]]:
    """Validation sets by name: the sources' own (seen), once each, and the unseen domains'.

    A source whose description has no validation split goes without.
    """
    sets: dict[str, tuple[str, str]] = {}
    for option, side in (("sources", "seen"), ("unseen", "unseen")):
        for text in dict.fromkeys(getattr(config, option)):
            head = named_folder(option, text)[0]
            layouts = open_description(head)[0].layouts
            if side == "seen" and not any(layout.holds("val") for layout in layouts):
                continue
            name = f"{side}/{dataset_name(head)}"
            same = sum(key.partition("#")[0] == name for key in sets)
            sets[f"{name}#{same + 1}" if same else name] = (option, text)
    return {
        name: open_dataset(
            option, text, "val", config.validate_size, config.validate_images, classes
        )
        for name, (option, text) in sets.items()
    }


def load_draws(
    dataset: DomainDataset, draws: range, config: TrainConfig, device: torch.device
) -> DataLoader[Any]:
    """Batches of some draws, in order."""
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=draws,  # type: ignore[arg-type]
        num_workers=config.workers,
        pin_memory=device.type == "cuda",
        # A generator of its own: the loader must not draw from the one that is checkpointed.
        generator=torch.Generator(),
    )
