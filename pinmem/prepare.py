"""What a run starts from: its network, its datasets and the loaders of its draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pinmem.config import TrainConfig, named_folder
from pinmem.data import DomainDataset, SegmentationDataset, build_dataset, seeded
from pinmem.data.transforms import Geometry
from pinmem.evaluate import open_dataset
from pinmem.models import Segmenter, build_model


def seed_of(*key: int) -> int:
    """A seed that is a function of some numbers."""
    with seeded(*key):
        return int(torch.randint(2**62, ()))


def build_network(config: TrainConfig) -> Segmenter:
    """The network of a run, in training mode."""
    model = build_model(
        config.model,
        num_classes=config.num_classes,
        memory=config.has_memory,
        weights=config.weights,
        output_stride=config.output_stride,
        momentum=config.memory_momentum,
        temperature=config.memory_temperature,
    )
    if model.memory is not None and config.gumbel:
        model.memory.gumbel = "always" if config.compat else "training"
    return model.train()


def open_sources(config: TrainConfig) -> list[SegmentationDataset]:
    """The training sets: uint8 crops, before jitter."""
    geometry = Geometry(config.crop_size, scale=config.scale)
    return [
        build_dataset(*named_folder("sources", text), "train", geometry) for text in config.sources
    ]


def open_validation(config: TrainConfig) -> dict[str, Dataset[tuple[Tensor, Tensor]]]:
    """Validation sets by name: the sources' own (seen), once each, and the unseen domains'."""
    sets: dict[str, tuple[str, str]] = {}
    for option, side in (("sources", "seen"), ("unseen", "unseen")):
        for text in dict.fromkeys(getattr(config, option)):
            name = f"{side}/{text.partition('=')[0]}"
            same = sum(key.partition("#")[0] == name for key in sets)
            sets[f"{name}#{same + 1}" if same else name] = (option, text)
    return {
        name: open_dataset(option, text, "val", config.validate_size, config.validate_images)
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
