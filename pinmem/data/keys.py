"""What stands under the keys of a description: checked, or an error that says what was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pinmem.data.classes import CITYSCAPES, MOST_CLASSES, Classes
from pinmem.data.encodings import MOST_RAW, Color

__all__ = [
    "as_list",
    "check_keys",
    "classes_of",
    "color",
    "mapping",
    "patterns",
    "raw_values",
    "texts",
]

_BRACES = re.compile(r"\{([^{}]*)\}")
_ALTERNATIVES = re.compile(r"\{([^{}]*/[^{}]*)\}")


def check_keys(found: Any, known: set[str]) -> None:
    """Raise unless ``found`` maps some of the known keys; names the nearest one."""
    if not isinstance(found, dict):
        raise ValueError(f"got {found!r}, expected keys and values")
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no such key {key!r}{hint}")


def classes_of(spec: Any) -> Classes:
    """``cityscapes``, or names with their colours."""
    if spec == "cityscapes":
        return CITYSCAPES
    if not isinstance(spec, dict) or not spec:
        raise ValueError("classes: expected name: [red, green, blue], one class per line")
    if len(spec) > MOST_CLASSES:
        raise ValueError(f"classes: got {len(spec)}, expected at most {MOST_CLASSES}")
    if "ignore" in spec:
        raise ValueError("classes: 'ignore' stands for what is no class; list it under ignore")
    colors = []
    for name, value in spec.items():
        try:
            colors.append(color(value))
        except ValueError as error:
            raise ValueError(f"classes: {name}: {error}") from None
    return Classes(tuple(map(str, spec)), tuple(colors))


def color(value: Any) -> Color:
    """``[red, green, blue]``."""
    if isinstance(value, list) and len(value) == 3:
        red, green, blue = value
        if all(type(c) is int and 0 <= c <= 255 for c in value):
            return red, green, blue
    raise ValueError(f"got {value!r}, expected a colour [red, green, blue] of 0..255")


def mapping(content: dict[str, Any], key: str) -> dict[Any, Any]:
    """What a key of a description maps; nothing where it is not there."""
    found = content.get(key, {})
    if not isinstance(found, dict):
        raise ValueError(f"{key}: got {found!r}, expected keys and values")
    return found


def texts(value: Any, key: str) -> list[str]:
    """A text, or several."""
    several = as_list(value)
    for text in several:
        if not isinstance(text, str) or not text:
            raise ValueError(f"{key}: got {text!r}, expected a text")
    return several


def raw_values(raw: Any) -> Iterable[int]:
    """A raw value, or those of "0-65"."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        first = last = raw
    else:
        parts = str(raw).split("-")
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"got {raw!r}, expected a raw value, or several as '0-65'")
        first, last = map(int, parts)
    if not 0 <= first <= last <= MOST_RAW:
        raise ValueError(f"encoding: got the raw value {raw}, expected 0..{MOST_RAW}")
    return range(first, last + 1)


def as_list(value: Any) -> list[Any]:
    """A value as a list of one."""
    return value if isinstance(value, list) else [value]


def patterns(value: Any, key: str) -> list[str]:
    """Patterns without alternatives of folders: "{,a/}b" is "b" and "a/b".

    Raises:
        ValueError: one is no text, leads out of the root, or has braces that mean nothing.
    """
    found = []
    for text in texts(value, key):
        pattern = text.replace("\\", "/").removeprefix("./")
        if pattern.startswith("/") or ":/" in pattern:
            raise ValueError(f"{key}: got {text!r}, expected a pattern below the root")
        for name in _BRACES.findall(pattern):
            if "," not in name and name not in ("split", "subset"):
                raise ValueError(
                    f"{key}: got {{{name}}}, expected {{split}}, {{subset}} or several, {{png,jpg}}"
                )
        if set(_BRACES.sub("", pattern)) & set("{}"):
            raise ValueError(f"{key}: got {text!r}, whose braces do not match")
        found += _expanded(pattern)
    return found


def _expanded(pattern: str) -> list[str]:
    match = _ALTERNATIVES.search(pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [text for part in match[1].split(",") for text in _expanded(before + part + after)]
