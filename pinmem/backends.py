"""Which implementation of an op runs: ``reference``, ``cpu``, ``triton`` or ``cuda``.

``auto`` (the default) takes the fastest that is there for the tensor at hand and never fails
because something is missing. A backend asked for by name that cannot run raises and says why.
The choice is made once, in the forward pass; the backward passes follow it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import os
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

BACKENDS = ("reference", "cpu", "triton", "cuda")

# Backends with kernels of their own; each registers its ops as ``torch.ops.pinmem_<backend>``.
KERNEL_BACKENDS = BACKENDS[1:]

DTYPES = {
    "reference": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "cpu": (torch.float64, torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
}

# The one implementation of every op on a GPU: Triton where matrix units do the work, CUDA where
# labels are gathered, scattered and summed.
ON_GPU = {
    "memory_read": "triton",
    "memory_read_project": "triton",
    "upsampled_cross_entropy": "cuda",
    "class_sums": "cuda",
    "memory_update": "cuda",
    "upsampled_confusion": "cuda",
}

_FAKE = torch._C._TorchDispatchModeKey.FAKE
_AS_ON_GPU = "as on a GPU"

# The most slots or classes that a GPU's kernels have room for in registers. Beyond, plain PyTorch
# is cuBLAS, which gains on them as classes grow.
MOST_CLASSES = {"triton": 64, "cuda": 256}


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run; the message says why."""


class _Choice:
    """The process-wide choice (read by traced code, so a plain attribute)."""

    name = "auto"


def set_backend(name: str) -> None:
    """Choose the implementation of every op from now on, process-wide.

    Args:
        name: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.

    Raises:
        ValueError: the name is none of these.
        BackendError: that backend is not available on this machine.
    """
    if name != "auto":
        if name not in BACKENDS:
            raise ValueError(f"backend: got {name!r}, expected 'auto' or one of {list(BACKENDS)}")
        reason = unavailable(name)
        if reason:
            raise BackendError(f"backend {name!r} is not available: {reason}")
    _Choice.name = name


def get_backend() -> str:
    """The name last given to :func:`set_backend`, ``"auto"`` at the start."""
    return _Choice.name


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Use a backend inside a ``with`` block; same names and errors as :func:`set_backend`."""
    before = _Choice.name
    set_backend(name)
    try:
        yield
    finally:
        _Choice.name = before


@functools.cache
def unavailable(name: str) -> str:
    """Why a backend cannot run on this machine; empty where it can."""
    if name == "reference":
        return ""
    if name == "triton":
        return _triton_unavailable()
    if name == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if name == "cuda" and torch.version.hip:
        return "this torch is built for ROCm"
    path = _library(name)
    if not path.exists():
        return _not_built(path.name) or f"{path} is not there (pip install -e . builds it)"
    try:
        torch.ops.load_library(path)
        if name == "cpu":
            return ""
        library = ctypes.CDLL(str(path))
        return _old_driver(library) or _no_code(library)
    except (OSError, AttributeError) as error:  # the latter: an older build, without a symbol
        return f"{path.name} does not load: {' '.join(str(error).split())}"


def _old_driver(library: ctypes.CDLL) -> str:
    """Why the driver does not run the library's kernels; empty where it does."""
    needed, known = library.pinmem_built_with_cuda(), library.pinmem_driver_knows_cuda()
    if known // 1000 >= needed // 1000:
        return ""
    built, driver = (f"{each // 1000}.{each % 1000 // 10}" for each in (needed, known))
    return f"_cuda.so is built with CUDA {built}, and the driver knows CUDA up to {driver}"


def _no_code(library: ctypes.CDLL) -> str:
    """Why the library's kernels do not run on the current GPU; empty where they do."""
    index = torch.cuda.current_device()  # the others' contexts would take memory on each
    if library.pinmem_runs_on(index):
        return ""
    return f"_cuda.so has no code for {_gpu(index)} (TORCH_CUDA_ARCH_LIST at the build adds it)"


def _gpu(index: int) -> str:
    capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
    return f"{torch.cuda.get_device_name(index)}, compute capability {capability}"


def _library(name: str) -> Path:
    """Where a backend's library lies; the environment may name another build of the CPU's."""
    package = Path(__file__).parent
    if name == "cpu":
        return Path(os.environ.get("PINMEM_CPU_LIBRARY", package / "_cpu.so")).absolute()
    return package / "_cuda.so"


