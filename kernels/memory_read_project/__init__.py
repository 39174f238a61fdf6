"""Triton kernels of :func:`pinmem.ops.memory_read_project` (docs/math.md 1).

The readout is never formed: with ``P = M W_c^T`` [K,O], ``projected = r (x W_q^T) + a P``.
"""

from pinmem.kernels.memory_read_project.backward import memory_read_project_backward
from pinmem.kernels.memory_read_project.double_backward import memory_read_project_double_backward
from pinmem.kernels.memory_read_project.forward import memory_read_project

__all__ = [
    "memory_read_project",
    "memory_read_project_backward",
    "memory_read_project_double_backward",
]
