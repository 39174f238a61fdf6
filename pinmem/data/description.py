"""What is said of a dataset: where its files lie, what its labels mean, its classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pinmem.data.classes import Classes
from pinmem.data.encodings import Encoding

__all__ = ["Description", "Layout"]


@dataclass(frozen=True)
class Layout:
    """One arrangement of files below a dataset's root, and what its labels mean.

    Args:
        images, labels: patterns: ``{split}``, ``{subset}``, ``{png,jpg}``, ``*`` for a part of a
            name and ``**/`` for any folders; a wildcard of ``labels`` is what the wildcard of the
            same position matched in ``images``.
        encoding: of the labels.
        list: pattern of text files that name the images of a split, one per line.
        pairs: (image, label) by split, instead of patterns.
        standard_split: of one of the numbered datasets in ``pinmem.data.splits``.
    """

    images: str
    labels: str
    encoding: Encoding
    list: str | None = None
    pairs: Mapping[str, tuple[tuple[str, str], ...]] | None = None
    standard_split: str | None = None

    def holds(self, split: str) -> bool:
        """Whether it says which files are ``split``; where nothing does, all are ``train``."""
        if self.pairs is not None:
            return split in self.pairs
        told = "{split}" in self.images or self.list or self.standard_split
        return bool(told) or split == "train"


@dataclass(frozen=True)
class Description:
    """A dataset; ``pinmem.data.parse`` makes one of a YAML file."""

    name: str
    classes: Classes
    layouts: tuple[Layout, ...]
    root: Path | None = None
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subsets: tuple[str, ...] = ()
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    missing_labels: str = ""

    def folders(self, split: str) -> tuple[str, ...]:
        """What ``{split}`` may stand for."""
        return self.splits.get(split, (split,))
