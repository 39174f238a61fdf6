"""Finding the files of a split: pairs, and whatever else lies there, with the reason it is left."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pinmem.data.description import Description, Layout
from pinmem.data.errors import DataError
from pinmem.data.splits import standard_split
from pinmem.data.tree import is_file, is_folder, is_hidden, walk

__all__ = ["Found", "Pair", "find_all", "find_files", "searched"]

Pair = tuple[Path, Path]

_TOKEN = re.compile(r"(\*\*/|\*|\{[^{}]*\})")
_LISTED = re.compile(r".+?\.(?:png|jpe?g|tiff?|webp|bmp)(?=[\s,])|[^\t,]+", re.IGNORECASE)
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".gif")


@dataclass
class Found:
    """What lies there for one split.

    Args:
        layout: the arrangement it lies in.
        where: pattern of the images, for messages.
        pairs: (image, label), both there, in order of name.
        without_label: (image, where its label was looked for).
        without_image: label files whose image is not there, and images that a list names.
        skipped: files beside them that are not used, by reason.
    """

    layout: Layout
    where: str
    pairs: list[Pair] = field(default_factory=list)
    without_label: list[Pair] = field(default_factory=list)
    without_image: list[Path] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=dict)

    def leave(self, reason: str, path: Path) -> None:
        """Note a file that is not used."""
        self.skipped.setdefault(reason, []).append(path)

    def strays(self) -> int:
        """How many files lie there besides images without a label."""
        return len(self.without_image) + sum(map(len, self.skipped.values()))

    def left_pictures(self) -> int:
        """How many pictures are skipped that are not hidden."""
        return sum(
            path.suffix.lower() in _PICTURES and not path.name.startswith(".")
            for reason, paths in self.skipped.items()
            for path in paths
            if reason.startswith("image")
        )


class _Pattern:
    """A pattern with its split and subset put in; it matches paths of any case below a root."""

    def __init__(self, text: str, split: str, subset: str) -> None:
        self.text = text.replace("{split}", split).replace("{subset}", subset)
        self.parts = _TOKEN.split(self.text)
        self.directory = self.parts[0].rpartition("/")[0]
        rest = self.text[len(self.directory) :].lstrip("/")
        self.depth = None if "**/" in rest else rest.count("/")
        expression = "".join(map(self._as_expression, self.parts))
        self.expression = re.compile(expression, re.IGNORECASE)

    @staticmethod
    def _as_expression(part: str) -> str:
        if part == "**/":
            return "((?:[^/]+/)*)"
        if part == "*":
            return "([^/]*)"
        if part.startswith("{"):
            return f"(?:{'|'.join(map(re.escape, part[1:-1].split(',')))})"
        return re.escape(part)

    def match(self, path: str) -> tuple[str, ...] | None:
        """What the wildcards stand for."""
        found = self.expression.fullmatch(path)
        return found.groups() if found else None

    def filled(self, stars: Iterable[str]) -> list[str]:
        """The paths in which the wildcards stand for ``stars``."""
        values, texts = iter(stars), [""]
        for part in self.parts:
            if part in ("*", "**/"):
                choices = [next(values)]
            else:
                choices = part[1:-1].split(",") if part.startswith("{") else [part]
            texts = [text + choice for text in texts for choice in choices]
        return texts


class _Tree:
    """The files below a root, each folder read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[tuple[str, int | None], list[str]] = {}

    def files(self, pattern: _Pattern) -> list[str]:
        """Paths relative to the root, below the fixed part of a pattern, sorted."""
        key = (pattern.directory, pattern.depth)
        if key not in self._known:
            self._known[key] = sorted(self._walk(*key))
        return self._known[key]

    def _walk(self, directory: str, depth: int | None) -> Iterator[str]:
        for parent, names in walk(self.root / directory, depth):
            prefix = parent.relative_to(self.root).as_posix()
            for name in names:
                yield name if prefix == "." else f"{prefix}/{name}"


def find_files(
    description: Description, root: Path, split: str, subsets: Iterable[str] = ()
) -> Found | None:
    """The files of a split in the first layout that has some, one with labels before others.

    Raises:
        DataError: the root or a folder in it cannot be read.
    """
    unpaired = []
    for found in find_all(description, root, split, subsets):
        if found.pairs:
            return found
        if found.without_label:
            unpaired.append(found)
    # Where no label has its image, the layout whose label folder is not empty is meant.
    return max(unpaired, key=Found.strays, default=None)


