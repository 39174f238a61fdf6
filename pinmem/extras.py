"""Optional packages: imported where they are used, and named in one line where they are absent."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

NVIDIA = "NVIDIA's"


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


def apex_state() -> str:
    """`NVIDIA` where NVIDIA's apex is installed, or what is there instead.

    NVIDIA's has ``apex.optimizers``; the package of that name on PyPI does not.
    """
    spec = find_spec("apex")
    if spec is None:
        return "not installed (optional)"
    roots = list(spec.submodule_search_locations or [])
    if any((Path(root) / "optimizers").is_dir() for root in roots):
        return NVIDIA
    return "installed, but not NVIDIA's (another package of that name): not used"
