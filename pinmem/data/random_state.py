"""Randomness that is a function of numbers, not of what ran before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded"]


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, torch's CPU generator, numpy's and Python's start from ``key``; outside, they go on
    as if nothing had happened.

    The transforms of ``pinmem.data.transforms`` draw from torch's CPU generator alone, whatever
    device the images are on, so ``with seeded(seed, iteration): photometric(images)`` repeats.

    Args:
        key: non-negative integers; any change in any of them gives unrelated streams.
    """
    words = np.random.SeedSequence(key).generate_state(4, np.uint64)
    # default_generator, not torch.manual_seed: the latter also seeds (and may start) the GPU.
    torch_state = torch.default_generator.get_state()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(int(words[0] >> np.uint64(1)))
    np.random.seed(words[1:3].view(np.uint32))
    random.seed(int(words[3]))
    try:
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
