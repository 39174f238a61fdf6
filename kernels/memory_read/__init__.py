"""Triton kernels of :func:`pinmem.ops.memory_read` (docs/math.md 1)."""

from pinmem.kernels.memory_read.backward import memory_read_backward
from pinmem.kernels.memory_read.double_backward import memory_read_double_backward
from pinmem.kernels.memory_read.forward import memory_read

__all__ = ["memory_read", "memory_read_backward", "memory_read_double_backward"]
