"""Command lines as people write them, rewritten as jsonargparse reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin


def spelt_out(arguments: Sequence[str], types: Mapping[str, Any]) -> list[str]:
    """Turn ``--dataset A --dataset B`` into a list of two, and ``--flip`` alone into true.

    Args:
        arguments: of the command line.
        types: of the options, by name.
    """
    result: list[str] = []
    lists: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        kind = types.get(name) if argument.startswith("--") else None
        is_list = get_origin(kind) is list
        if not equals and (is_list or kind is bool):
            follows = bool(rest) and not rest[0].startswith("--")
            if kind is bool and not follows:
                argument += "=true"
            elif follows:
                value = rest.pop(0)
                argument = f"{argument}={value}"
        if is_list and value and not value.startswith("["):
            lists.setdefault(name, []).append(value)
        else:
            result.append(argument)
    for name, values in lists.items():
        of_text = get_args(types[name]) == (str,)
        text = json.dumps(values) if of_text else f"[{','.join(values)}]"
        result.append(f"--{name}={text}")
    return result
