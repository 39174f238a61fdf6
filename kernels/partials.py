"""Sums over all pixels in a fixed order: every program adds up its own share, then one kernel adds
the shares. How the pixels are shared out follows from the shapes alone, so the bits do not depend
on the GPU; there are no floating-point atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pinmem.kernels.launch import launch
from pinmem.kernels.maps import cast, padded
from torch import Tensor

from pinmem.ops._maps import accumulator

# Shares at most: a program for each multiprocessor of an H200, which seldom has room for two.
MOST_SHARES = 132
# They are written by one launch and read by the next. Up to so many bytes (a quarter of an H200's
# L2) they do not leave the cache between; sums too large for that are shared by a few programs.
SHARE_BYTES = 12 << 20
_FEW = 24


def share_out(blocks: int, size: int, most: int = MOST_SHARES) -> tuple[int, int]:
    """How many blocks in a row each program takes, and how many programs there are.

    Each keeps a share of ``size`` bytes. No blocks still make one program, so that the sums are
    written: as zeros.
    """
    most = max(1, min(most, max(SHARE_BYTES // size, min(_FEW, 4 * SHARE_BYTES // size))))
    steps = max(1, triton.cdiv(blocks, most))
    return steps, max(1, triton.cdiv(blocks, steps))


def new_shares(blocks: int, numel: int, like: Tensor) -> tuple[int, int, Tensor]:
    """As :func:`share_out`, and the uninitialised shares [programs, numel].

    They are of the accumulation type of ``like``.
    """
    kind = accumulator(like.dtype)
    steps, programs = share_out(blocks, numel * kind.itemsize)
    return steps, programs, like.new_empty((programs, numel), dtype=kind)


@triton.jit
def add_share(share, tile, row, column, rows: tl.constexpr, columns: tl.constexpr, turn):
    """Add a tile at (row, column) of a contribution [rows, columns] to a program's ``share``.

    The first turn writes, the later ones add.
    """
    i, j = row + tl.arange(0, tile.shape[0]), column + tl.arange(0, tile.shape[1])
    places = share + i[:, None] * columns + j[None, :]
    mask = (i < rows)[:, None] & (j < columns)[None, :]
    added = (i < tl.where(turn > 0, rows, 0))[:, None] & (j < columns)[None, :]
    before = tl.load(places, mask=added, other=0.0)
    tl.store(places, before + tile, mask=mask)
    # The next turn may read with other threads what these have written.
    tl.debug_barrier()


@triton.jit
def _add_columns(
    shares,
    total,
    block,
    count,
    columns: tl.constexpr,
    stride,
    numel,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = block * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    added = tl.zeros([ROWS, BLOCK], shares.dtype.element_ty)
    for first in range(0, count, ROWS):
        places = (first + row).to(tl.int64)[:, None] * numel + column[None, :]
        mask = (first + row < count)[:, None] & (column < numel)[None, :]
        added += tl.load(shares + places, mask=mask, other=0.0)
    result = cast(tl.sum(added, 0), total.dtype.element_ty)
    tl.store(total + column // columns * stride + column % columns, result, mask=column < numel)


@triton.jit
def _add_shares(
    shares,
    total,
    count,
    numel,
    more_shares,
    more_total,
    more_count,
    more_numel,
    stride,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    MORE_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Programs add columns of the first shares, then of the second where there are any."""
    blocks = tl.cdiv(numel, BLOCK)
    block = tl.program_id(0)
    if more_shares is None or block < blocks:
        _add_columns(shares, total, block, count, 1, 1, numel, ROWS, BLOCK)
    else:
        _add_columns(
            more_shares,
            more_total,
            block - blocks,
            more_count,
            COLUMNS,
            stride,
            more_numel,
            MORE_ROWS,
            BLOCK,
        )


def add_shares(
    shares: Tensor,
    total: Tensor,
    more_shares: Tensor | None = None,
    more_total: Tensor | None = None,
) -> None:
    """``total`` = the sum of ``shares`` [programs, numel] over the programs, one launch.

    ``more_total``, a matrix whose rows may lie apart, is the sum of ``more_shares`` likewise.
    """
    count, numel = shares.shape
    block, blocks = 32, triton.cdiv(numel, 32)
    more_count, more_numel, stride, columns = 1, 1, 1, 1
    if more_shares is not None and more_total is not None:
        more_count, more_numel = more_shares.shape
        stride, columns = more_total.stride(0), more_total.shape[1]
        blocks += triton.cdiv(more_numel, block)
    launch(
        _add_shares,
        blocks,
        shares,
        total,
        count,
        numel,
        more_shares,
        more_total,
        more_count,
        more_numel,
        stride,
        COLUMNS=columns,
        ROWS=min(padded(count), 128),
        MORE_ROWS=min(padded(more_count), 128),
        BLOCK=block,
        maxnreg=255 if shares.element_size() == 8 else None,
    )
