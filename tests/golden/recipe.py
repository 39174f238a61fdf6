"""The starting weights and memory behind the golden files, rebuilt from their names and seeds."""

from __future__ import annotations

import zlib

import numpy as np


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The starting value of one state-dict entry, float32, keyed by its official name."""
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(rng.standard_normal(shape))
    elif len(shape) == 4:
        value = rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    elif len(shape) == 2:
        value = rng.standard_normal(shape) * 0.05
    elif name.endswith(".weight"):
        value = 1 + 0.1 * rng.standard_normal(shape)
    else:
        value = 0.05 * rng.standard_normal(shape)
    return value.astype(np.float32)


def memory(num_slots: int = 19, dim: int = 256, seed: int = 7) -> np.ndarray:
    """The starting memory [slots, dim]: uniform rows, L2-normalised, float64."""
    rows = np.random.RandomState(seed).rand(num_slots, dim).astype(np.float32).astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
