"""Feature maps: their memory format, and the accumulation type."""

from __future__ import annotations

import torch


def format_of(tensor: torch.Tensor) -> torch.memory_format:
    """The memory format the kernels see: channels_last where the map is that and not contiguous."""
    if tensor.is_contiguous() or not tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The map itself if it is dense in either memory format, else a contiguous copy."""
    return tensor.contiguous(memory_format=format_of(tensor))


def dense_like(tensor: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """``tensor`` in the dtype and memory format of ``like`` (a cotangent may come in any)."""
    if tensor is None:
        return None
    return tensor.to(like.dtype).contiguous(memory_format=format_of(like))


def empty_map(like: torch.Tensor, channels: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialised map of ``like``'s batch, height, width and memory format."""
    batch, _, height, width = like.shape
    return torch.empty(
        (batch, channels, height, width),
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=format_of(like),
    )


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type sums are formed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
