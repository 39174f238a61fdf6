"""Memory of this process as the kernel sees it: how the peak of a call is measured on a CPU.

In a process of its own, started with :data:`ENVIRONMENT` so that freed memory goes back at once,
the high-water mark of the resident set is reset before the call. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

# glibc: every array of pages from the system, and back as soon as it is freed.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def supported() -> bool:
    """Whether this system tells a process its high-water mark and lets it be reset."""
    try:
        reset_peak()
        return peak() > 0
    except OSError:
        return False


def resident() -> int:
    """Bytes resident now, after what is free went back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return _status("VmRSS")


def reset_peak() -> None:
    """Begin a new high-water mark."""
    _CLEAR.write_text("5")


def peak() -> int:
    """Bytes resident at most since :func:`reset_peak`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
