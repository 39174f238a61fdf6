"""What is measured: sizes, types, how often, for how long."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

CLASSES = 19
CHANNELS = 256
# Outputs of the projection behind the memory.
PROJECTED = 256

# The three passes of a row. Each one includes the ones before it, as in training.
FORWARD = "forward"
BACKWARD = "forward + backward"
SECOND = "forward + backward + double backward"


class Size(NamedTuple):
    """Images and the strides of the maps that a network makes of them."""

    batch: int
    height: int
    width: int
    output_stride: int
    classes: int = CLASSES
    channels: int = CHANNELS

    def at(self, stride: int) -> tuple[int, int]:
        """Height and width of a map; strides round up."""
        return -(-self.height // stride), -(-self.width // stride)

    def pixels(self, stride: int) -> int:
        """Pixels of a map of the whole batch."""
        height, width = self.at(stride)
        return self.batch * height * width

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}, stride {self.output_stride}"


SIZES = {
    "cpu": (Size(4, 768, 768, 16),),
    "cuda": (Size(8, 1024, 2048, 8), Size(8, 768, 768, 16)),
}
TYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.bfloat16, torch.float32),
}
SMOKE_SIZE = Size(2, 35, 50, 16, channels=32)


@dataclass(frozen=True)
class Plan:
    """Everything a run depends on beside the machine.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        smoke: tiny sizes and few repetitions: walks the lines, measures nothing.
        channels_last: the memory format of the maps.
        sizes: of the images; the training step has its own.
        dtypes: of the maps.
        repetitions: how often each implementation is timed at most.
        seconds: how long one row is timed, unless that allows fewer than five repetitions.
        threads: of PyTorch on the CPU.
    """

    device: str = "cpu"
    smoke: bool = False
    channels_last: bool = False
    sizes: tuple[Size, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    repetitions: int = 100
    seconds: float = 10.0
    threads: int = field(default_factory=lambda: min(torch.get_num_threads(), os.cpu_count() or 1))

    @classmethod
    def of(cls, device: str, smoke: bool, channels_last: bool = False) -> Plan:
        """The plan of a full run on a device, or of its rehearsal."""
        if smoke:
            sizes, dtypes = (SMOKE_SIZE,), (torch.bfloat16,)
            return cls(device, True, channels_last, sizes, dtypes, 2, seconds=0, threads=1)
        return cls(device, False, channels_last, SIZES[device], TYPES[device])

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the maps."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def compiler(self) -> str:
        """torch.compile's back end: a rehearsal does not wait for a C++ compiler."""
        return "aot_eager" if self.smoke else "inductor"

    @property
    def least(self) -> int:
        """Repetitions that no row has fewer of."""
        return min(5, self.repetitions)


def in_tf32(op: str, dtype: torch.dtype, device: str) -> bool:
    """Whether PyTorch's settings allow TF32 in an op's products, on either side of a row."""
    products = {
        "memory_read": torch.backends.cuda.matmul,
        "memory_read_project": torch.backends.cudnn.conv,
        "memory_module": torch.backends.cudnn.conv,
        "training_step": torch.backends.cudnn.conv,
        "evaluation": torch.backends.cudnn.conv,
    }
    if device != "cuda" or dtype != torch.float32 or op not in products:
        return False
    return products[op].fp32_precision == "tf32"


def short(dtype: torch.dtype) -> str:
    """The name of a dtype without its module."""
    return str(dtype).removeprefix("torch.")
