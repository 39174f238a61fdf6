"""Clear errors for bad arguments: each names the argument, what came and what was expected."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from pinmem.backends import unavailable, under_fake_tensors

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LABELS = (torch.uint8, torch.int64)


def check_map(
    name: str, tensor: Tensor, channels: int | None = None, like: Tensor | None = None
) -> None:
    """A floating-point map [B,C,h,w]; with ``like``, of its batch, size, device and dtype."""
    if tensor.ndim != 4:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected [B,C,h,w]")
    check_float(name, tensor)
    if tensor.shape[2] == 0 or tensor.shape[3] == 0:
        raise ValueError(f"{name}: got an empty map {list(tensor.shape)}, expected h, w >= 1")
    if tensor.shape[1] == 0:
        raise ValueError(f"{name}: got {list(tensor.shape)}, expected at least one channel")
    if like is not None:
        wanted = [like.shape[0], channels, like.shape[2], like.shape[3]]
        if list(tensor.shape) != wanted:
            raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {wanted}")
        check_device(name, tensor, like)
        if tensor.dtype != like.dtype:
            raise ValueError(f"{name}: got {tensor.dtype}, expected {like.dtype}")


def check_float(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{name}: got {tensor.dtype}, expected float64, float32, bfloat16 or float16"
        )


def check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name}: got device {tensor.device}, expected {like.device}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Exactly this shape, on the device of ``like``, in its dtype or in float32."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {list(shape)}")
    check_device(name, tensor, like)
    if tensor.dtype not in (like.dtype, torch.float32):
        raise ValueError(f"{name}: got {tensor.dtype}, expected {like.dtype} or torch.float32")


def check_slots(name: str, memory: Tensor, dim: int, like: Tensor) -> None:
    """A memory [K,C] with K >= 1 for a map of C channels."""
    if memory.ndim != 2 or memory.shape[1] != dim or memory.shape[0] == 0:
        raise ValueError(f"{name}: got shape {list(memory.shape)}, expected [K >= 1, {dim}]")
    check_shape(name, memory, (memory.shape[0], dim), like)


def check_labels(
    name: str, labels: Tensor, num_classes: int, ignore_index: int, like: Tensor
) -> None:
    """Labels [B,H,W], uint8 or int64, each in [0, num_classes) or ignore_index.

    The values are looked at on a CPU; on a GPU only under ``PINMEM_CHECK=1``, since looking
    synchronises. There (and inside torch.compile) a label out of range counts as ignored.
    """
    if labels.ndim != 3 or labels.shape[0] != like.shape[0]:
        raise ValueError(f"{name}: got shape {list(labels.shape)}, expected [{like.shape[0]},H,W]")
    if labels.shape[1] == 0 or labels.shape[2] == 0:
        raise ValueError(f"{name}: got an empty map {list(labels.shape)}, expected H, W >= 1")
    if labels.dtype not in LABELS:
        raise ValueError(f"{name}: got {labels.dtype}, expected torch.uint8 or torch.int64")
    check_device(name, labels, like)
    if torch.compiler.is_compiling() or labels.is_meta or labels.numel() == 0:
        return
    if under_fake_tensors():
        return
    while torch._C._functorch.is_functorch_wrapped_tensor(labels):
        labels = torch._C._functorch.get_unwrapped(labels)
    if labels.device.type == "cpu" or os.environ.get("PINMEM_CHECK") == "1":
        bad = _bad_label(labels, num_classes, ignore_index)
        if bad is not None:
            raise ValueError(
                f"{name}: got label {bad}, expected 0 to {num_classes - 1} "
                f"or ignore_index ({ignore_index})"
            )


def _bad_label(labels: Tensor, num_classes: int, ignore_index: int) -> int | None:
    if labels.device.type == "cpu" and not unavailable("cpu"):
        place = _find_bad_label(labels.contiguous(), num_classes, ignore_index)
        return None if place < 0 else int(labels.flatten()[place])
    values = labels.long()
    wrong = ((values < 0) | (values >= num_classes)) & (values != ignore_index)
    return int(values[wrong][0]) if bool(wrong.any()) else None


# One pass over the labels that stops nobody: the place of the first wrong one, or -1.
torch.library.define(
    "pinmem_cpu::find_bad_label", "(Tensor labels, int num_classes, int ignore_index) -> int"
)
_find_bad_label = torch.ops.pinmem_cpu.find_bad_label.default
