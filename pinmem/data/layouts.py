"""Where the files of a dataset lie and how its labels are stored: one small description each.

To add a dataset, add one ``Layout`` to ``LAYOUTS``: its folders, and an encoding of
``pinmem.data.encodings``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pinmem.data import encodings
from pinmem.data.encodings import Encoding
from pinmem.data.splits import standard_split

__all__ = ["LAYOUTS", "Folders", "Layout"]

Pair = tuple[Path, Path]


@dataclass(frozen=True)
class Folders:
    """One arrangement of folders, ``{split}`` standing for the folder name of a split.

    ``image_ends`` and ``label_end`` are the ends of file names; a label is found by exchanging
    them. ``numbered`` restricts a folder that holds every image to the standard split of that name.
    """

    images: str
    labels: str
    image_ends: tuple[str, ...] = (".png",)
    label_end: str = ".png"
    numbered: str | None = None

    def pattern(self, folder: str) -> str:
        """What is looked for, as text for messages."""
        names = ",".join(f"*{end}" for end in self.image_ends)
        below = "" if self.numbered else "**/"
        return f"{self.images.format(split=folder)}/{below}{names}"

    def pairs(self, root: Path, split: str, folder: str) -> list[Pair]:
        """The (image, label) paths of a split in order of name; a label may not exist."""
        images = root / self.images.format(split=folder)
        labels = root / self.labels.format(split=folder)
        return [
            (images / relative, labels / relative.parent / (stem + self.label_end))
            for relative, stem in sorted(self._found(images, split))
        ]

    def has_images(self, root: Path, split: str, folder: str) -> bool:
        """Whether there is at least one image."""
        return any(self._found(root / self.images.format(split=folder), split))

    def unpaired_labels(self, root: Path, split: str, folder: str) -> list[Path]:
        """Label files whose image is not there."""
        known = {label for _, label in self.pairs(root, split, folder)}
        labels = root / self.labels.format(split=folder)
        as_images = Folders(self.labels, self.labels, (self.label_end,), numbered=self.numbered)
        found = sorted(labels / relative for relative, _ in as_images._found(labels, split))
        return [path for path in found if path not in known]

    def _found(self, directory: Path, split: str) -> Iterator[tuple[Path, str]]:
        numbers = standard_split(self.numbered, split) if self.numbered else None
        for parent, below, names in os.walk(directory, followlinks=True):
            if numbers is not None:
                below.clear()  # numbered folders are flat
            for name in names:
                end = next((end for end in self.image_ends if name.endswith(end)), None)
                if end is None or name.startswith("."):
                    continue
                stem = name[: -len(end)]
                if numbers is None or (stem.isdecimal() and int(stem) in numbers):
                    yield Path(parent, name).relative_to(directory), stem


@dataclass(frozen=True)
class Layout:
    """A dataset: the arrangements of folders it comes in, and the encoding of its labels.

    ``split_folders`` holds a split's folder names where they are not the split's own name.
    """

    name: str
    encoding: Encoding
    variants: tuple[Folders, ...]
    split_folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def find(self, root: Path, split: str) -> tuple[Folders, str] | None:
        """The first arrangement that has images of ``split``, one with labels before others."""
        found = [
            (variant, folder)
            for variant in self.variants
            for folder in self.split_folders.get(split, (split,))
            if variant.has_images(root, split, folder)
        ]
        with_labels = (
            (variant, folder)
            for variant, folder in found
            if any(label.exists() for _, label in variant.pairs(root, split, folder))
        )
        return next(with_labels, found[0] if found else None)

    def patterns(self, split: str) -> list[str]:
        """Every pattern ``find`` tries, as text for messages."""
        folders = self.split_folders.get(split, (split,))
        return list(dict.fromkeys(v.pattern(f) for v in self.variants for f in folders))


def _cityscapes_like(label_end: str, image_ends: tuple[str, ...]) -> tuple[Folders, ...]:
    packages = (("", ""), ("leftImg8bit_trainvaltest/", "gtFine_trainvaltest/"))
    return tuple(
        Folders(f"{a}leftImg8bit/{{split}}", f"{b}gtFine/{{split}}", image_ends, label_end)
        for a, b in (*packages, ("leftImg8bit_trainvaltest/", ""), ("", "gtFine_trainvaltest/"))
    )


_LAYOUTS = (
    Layout(
        "gtav",
        encodings.gtav,
        (
            Folders("images/{split}", "labels/{split}"),
            Folders("images", "labels", numbered="gtav"),
        ),
        {"val": ("valid", "val")},
    ),
    Layout(
        "synthia",
        encodings.synthia,
        tuple(
            Folders(f"{top}RGB{below}", f"{top}GT/LABELS{below}", numbered=numbered)
            for below, numbered in (("/{split}", None), ("", "synthia"))
            for top in ("", "RAND_CITYSCAPES/")
        ),
    ),
    Layout(
        "cityscapes",
        encodings.cityscapes_label_ids,
        _cityscapes_like("_gtFine_labelIds.png", ("_leftImg8bit.png",)),
    ),
    Layout(
        "idd",
        encodings.train_ids,
        _cityscapes_like("_gtFine_labelcsTrainIds.png", ("_leftImg8bit.png", "_leftImg8bit.jpg")),
    ),
    Layout(
        "bdd100k",
        encodings.train_ids,
        tuple(
            Folders(images, labels, (".jpg",), label_end)
            for images in ("images/{split}", "images/10k/{split}")
            for labels, label_end in (
                ("labels/{split}", "_train_id.png"),
                ("labels/sem_seg/masks/{split}", ".png"),
            )
        ),
    ),
    Layout(
        "mapillary",
        encodings.mapillary,
        tuple(
            Folders("{split}/images", f"{{split}}/{labels}", (".jpg",))
            for labels in ("labels", "v1.2/labels")
        ),
        {"train": ("training", "train"), "val": ("validation", "val"), "test": ("testing", "test")},
    ),
)

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _LAYOUTS}
"""Every dataset ``build_dataset`` knows, by name."""