def find_all(
    description: Description, root: Path, split: str, subsets: Iterable[str] = ()
) -> Iterator[Found]:
    """What each layout finds of a split, in their order; errors as ``find_files``."""
    if not is_folder(root):
        raise DataError(f"{root}: no such folder")
    tree = _Tree(root)
    for layout in description.layouts:
        if layout.holds(split):
            for folder in description.folders(split):
                yield _find(layout, tree, split, folder, tuple(subsets) or ("",))


def searched(description: Description, split: str) -> str:
    """Every pattern that is tried, for messages."""
    tried = dict.fromkeys(
        (
            f"pairs of {split!r}"
            if layout.pairs
            else layout.images.replace("{split}", folder)
            + (f" listed in {layout.list.replace('{split}', folder)}" if layout.list else "")
        )
        for layout in description.layouts
        if layout.holds(split)
        for folder in description.folders(split)
    )
    return " and ".join(tried) or "nothing: its description has no such split"


def _find(layout: Layout, tree: _Tree, split: str, folder: str, subsets: tuple[str, ...]) -> Found:
    found = Found(layout, layout.images.replace("{split}", folder))
    if layout.pairs is not None:
        found.where = "a list of pairs"
        for image, label in layout.pairs[split]:
            pair = (tree.root / image, tree.root / label)
            if not is_file(pair[0]):
                found.without_image.append(pair[0])
            elif is_file(pair[1]):
                found.pairs.append(pair)
            else:
                found.without_label.append(pair)
        return found
    listed = _read_list(layout, tree.root, folder)
    if layout.list and listed is None:
        return found
    numbers = standard_split(layout.standard_split, split) if layout.standard_split else None
    for subset in subsets if "{subset}" in layout.images else ("",):
        images = _Pattern(layout.images, folder, subset)
        labels = _Pattern(layout.labels, folder, subset)
        _match(found, tree, images, labels, numbers, listed)
    if listed is not None and (found.pairs or found.without_label):
        names = sorted(name for name, used in listed.items() if not used)
        found.without_image += [tree.root / name for name in names]
    return found


def _match(
    found: Found,
    tree: _Tree,
    images: _Pattern,
    labels: _Pattern,
    numbers: frozenset[int] | None,
    listed: dict[str, bool] | None,
) -> None:
    image_files, label_files = tree.files(images), tree.files(labels)
    exact = set(label_files)
    any_case = {path.lower(): path for path in label_files}
    used, other_splits = set(), set()
    for path in image_files:
        stars = images.match(path)
        if is_hidden(path):
            found.leave("hidden", tree.root / path)
        elif stars is None:
            if labels.match(path) is None:
                found.leave(f"image folder: not {images.text}", tree.root / path)
        else:
            candidates = labels.filled(stars)
            label = next((c for c in candidates if c in exact), None) or next(
                (any_case[c.lower()] for c in candidates if c.lower() in any_case), None
            )
            stem = stars[-1]
            if (numbers is not None and not (stem.isdecimal() and int(stem) in numbers)) or (
                listed is not None and not _is_listed(listed, path, images.directory, stars)
            ):
                found.leave("image not of this split", tree.root / path)
                if label is not None:
                    other_splits.add(label)
                    found.leave("label not of this split", tree.root / label)
            elif label is None:
                found.without_label.append((tree.root / path, tree.root / candidates[0]))
            else:
                used.add(label)
                found.pairs.append((tree.root / path, tree.root / label))
    images_set = set(image_files)
    for path in label_files:
        if path in used or path in other_splits:
            continue
        if is_hidden(path):
            if path not in images_set:
                found.leave("hidden", tree.root / path)
        elif labels.match(path) is not None and images.match(path) is None:
            if listed is None:
                found.without_image.append(tree.root / path)
            else:  # what the list names is missed by its name
                found.leave("label without an image", tree.root / path)
        elif path not in images_set:
            found.leave(f"label folder: not {labels.text}", tree.root / path)


def _read_list(layout: Layout, root: Path, folder: str) -> dict[str, bool] | None:
    if not layout.list:
        return None
    path = root / layout.list.replace("{split}", folder)
    if not is_file(path):
        return None
    try:
        lines = path.read_text().split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: list cannot be read: {error}") from error
    # A second column, the label's name, is not needed; names may hold spaces.
    return {_LISTED.match(line.strip())[0]: False for line in lines if line.strip()}  # type: ignore[index]


def _is_listed(listed: dict[str, bool], path: str, directory: str, stars: tuple[str, ...]) -> bool:
    """Whether a list names an image by path, name or what its wildcards stand for; marks it."""
    below = path[len(directory) :].lstrip("/")
    name = path.rpartition("/")[2]
    for form in (path, below, name, name.rpartition(".")[0], "".join(stars), stars[-1]):
        if form in listed:
            listed[form] = True
            return True
    return False
