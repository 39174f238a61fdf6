"""pinmem: class-memory ops and meta-learning for semantic segmentation of unseen domains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pinmem import ops
from pinmem.backends import BackendError, backend, get_backend, set_backend
from pinmem.memory import ClassMemory

if TYPE_CHECKING:
    from pinmem.models import build_model, load_official

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "ClassMemory",
    "backend",
    "build_model",
    "get_backend",
    "load_official",
    "ops",
    "set_backend",
]


def __getattr__(name: str) -> Any:
    """Networks need torchvision; the ops alone do not."""
    if name in ("build_model", "load_official"):
        from pinmem import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
