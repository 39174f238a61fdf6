"""The ops: one file each, with its public function, schema, fake kernels and autograd chain."""

from pinmem.ops.class_sums import class_sums
from pinmem.ops.memory_read import memory_read
from pinmem.ops.memory_read_project import memory_read_project
from pinmem.ops.memory_update import memory_update
from pinmem.ops.upsampled_confusion import upsampled_confusion
from pinmem.ops.upsampled_cross_entropy import upsampled_cross_entropy

__all__ = [
    "class_sums",
    "memory_read",
    "memory_read_project",
    "memory_update",
    "upsampled_confusion",
    "upsampled_cross_entropy",
]
