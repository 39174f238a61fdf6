"""What a run starts from: its network, the memory of that, and its datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pinmem import ops
from pinmem.checkpoint import network_of
from pinmem.config import TrainConfig, named_folder
from pinmem.data import (
    Classes,
    SegmentationDataset,
    build_dataset,
    dataset_name,
)
from pinmem.data.errors import NoImages
from pinmem.data.parse import open_description
from pinmem.data.statistics import ClassPlaces, Track
from pinmem.data.transforms import Geometry
from pinmem.distributed import Ranks
from pinmem.evaluate import check_classes, open_dataset
from pinmem.models import Segmenter
from pinmem.passes import Batch, autocast, evaluating


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
    """Validation sets by name, side/dataset, once each.

    ``select``: those of ``config.select_on``, which choose the best checkpoint; ``seen``: the
    sources' own, which do so where there are no others; ``unseen``: those of no influence. A source
    without an image of a validation split goes without, unless it was published with some.
    """
    sets: dict[str, Dataset[tuple[Tensor, Tensor]]] = {}
    for option, side in (("sources", "seen"), ("select_on", "select"), ("unseen", "unseen")):
        for text in dict.fromkeys(getattr(config, option)):
            head = named_folder(option, text)[0]
            name = f"{side}/{dataset_name(head)}"
            same = sum(key.partition("#")[0] == name for key in sets)
            try:
                sets[f"{name}#{same + 1}" if same else name] = open_dataset(
                    option, text, "val", config.validate_size, config.validate_images, classes
                )
            except NoImages:
                if side != "seen" or open_description(head)[0].counts.get("val"):
                    raise
    return sets


def without_validation(config: TrainConfig, validation: Iterable[str]) -> list[str]:
    """The sources that `open_validation` left out."""
    names = [dataset_name(named_folder("sources", text)[0]) for text in config.sources]
    return [name for name in dict.fromkeys(names) if f"seen/{name}" not in validation]


def judges(config: TrainConfig, validation: Iterable[str]) -> list[str]:
    """The validation sets whose mean mIoU chooses the best checkpoint: never an unseen one."""
    side = "select/" if config.select_on else "seen/"
    return [name for name in validation if name.startswith(side)]


@torch.no_grad()
def initial_memory(
    model: Segmenter,
    batches: Iterable[Batch],
    amp_dtype: torch.dtype | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Class means of the query features over some batches, of all ranks; [K,C], L2-normalised.

    A class that is never seen starts as a zero row: reading gives it no weight of its own,
    and its first write makes it the class's mean.
    """
    assert model.memory is not None
    sums = torch.zeros_like(model.memory.memory)
    mass = torch.zeros_like(sums[:, 0])
    with evaluating(model):
        for batch in batches:
            with autocast(batch.images, amp_dtype):
                query = model.encode(batch.images).query
            more_sums, more_mass = ops.class_sums(query, batch.labels, len(sums))
            sums += more_sums
            mass += more_mass
    if ranks is not None:
        sums, mass = ranks.totals([sums, mass])
    means = sums / mass.clamp_min(torch.finfo(mass.dtype).tiny)[:, None]
    return torch.nn.functional.normalize(means, dim=1)
