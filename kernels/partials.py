"""Sums over all pixels in a fixed order: every program adds up its own part of them, then one
kernel adds these partial sums. How the pixels are split follows from the shapes alone, so results
are bitwise deterministic on every GPU; there are no floating-point atomics.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from pinmem.kernels.launch import Plan
from pinmem.kernels.maps import cast, jit

# Four programs for each of an H200's 132 multiprocessors, as long as their sums stay in the L2:
# one launch writes them and the next reads them, up to a quarter of its 50 MB.
_MOST_PROGRAMS = 528
_MOST_BYTES = 12 << 20
# Partial sums that are added at once.
_ROWS = 128


class Split(NamedTuple):
    """How many blocks of pixels in a row each program takes, and how many programs there are."""

    steps: int
    programs: int
    numel: int

    @staticmethod
    def of(blocks: int, numel: int, programs: int = 0) -> Split:
        """For partial sums of ``numel`` float32 each; no blocks still make one, of zeros."""
        most = min(programs or _MOST_PROGRAMS, max(_MOST_BYTES // (4 * numel), 132))
        steps = max(1, -(-blocks // most))
        return Split(steps, max(1, -(-blocks // steps)), numel)

    def new_partials(self, like: Tensor) -> Tensor:
        """Uninitialised partial sums [programs, numel]."""
        return like.new_empty((self.programs, self.numel), dtype=torch.float32)


@jit
def _add(
    partials, total,
    numel, pitch, columns, stride, count,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    added = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, count, ROWS):
        places = (first + row).to(tl.int64)[:, None] * pitch + place[None, :]
        mask = (first + row < count)[:, None] & (place < numel)[None, :]
        added += tl.load(partials + places, mask=mask, other=0.0)
    result = cast(tl.sum(added, 0), total.dtype.element_ty)
    tl.store(total + place // columns * stride + place % columns, result, mask=place < numel)


@functools.lru_cache(256)
def _plan(count: int, numel: int, pitch: int, columns: int, stride: int) -> Plan:
    block = 32
    sizes = (numel, pitch, columns, stride, count)
    return Plan(_add, -(-numel // block), sizes, 4, ROWS=_ROWS, BLOCK=block)


def add_partials(partials: Tensor, total: Tensor) -> None:
    """``total``, a matrix with rows of any stride, from ``partials`` [programs, numel]."""
    count, numel = partials.shape
    _plan(count, numel, partials.stride(0), total.shape[1], total.stride(0))(partials, total)