def _not_built(library: str) -> str:
    """What the build said of a library that it could not make."""
    notes = Path(__file__).parent / "_build.txt"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return next((f"not built: {line}" for line in lines if line.startswith(library)), "")


def _triton_unavailable() -> str:
    if find_spec("triton") is None:
        return "Triton is not installed"
    if find_spec("pinmem.kernels") is None:
        return "pinmem.kernels is not installed (pip install -e . maps the folder kernels/ to it)"
    if triton_interpreted():
        return ""
    if not torch.cuda.is_available():
        return "no GPU (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly, for testing)"
    if torch.cuda.get_device_capability() < (8, 0):
        found = _gpu(torch.cuda.current_device())
        return f"its kernels are for compute capability 8.0 on, got {found}"
    try:
        # Compiles, or finds in its cache, what every launch needs: without a C compiler it raises.
        _ = importlib.import_module("triton.runtime").driver.active
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"Triton does not start: {' '.join(str(error).split())}"
    return ""


def triton_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def unsupported(name: str, op: str, device: str, dtype: torch.dtype, classes: int = 1) -> str:
    """Why a backend cannot run an op on tensors of this device and dtype; empty where it can.

    ``classes``: slots or classes, as many at least.
    """
    reason = unavailable(name)
    if reason:
        return reason
    if not _implements(name, op):
        return f"it has no {op}"
    if dtype not in DTYPES[name]:
        return f"it takes {', '.join(_short(d) for d in DTYPES[name])}, got {_short(dtype)}"
    if name != "reference" and device not in _devices(name):
        return f"it takes tensors on {' or '.join(_devices(name))}, got {device}"
    if classes > MOST_CLASSES.get(name, classes):
        return f"it takes at most {MOST_CLASSES[name]} slots or classes, got more"
    return ""


def _devices(name: str) -> tuple[str, ...]:
    if name == "triton":
        return ("cuda", "cpu") if triton_interpreted() else ("cuda",)
    return (name,)


def select(op: str, tensor: torch.Tensor, classes: int) -> str:
    """The backend that runs ``op`` for this tensor and so many slots or classes, as chosen now.

    Raises:
        BackendError: the backend chosen by name cannot run them.
    """
    # Branches, so that a traced size, which need not be a number, becomes a guard.
    least = 1 if classes <= 64 else 65 if classes <= 256 else 257
    return _resolve(_Choice.name, op, tensor.device.type, tensor.dtype, least)


def under_fake_tensors() -> bool:
    """Whether tensors are fake: they have no values to look at."""
    return torch._C._get_dispatch_mode(_FAKE) is not None


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Inside, fake tensors on a GPU take the ops they would take on a machine that has one."""
    before = _Choice.name
    _Choice.name = _AS_ON_GPU
    try:
        yield
    finally:
        _Choice.name = before


def is_as_on_gpu() -> bool:
    """Whether fake tensors stand in for those on a GPU."""
    return _Choice.name == _AS_ON_GPU


def _resolve(choice: str, op: str, device: str, dtype: torch.dtype, classes: int) -> str:
    if choice == _AS_ON_GPU:
        own = ON_GPU[op]
        able = dtype in DTYPES[own] and classes <= MOST_CLASSES[own]
        return own if able else "reference"
    if choice == "auto":
        return candidates(op, device, dtype, classes)[0]
    reason = unsupported(choice, op, device, dtype, classes)
    if reason:
        raise BackendError(f"{op}: backend {choice!r} cannot run: {reason}")
    return choice


# What torch.compiler.assume_constant_result does, without its import of the whole compiler (2 s).
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def candidates(op: str, device: str, dtype: torch.dtype, classes: int = 1) -> tuple[str, ...]:
    """What ``auto`` may take for this op, device and dtype, best first; never empty.

    ``classes``: slots or classes, as many at least.
    """
    own = ON_GPU[op] if device == "cuda" else "cpu"
    able = not unsupported(own, op, device, dtype, classes)
    return (own, "reference") if able else ("reference",)


def _implements(name: str, op: str) -> bool:
    if name == "reference":
        return True
    if name in MOST_CLASSES and ON_GPU[op] != name:
        return False
    return name == "triton" or torch._C._dispatch_has_kernel_for_dispatch_key(
        f"pinmem_{name}::{op}", name.upper()
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
