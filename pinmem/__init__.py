"""pinmem: class-memory ops and meta-learning for semantic segmentation of unseen domains."""

from pinmem import ops
from pinmem.backends import BackendError, backend, get_backend, set_backend
from pinmem.memory import ClassMemory
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
