"""Datasets, augmentation and the sampler of domains.

>>> dataset = build_dataset("gtav", "/data/gtav", "train", train_transform(768))
>>> draws = DomainDataset([dataset, other], length=2975)
"""

from pinmem.data.cityscapes_classes import CLASS_NAMES, IGNORE_INDEX, NUM_CLASSES, PALETTE
from pinmem.data.classes import CITYSCAPES, Classes, colorize
from pinmem.data.dataset import SegmentationDataset, build_dataset, dataset_name
from pinmem.data.domains import DomainDataset
from pinmem.data.errors import DataError
from pinmem.data.parse import known_datasets
from pinmem.data.random_state import seeded
from pinmem.data.transforms import eval_transform, train_transform

__all__ = [
    "CITYSCAPES",
    "CLASS_NAMES",
    "IGNORE_INDEX",
    "NUM_CLASSES",
    "PALETTE",
    "Classes",
    "DataError",
    "DomainDataset",
    "SegmentationDataset",
    "build_dataset",
    "colorize",
    "dataset_name",
    "eval_transform",
    "known_datasets",
    "seeded",
    "train_transform",
]
