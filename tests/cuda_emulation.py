"""The CUDA library on a CPU: its kernels compiled as C++, every thread of a block a fiber.

csrc/cuda/emulation says what that shows and what it cannot. The library registers the ops of
``pinmem_cuda`` for CPU tensors; inside :func:`emulated` the backend ``cuda`` takes these.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from pinmem import backends

from .build_tools import ROOT, toolchain, toolchain_cuda

FOLDER = ROOT / "build/emulation"


def missing() -> str:
    """Why the library cannot be built here; empty where it can."""
    try:
        toolchain.need_compiler()
        toolchain.need_torch()
    except toolchain.NotBuilt as reason:
        return str(reason)
    return ""


@functools.cache
def load() -> Path:
    """Build what is stale, once among processes that test beside each other, and load it."""
    library = FOLDER / "_cuda.so"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        toolchain_cuda.build_emulation(library)
        torch.ops.load_library(library)
    return library


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Inside, the backend ``cuda`` is available and takes tensors on the CPU."""
    load()
    unavailable, unsupported = backends.unavailable, backends.unsupported

    def emulated_unsupported(
        name: str, op: str, device: str, dtype: torch.dtype, classes: int = 1
    ) -> str:
        if name != "cuda" or backends.ON_GPU[op] != "cuda":
            return unsupported(name, op, device, dtype, classes)
        return "" if device == "cpu" else f"emulated kernels take tensors on cpu, got {device}"

    def emulated_unavailable(name: str) -> str:
        return "" if name == "cuda" else unavailable(name)

    with (
        mock.patch.object(backends, "unavailable", emulated_unavailable),
        mock.patch.object(backends, "unsupported", emulated_unsupported),
    ):
        yield
