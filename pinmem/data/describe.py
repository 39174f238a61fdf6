"""``python -m pinmem.data.describe --root DIR``: a first description of a folder of your own.

Looks for images, for labels and for how their names pair, reads label values, and writes a YAML
file with what it guessed, to be gone over by hand: the names of the classes above all.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from pinmem.data.cityscapes_classes import LABELS
from pinmem.data.classes import MOST_CLASSES, spread_color
from pinmem.data.dataset import SPLIT_ALIASES
from pinmem.data.decode import Polygons, Raw, read_label
from pinmem.data.errors import DataError
from pinmem.data.tree import is_folder, is_hidden, walk
from pinmem.writing import write_beside

__all__ = ["describe", "main"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
_SPLITS = {"train", "val", "test"}
_LOOKED_AT = 8  # files of a group, to tell labels from images
_READ = 200  # labels, for their values
_MOST_COLORS = 64  # of a label; pictures have more


@dataclass
class _Group:
    """Files of one kind: one folder but for the split, one ending."""

    top: str  # with {split}
    files: list[str]
    splits: set[str]
    head: str = ""
    mark: str = ""  # what all names end in before the suffix
    deep: bool = False

    def stems(self) -> dict[str, str]:
        """What two files of a pair share -> path."""
        found = {}
        for path in self.files:
            name = Path(path).stem
            below = (
                path[len(self.top.replace("{split}", _fixed_split(path))) :]
                .lstrip("/")
                .rpartition("/")[0]
            )
            stem = name[len(self.head) : len(name) - len(self.mark)]
            found[f"{_fixed_split(path)}/{below}/{stem}"] = path
        return found

    def pattern(self) -> str:
        found = sorted({Path(path).suffix[1:].lower() for path in self.files})
        suffix = found[0] if len(found) == 1 else f"{{{','.join(found)}}}"
        folders = "**/" if self.deep else ""
        return f"{self.top}/{folders}{self.head}*{self.mark}.{suffix}".lstrip("/")

    def add(self, other: _Group) -> None:
        """Take over the same kind of files in another format."""
        self.files += other.files
        self.splits |= other.splits
        self.deep |= other.deep


def describe(root: Path) -> tuple[dict[str, object], list[str]]:
    """Guess the description of a folder: the content of its YAML file, and notes on the guesses.

    Raises:
        DataError: no images, no labels, or none that pair.
    """
    if not is_folder(root):
        raise DataError(f"{root}: no such folder")
    groups = _groups(root)
    labels = [group for group in groups if _are_labels(root, group)]
    images = sorted((g for g in groups if g not in labels), key=lambda g: -len(g.files))
    best: tuple[_Group, ...] = ()
    pairs = 0
    for image in images:
        for label in labels:
            common = len(image.stems().keys() & label.stems().keys())
            if common > pairs:
                best, pairs = (image, label), common
    if not best:
        raise DataError(
            f"{root}: no images whose labels have their names: found "
            + (", ".join(f"{len(g.files)} files {g.pattern()}" for g in groups) or "no pictures")
        )
    image, label = best
    for other in images:  # those in another format
        alike = (other.top, other.head, other.mark) == (image.top, image.head, image.mark)
        names = other.stems().keys()
        if alike and names & label.stems().keys() and not names & image.stems().keys():
            image.add(other)
            best = (*best, other)
    pairs = len(image.stems().keys() & label.stems().keys())
    if image.head == label.head:  # it is part of the names, and tells nothing apart
        image.head = label.head = ""
    content: dict[str, object] = {"root": str(root.resolve())}
    content |= {"images": image.pattern(), "labels": label.pattern()}
    renamed: dict[str, list[str]] = defaultdict(list)
    for name in sorted(image.splits):
        renamed[SPLIT_ALIASES.get(name, name)].append(name)
    renamed = {split: names for split, names in renamed.items() if names != [split]}
    if renamed:
        content["splits"] = renamed
    notes = [
        f"{len(image.files)} images, {len(label.files)} labels, {pairs} pairs",
        f"splits: {', '.join(sorted(image.splits)) or 'none, so all of it is train'}",
    ]
    meaning, more = _meaning(root, sorted(label.files))
    others = [group for group in groups if group not in best]
    notes += more + [f"not used: {len(g.files)} files {g.pattern()}" for g in others]
    return content | meaning, notes


def _groups(root: Path) -> list[_Group]:
    found: dict[tuple[str, str], _Group] = {}
    for parent, names in sorted(walk(root)):
        for name in sorted(names):
            suffix = os.path.splitext(name)[1]
            path = (parent / name).relative_to(root).as_posix()
            if suffix.lower() not in _SUFFIXES or is_hidden(path):
                continue
            parts = path.split("/")[:-1]
            split = _fixed_split(path)
            if split:
                at = max(i for i, part in enumerate(parts) if part == split)
                # "images/train/city" and "train/images": folders after the split count if few.
                top = [*parts[:at], "{split}"]
                rest = parts[at + 1 :]
                if at == 0 and rest:
                    top.append(rest.pop(0))
            else:
                top, rest = parts[:1], parts[1:]
            ending = re.search(r"_[A-Za-z][A-Za-z0-9]*$", os.path.splitext(name)[0])
            tail = (ending[0] if ending else "") + suffix.lower()
            group = found.setdefault(("/".join(top), tail), _Group("/".join(top), [], set()))
            group.files.append(path)
            group.splits |= {split} if split else set()
            group.deep = group.deep or bool(rest)
    for group in found.values():
        names = [Path(path).stem for path in group.files]
        head = re.match(r"[A-Za-z]*[_-]?", _common_start(names))
        tail = _common_start([name[::-1] for name in names])[::-1]
        marked = re.search(r"[_-][A-Za-z][A-Za-z0-9_]*$", tail)
        group.mark = marked[0] if marked else ""
        group.head = head[0] if head and len(names) > 1 and head[0].endswith(("_", "-")) else ""
    return list(found.values())


def _common_start(names: list[str]) -> str:
    first, last = min(names), max(names)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in same)


def _fixed_split(path: str) -> str:
    """The folder of a path that names a split, if there is one."""
    parts = path.split("/")[:-1]
    return next((p for p in reversed(parts) if SPLIT_ALIASES.get(p, p) in _SPLITS), "")


def _are_labels(root: Path, group: _Group) -> bool:
    step = max(1, len(group.files) // _LOOKED_AT)
    for path in group.files[::step][:_LOOKED_AT]:
        try:
            raw = read_label(root / path)
        except DataError:
            return False
        assert isinstance(raw, Raw)
        if raw.palette is None and len(_distinct(raw.samples)) > _MOST_COLORS:
            return False
    return True


def _distinct(samples: np.ndarray) -> np.ndarray:
    flat = samples if samples.ndim == 2 else samples.reshape(-1, samples.shape[2])[:, :3]
    return np.unique(flat, axis=None if samples.ndim == 2 else 0)


def _meaning(root: Path, files: list[str]) -> tuple[dict[str, object], list[str]]:
    """``classes``, ``encoding`` and ``ignore`` of some labels, and notes."""
    read = files[:: max(1, len(files) // _READ)][:_READ]
    values: set[int] = set()
    colors: set[tuple[int, ...]] = set()
    palette: dict[int, tuple[int, ...]] = {}
    failed = 0
    for path in read:
        try:
            raw = read_label(root / path)
        except DataError:
            failed += 1
            continue
        if isinstance(raw, Polygons):
            continue
        found = _distinct(raw.samples)
        if found.ndim == 2:
            colors |= {tuple(color) for color in found.tolist()}
            continue
        values |= set(found.tolist())
        if raw.palette is not None:
            used = [value for value in found.tolist() if value < len(raw.palette)]
            palette |= {value: tuple(raw.palette[value].tolist()) for value in used}
    notes = [f"{len(read)} labels read, {failed} of them not readable"]
    if colors:
        notes.append(f"labels are colours: {len(colors)} seen")
        if values:
            notes.append(f"but some labels are grey or palettes, of values {sorted(values)}")
        ordered = sorted(colors - {(0, 0, 0)})
        classes = {f"class_{k}": list(color) for k, color in enumerate(ordered)}
        ignore = [[0, 0, 0]] if (0, 0, 0) in colors else []
        return _limited({"classes": classes, "encoding": "colors", "ignore": ignore}), notes
    notes.append(f"values seen: {', '.join(map(str, sorted(values)))}")
    if values <= {*range(len(LABELS)), 255} and len(values) > 8:
        notes.append(
            "if they are those of Cityscapes: classes: cityscapes, encoding: trainIds or labelIds"
        )
    # 255 is what is ignored, but for masks of black and white.
    ignored = [] if values <= {0, 255} else [255]
    named = sorted(values - {*ignored})
    own = bool(palette) and len(set(palette.values())) == len(palette)
    if own:
        notes.append("the palette's colours were taken over")
    classes = {
        f"class_{value}": list(palette[value] if own and value in palette else spread_color(value))
        for value in named
    }
    table = {value: f"class_{value}" for value in named}
    return _limited({"classes": classes, "encoding": table, "ignore": ignored}), notes


def _limited(meaning: dict[str, object]) -> dict[str, object]:
    classes = meaning["classes"]
    assert isinstance(classes, dict)
    if len(classes) > MOST_CLASSES:
        raise DataError(f"labels have {len(classes)} values, expected at most {MOST_CLASSES}")
    return meaning


def _written(content: dict[str, object], notes: list[str]) -> str:
    lines = [f"# {note}" for note in notes]
    lines.append(
        "# Name the classes, here and in the encoding, where values may share one;\n"
        "# take values that are no class out of both, and list them under ignore."
    )
    for key, value in content.items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {_plain(name)}: {_plain(entry)}" for name, entry in value.items()]
        else:
            lines.append(f"{key}: {_plain(value)}")
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def main(arguments: Sequence[str] | None = None) -> int:
    """Describe a folder; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pinmem.data.describe",
        description="Look at a folder of images and labels and write a first description of it.",
    )
    parser.add_argument("--root", required=True, type=Path, help="the folder")
    parser.add_argument("--out", type=Path, help="the .yaml file (absent: print it)")
    options = parser.parse_args(arguments)
    try:
        if options.out and options.out.exists():
            raise DataError(f"--out: {options.out} is there already")
        text = _written(*describe(options.root))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.out:
        write_beside(options.out, lambda file: file.write(text.encode()))
        print(
            f"{options.out}: go over it, then python -m pinmem.data.check --dataset {options.out}"
        )
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
