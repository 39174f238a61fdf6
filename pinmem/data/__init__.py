"""Datasets, augmentation and the sampler of domains; ``pinmem.data.streets`` draws street scenes.

>>> dataset = build_dataset("gtav", "/data/gtav", "train", train_transform(768))
>>> draws = DomainDataset([dataset, other], length=2975)
"""

from pinmem.data.cityscapes_classes import CLASS_NAMES, IGNORE_INDEX, NUM_CLASSES, PALETTE, colorize
from pinmem.data.dataset import SegmentationDataset, build_dataset
from pinmem.data.domains import DomainDataset
from pinmem.data.errors import DataError
from pinmem.data.layouts import LAYOUTS
from pinmem.data.random_state import seeded
from pinmem.data.transforms import eval_transform, train_transform

__all__ = [
    "CLASS_NAMES",
    "IGNORE_INDEX",
    "LAYOUTS",
    "NUM_CLASSES",
    "PALETTE",
    "DataError",
    "DomainDataset",
    "SegmentationDataset",
    "build_dataset",
    "colorize",
    "eval_transform",
    "seeded",
    "train_transform",
]
