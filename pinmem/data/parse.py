"""Reading a dataset's description, a page of YAML.

The known datasets are such pages too, in ``pinmem/data/datasets``; docs/data.md explains the keys.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pinmem.data.cityscapes_classes import IGNORE_INDEX, LABELS
from pinmem.data.classes import CITYSCAPES, MOST_CLASSES, Classes
from pinmem.data.description import Description, Layout
from pinmem.data.encodings import Color, Encoding
from pinmem.data.errors import DataError

__all__ = ["known_datasets", "open_description", "parse_description"]

_LAYOUT_KEYS = {"images", "labels", "list", "pairs", "standard_split", "encoding"}
_KEYS = _LAYOUT_KEYS | {
    "root", "classes", "ignore", "splits", "subsets", "counts", "layouts", "missing_labels",
}  # fmt: skip
_WILD = re.compile(r"\*\*/|\*")
_ALTERNATIVES = re.compile(r"\{([^{}]*/[^{}]*)\}")


@cache
def known_datasets() -> Mapping[str, Description]:
    """The datasets that come with pinmem, by name."""
    folder = Path(__file__).with_name("datasets")
    return {path.stem: parse_description(path) for path in sorted(folder.glob("*.yaml"))}


def open_description(name: str) -> tuple[Description, tuple[str, ...]]:
    """The description that a name stands for, and the subsets chosen.

    Args:
        name: of a known dataset, or the path of a YAML file; ``acdc:fog`` is one subset of it.

    Raises:
        ValueError: neither, or a subset that it has not; DataError: the file is not readable.
    """
    head, colon, subset = name.rpartition(":")
    if not colon:
        head, subset = name, ""
    known = known_datasets()
    if head.endswith((".yaml", ".yml")):
        description = parse_description(Path(head))
    elif head in known:
        description = known[head]
    else:
        near = difflib.get_close_matches(head, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"dataset: got {head!r}, expected {', '.join(known)} or a .yaml file{hint}"
        )
    if subset and subset not in description.subsets:
        raise ValueError(
            f"dataset: {head} has no subset {subset!r}, "
            f"expected {', '.join(description.subsets) or 'none'}"
        )
    return description, (subset,) if subset else description.subsets


def parse_description(path: Path) -> Description:
    """Read a description.

    Raises:
        DataError: naming the file, the key, what came and what was expected.
    """
    try:
        content = yaml.load(path.read_text(), _Loader)
        if not isinstance(content, dict):
            raise ValueError("expected keys and values")
        return _Parser(path, content).description()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice: a class of the same name would renumber those after it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As SafeLoader, with that check."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise ValueError(f"key {key!r} is there twice")
        return super().construct_mapping(node, deep)


class _Parser:
    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        _check_keys(content, _KEYS)
        self.path = path
        self.content = content
        self.classes = _classes(content.get("classes"))
        self.codes = {name: k for k, name in enumerate(self.classes.names)}

    def description(self) -> Description:
        content = self.content
        layouts = content.get("layouts", [{k: v for k, v in content.items() if k in _LAYOUT_KEYS}])
        subsets = tuple(map(str, content.get("subsets", ())))
        result = Description(
            name=self.path.stem,
            classes=self.classes,
            layouts=tuple(layout for item in layouts for layout in self._layouts(item)),
            root=self.path.parent / content["root"] if "root" in content else None,
            splits={k: tuple(_list(v)) for k, v in content.get("splits", {}).items()},
            subsets=subsets,
            counts={k: tuple(_list(v)) for k, v in content.get("counts", {}).items()},
            missing_labels=str(content.get("missing_labels", "")),
        )
        for layout in result.layouts:
            if "{subset}" in layout.images + layout.labels and not subsets:
                raise ValueError("subsets: missing, expected the names {subset} stands for")
        return result

    def _layouts(self, item: dict[str, Any]) -> Iterable[Layout]:
        """One layout for every combination of alternatives."""
        _check_keys(item, _LAYOUT_KEYS)
        encoding = self._encoding(item.get("encoding", self.content.get("encoding")))
        if "pairs" in item:
            yield Layout("", "", encoding, pairs=self._pairs(item["pairs"]))
            return
        for key in ("images", "labels"):
            if key not in item:
                raise ValueError(f"{key}: missing, expected a pattern such as {key}/{{split}}/*")
        for images, labels, listed in itertools.product(
            _expanded(item["images"]), _expanded(item["labels"]), _expanded(item.get("list", ""))
        ):
            wild = [_WILD.findall(pattern) for pattern in (images, labels)]
            if wild[0] != wild[1]:
                raise ValueError(f"labels: {labels!r} has not the wildcards of images {images!r}")
            if not wild[0]:
                raise ValueError(f"images: got {images!r}, expected a pattern with *")
            standard = item.get("standard_split")
            yield Layout(images, labels, encoding, listed or None, standard_split=standard)

    def _pairs(self, splits: dict[str, Any]) -> dict[str, tuple[tuple[str, str], ...]]:
        found = {}
        for split, pairs in splits.items():
            if isinstance(pairs, str):  # a text file of two paths a line
                file = self.path.parent / pairs
                try:
                    lines = [line.strip() for line in file.read_text().splitlines()]
                except OSError as error:
                    raise ValueError(f"pairs: {file}: {error.strerror}") from error
                # Names may hold spaces where tabs or commas part them.
                pairs = [re.split(r"\s*[\t,]\s*", line) for line in lines if line]
                pairs = [pair if len(pair) > 1 else pair[0].split() for pair in pairs]
            for pair in pairs:
                if len(pair) != 2:
                    raise ValueError(f"pairs: got {pair}, expected an image and a label")
            found[split] = tuple((str(image), str(label)) for image, label in pairs)
        return found

    def _class(self, name: Any) -> int:
        if name == "ignore":
            return IGNORE_INDEX
        if str(name) in self.codes:
            return self.codes[str(name)]
        near = difflib.get_close_matches(str(name), self.codes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"encoding: no class {name!r}{hint}")

    def _encoding(self, spec: Any) -> Encoding:
        colors: dict[Color, set[int]] = {}
        if not (isinstance(spec, dict) and "colors" in spec):
            for number, color in enumerate(self.classes.colors):
                colors.setdefault(color, set()).add(number)
        values: dict[int, int] = {}
        names: dict[str, int] = {}
        channel = None
        if spec == "trainIds":
            values = {number: number for number in range(len(self.classes))}
        elif spec == "labelIds":
            if self.classes.names != CITYSCAPES.names:
                raise ValueError("encoding: labelIds are those of classes: cityscapes")
            for row in LABELS:
                values[row.label_id] = row.train_id
                colors.setdefault(row.color, set()).add(row.train_id)
        elif isinstance(spec, dict):
            if not spec.keys() & {"values", "colors", "polygons", "channel"}:
                spec = {"values": spec}
            _check_keys(spec, {"values", "colors", "polygons", "channel"})
            channel = spec.get("channel")
            values = dict(self._table(spec.get("values", {}), int))
            for color, number in self._table(spec.get("colors", {}), _color):
                colors.setdefault(color, set()).add(number)
            names = dict(self._table(spec.get("polygons", {}), str))
        elif spec != "colors":
            raise ValueError(
                f"encoding: got {spec!r}, expected trainIds, labelIds, colors or a table of values"
            )
        for raw in _list(self.content.get("ignore", IGNORE_INDEX)):
            if isinstance(raw, list):
                colors.setdefault(_color(raw), set()).add(IGNORE_INDEX)
            elif spec != "colors":
                if "ignore" in self.content and values.get(raw, IGNORE_INDEX) != IGNORE_INDEX:
                    raise ValueError(f"ignore: {raw} is a class in the encoding")
                for value in _range(raw):
                    values.setdefault(value, IGNORE_INDEX)
        for value in values:
            if not 0 <= value < 65536:
                raise ValueError(f"encoding: got the raw value {value}, expected 0..65535")
        return Encoding(values, colors, names, channel)

    def _table(self, table: Any, kind: Any) -> Iterable[tuple[Any, int]]:
        """(raw, class) from ``raw: class`` or from ``class: raw, or several``."""
        later: list[tuple[Any, int]] = []
        seen = set()
        for key, entry in table.items():
            if isinstance(key, int):
                seen.add(key)
                yield key, self._class(entry)
                continue
            number = self._class(key)
            several = _list(entry) if kind is not _color or isinstance(entry[0], list) else [entry]
            for raw in several:
                if kind is int:
                    later += [(value, number) for value in _range(raw)]
                else:
                    yield kind(raw), number
        # A class before "ignore", so that "ignore: 0-65" means the rest.
        for value, number in sorted(later, key=lambda pair: pair[1] == IGNORE_INDEX):
            if value not in seen:
                seen.add(value)
                yield value, number
            elif number != IGNORE_INDEX:
                raise ValueError(f"encoding: the raw value {value} means two classes")


def _check_keys(found: Any, known: set[str]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"got {found!r}, expected keys and values")
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no such key {key!r}{hint}")


def _classes(spec: Any) -> Classes:
    if spec == "cityscapes":
        return CITYSCAPES
    if not isinstance(spec, dict) or not spec:
        raise ValueError("classes: expected name: [red, green, blue], one class a line")
    if len(spec) > MOST_CLASSES:
        raise ValueError(f"classes: got {len(spec)}, expected at most {MOST_CLASSES}")
    if "ignore" in spec:
        raise ValueError("classes: 'ignore' stands for what is no class; list it under ignore")
    return Classes(tuple(map(str, spec)), tuple(map(_color, spec.values())))


def _color(value: Any) -> Color:
    if isinstance(value, list) and len(value) == 3:
        red, green, blue = value
        if all(isinstance(c, int) and 0 <= c <= 255 for c in value):
            return red, green, blue
    raise ValueError(f"got {value!r}, expected a colour [red, green, blue] of 0..255")


def _range(raw: Any) -> Iterable[int]:
    """A raw value, or those of "0-65"."""
    if isinstance(raw, int):
        return (raw,)
    first, dash, last = str(raw).partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise ValueError(f"got {raw!r}, expected a raw value, or several as '0-65'")
    return range(int(first), int(last) + 1)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _expanded(patterns: Any) -> list[str]:
    """Patterns without alternatives of folders: "{,a/}b" is "b" and "a/b"."""
    found = []
    for pattern in _list(patterns):
        match = _ALTERNATIVES.search(pattern)
        if match is None:
            found.append(pattern)
            continue
        for part in match[1].split(","):
            found += _expanded(pattern[: match.start()] + part + pattern[match.end() :])
    return found
