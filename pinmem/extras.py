"""Optional packages: imported where they are used, and named in one line where they are absent."""

from __future__ import annotations

import importlib
from types import ModuleType


def optional(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a package that an extra of pinmem installs.

    Args:
        module: its name.
        extra: which of pinmem's extras brings it.
        purpose: what needs it, for the message.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ValueError(f"{purpose} needs {module}: pip install 'pinmem[{extra}]'") from None
