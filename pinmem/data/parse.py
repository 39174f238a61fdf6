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
from pinmem.data.classes import CITYSCAPES
from pinmem.data.description import Description, Layout
from pinmem.data.encodings import Color, Encoding
from pinmem.data.errors import DataError
from pinmem.data.keys import (
    as_list,
    check_keys,
    classes_of,
    color,
    mapping,
    patterns,
    raw_values,
    texts,
)
from pinmem.data.splits import STANDARD_SPLITS

__all__ = ["known_datasets", "open_description", "parse_description"]

_LAYOUT_KEYS = {"images", "labels", "list", "pairs", "standard_split", "encoding"}
_KEYS = _LAYOUT_KEYS | {
    "root", "classes", "ignore", "splits", "subsets", "counts", "layouts", "missing_labels",
}  # fmt: skip
_WILD = re.compile(r"\*\*/|\*")


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
        check_keys(content, _KEYS)
        self.path = path
        self.content = content
        self.classes = classes_of(content.get("classes"))
        self.codes = {name: k for k, name in enumerate(self.classes.names)}

    def description(self) -> Description:
        content = self.content
        single = {k: v for k, v in content.items() if k in _LAYOUT_KEYS}
        layouts = content.get("layouts", [single])
        if not isinstance(layouts, list) or not layouts:
            raise ValueError(f"layouts: got {layouts!r}, expected a list of them")
        if "layouts" in content and (more := single.keys() - {"encoding"}):
            raise ValueError(f"{min(more)}: is beside layouts, expected inside them")
        subsets = tuple(map(str, as_list(content.get("subsets", []))))
        result = Description(
            name=self.path.stem,
            classes=self.classes,
            layouts=tuple(layout for item in layouts for layout in self._layouts(item)),
            root=self.path.parent / texts(content["root"], "root")[0]
            if "root" in content
            else None,
            splits={k: tuple(texts(v, "splits")) for k, v in mapping(content, "splits").items()},
            subsets=subsets,
            counts={k: tuple(map(int, as_list(v))) for k, v in mapping(content, "counts").items()},
            missing_labels=str(content.get("missing_labels", "")),
        )
        for layout in result.layouts:
            if "{subset}" in layout.images + layout.labels and not subsets:
                raise ValueError("subsets: missing, expected the names {subset} stands for")
        return result

    def _layouts(self, item: dict[str, Any]) -> Iterable[Layout]:
        """One layout for every combination of alternatives."""
        check_keys(item, _LAYOUT_KEYS)
        encoding = self._encoding(item.get("encoding", self.content.get("encoding")))
        if "pairs" in item:
            yield Layout("", "", encoding, pairs=self._pairs(mapping(item, "pairs")))
            return
        for key in ("images", "labels"):
            if key not in item:
                raise ValueError(f"{key}: missing, expected a pattern such as {key}/{{split}}/*")
        for images, labels, listed in itertools.product(
            patterns(item["images"], "images"),
            patterns(item["labels"], "labels"),
            patterns(item["list"], "list") if "list" in item else [None],
        ):
            wild = [_WILD.findall(pattern) for pattern in (images, labels)]
            if wild[0] != wild[1]:
                raise ValueError(f"labels: {labels!r} has not the wildcards of images {images!r}")
            if not wild[0]:
                raise ValueError(f"images: got {images!r}, expected a pattern with *")
            standard = item.get("standard_split")
            if standard not in (None, *STANDARD_SPLITS):
                expected = " or ".join(STANDARD_SPLITS)
                raise ValueError(f"standard_split: got {standard!r}, expected {expected}")
            yield Layout(images, labels, encoding, listed, standard_split=standard)

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
            if not isinstance(pairs, list):
                raise ValueError(
                    f"pairs: got {pairs!r}, expected a list of an image and a label each"
                )
            for pair in pairs:
                if not isinstance(pair, list) or len(pair) != 2:
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
            for number, one in enumerate(self.classes.colors):
                colors.setdefault(one, set()).add(number)
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
            check_keys(spec, {"values", "colors", "polygons", "channel"})
            channel = spec.get("channel")
            if channel not in (None, 0, 1, 2, 3) or isinstance(channel, bool):
                raise ValueError(f"channel: got {channel!r}, expected 0, 1, 2 or 3")
            values = dict(self._table(mapping(spec, "values"), int))
            for one, number in self._table(mapping(spec, "colors"), color):
                colors.setdefault(one, set()).add(number)
            names = dict(self._table(mapping(spec, "polygons"), str))
        elif spec != "colors":
            raise ValueError(
                f"encoding: got {spec!r}, expected trainIds, labelIds, colors or a table of values"
            )
        for raw in as_list(self.content.get("ignore", IGNORE_INDEX)):
            if isinstance(raw, list):
                colors.setdefault(color(raw), set()).add(IGNORE_INDEX)
            elif spec != "colors":
                if "ignore" in self.content and values.get(raw, IGNORE_INDEX) != IGNORE_INDEX:
                    raise ValueError(f"ignore: {raw} is a class in the encoding")
                for value in raw_values(raw):
                    values.setdefault(value, IGNORE_INDEX)
        for value in values:
            raw_values(value)
        return Encoding(values, colors, names, channel)

    def _table(self, table: Any, kind: Any) -> Iterable[tuple[Any, int]]:
        """(raw, class) from ``raw: class`` or from ``class: raw, or several``."""
        later: list[tuple[Any, int]] = []
        seen = set()
        for key, entry in table.items():
            if isinstance(key, int) and not isinstance(key, bool):
                seen.add(key)
                yield key, self._class(entry)
                continue
            number = self._class(key)
            listed = isinstance(entry, list) and any(isinstance(each, list) for each in entry)
            several = as_list(entry) if kind is not color or listed else [entry]
            for raw in several:
                if kind is int:
                    later += [(value, number) for value in raw_values(raw)]
                else:
                    yield kind(raw), number
        # A class before "ignore", so that "ignore: 0-65" means the rest.
        for value, number in sorted(later, key=lambda pair: pair[1] == IGNORE_INDEX):
            if value not in seen:
                seen.add(value)
                yield value, number
            elif number != IGNORE_INDEX:
                raise ValueError(f"encoding: the raw value {value} means two classes")
