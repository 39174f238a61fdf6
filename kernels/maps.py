"""What the kernels share: how a map lies in memory, block sizes, loads, dots and small formulas.

A kernel sees a map [B,C,h,w] as ``images`` runs of ``pixels`` pixels. In NCHW an image is a run,
``stride`` 1 from pixel to pixel and ``pixels`` from channel to channel. In channels_last the whole
batch is one run, ``C`` from pixel to pixel and 1 from channel to channel. Offsets are 64-bit.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton's interpreter multiplies the bit patterns of bfloat16, so there a dot is done in float32.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


class Runs(NamedTuple):
    """A map as ``images`` runs of ``pixels`` pixels each, cut into blocks that stay in a run."""

    images: int
    pixels: int
    channels_last: bool

    def blocks(self, block: int) -> int:
        """How many blocks of ``block`` pixels cover one run, at least 1; its last may be ragged."""
        return max(1, triton.cdiv(self.pixels, block))

    def split(self, block: int) -> tuple[int, int, int]:
        """What a kernel asks for: pixels a run, blocks a run, blocks of the whole map."""
        return self.pixels, self.blocks(block), self.images * self.blocks(block)


def runs_of(like: Tensor) -> Runs:
    """The runs of a dense map [B,C,h,w]; every map of one call has those of the first."""
    batch, _, height, width = like.shape
    # A 1x1 map lies alike in both formats; as one long run it fills blocks.
    if height * width == 1 or not like.is_contiguous():
        return Runs(1, batch * height * width, True)
    return Runs(batch, height * width, False)


def accumulator(dtype: torch.dtype) -> Any:
    """Triton's type that sums are formed in: float64 for float64, else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def padded(size: int, least: int = 16) -> int:
    """The power of two that holds ``size``; at least 16, which every matrix unit takes."""
    return max(least, triton.next_power_of_2(size))


@triton.jit
def afresh(first, SCARCE: tl.constexpr, BLOCK: tl.constexpr):
    """``first``, a multiple of ``BLOCK``; where registers are ``SCARCE``, unknown to the compiler.

    In a loop it would keep pointers into every matrix in registers, from turn to turn. Grids have
    one axis, so a program's number on the next is 0.
    """
    return tl.multiple_of(first ^ tl.program_id(1), BLOCK) if SCARCE else first


@triton.jit
def rolled(end, SCARCE: tl.constexpr):
    """``end`` of a loop that, where registers are ``SCARCE``, the compiler cannot unroll."""
    return end ^ tl.program_id(1) if SCARCE else end


@triton.jit
def apart(SCARCE: tl.constexpr):
    """True; where registers are ``SCARCE``, unknown to the compiler.

    What stands under a branch on it is not begun early, so it takes the registers of what is done.
    """
    return tl.program_id(1) == 0 if SCARCE else True


@triton.jit
def pixel_block(index, blocks, total, pixels, BLOCK: tl.constexpr):
    """Block ``index`` of ``total``, ``blocks`` a run: its run, first pixel, and who is inside."""
    first = (index % blocks).to(tl.int64) * BLOCK
    end = tl.where(index < total, pixels, 0)
    inside = first + tl.arange(0, BLOCK) < end
    return index // blocks, first, inside


@triton.jit
def run_offsets(image, first, channels, pixels, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """Where ``BLOCK`` pixels of a run lie, from pixel ``first`` on, in a map of ``channels``.

    Returns the offsets of their channel 0 and the step from channel to channel, all 64-bit.
    """
    base = image.to(tl.int64) * pixels * channels
    local = first.to(tl.int64) + tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        return base + local * channels, tl.full((), 1, tl.int64)
    else:
        return base + local, tl.full((), 1, tl.int64) * pixels


@triton.jit
def load_channels(ptr, at, step, inside, first, end, BLOCK: tl.constexpr):
    """A tile [pixels, BLOCK] of a map, channels ``first`` on, zero outside and from ``end`` on."""
    channel = first + tl.arange(0, BLOCK)
    places = at[:, None] + (channel * step)[None, :]
    return tl.load(ptr + places, mask=inside[:, None] & (channel < end)[None, :], other=0.0)


@triton.jit
def store_channels(ptr, at, step, inside, first, end, tile):
    """The reverse of :func:`load_channels`, in the type of the map."""
    channel = first + tl.arange(0, tile.shape[1])
    places = at[:, None] + (channel * step)[None, :]
    mask = inside[:, None] & (channel < end)[None, :]
    tl.store(ptr + places, cast(tile, ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_rows(ptr, row, rows, first, end, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A tile [ROWS, BLOCK] of a small matrix, rows ``stride`` apart, from (row, first) on.

    Zero from row ``rows`` and from column ``end`` on.
    """
    i, j = row + tl.arange(0, ROWS), first + tl.arange(0, BLOCK)
    mask = (i < rows)[:, None] & (j < end)[None, :]
    return tl.load(ptr + i[:, None] * stride + j[None, :], mask=mask, other=0.0)


@triton.jit
def cast(x, T: tl.constexpr):
    """``x`` in the type ``T``, rounded to nearest (the interpreter would cut bfloat16 off)."""
    if _INTERPRETED and tl.bfloat16 == T:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(T)


@triton.jit
def dot(a, b, acc):
    """``acc + a b`` on the matrix units, to the last bits of float32 (no TF32).

    A float32 product is made of six of bfloat16, which every matrix unit has; the interpreter
    multiplies float32 as it is.
    """
    if _INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    if a.dtype == tl.float32 and not _INTERPRETED:
        return tl.dot(a, b, acc, input_precision="bf16x6", out_dtype=acc.dtype)
    else:
        return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def dot_slots(rows, matrix, acc):
    """``acc + rows matrix`` where a tile of pixels [N,K] meets the slots' rows [K,C].

    Whole rows would lie in the registers of every warp, in float32 as three of bfloat16 each. With
    many slots they are cut into parts, each a warp's own, and what the parts give is added.
    """
    K: tl.constexpr = rows.shape[1]
    PART: tl.constexpr = 32
    MANY: tl.constexpr = 256 if rows.dtype.primitive_bitwidth == 16 else 64
    if K < MANY:
        return dot(rows, matrix, acc)
    else:
        PARTS: tl.constexpr = K // PART
        some = tl.permute(tl.reshape(rows, [rows.shape[0], PARTS, PART]), [1, 0, 2])
        of = tl.reshape(matrix, [PARTS, PART, matrix.shape[1]])
        zeros = tl.zeros([PARTS, rows.shape[0], matrix.shape[1]], acc.dtype)
        return acc + tl.sum(dot(some, of, zeros), 0)


@triton.jit
def dot_exact(a, b, acc):
    """``acc + a b`` with every product rounded once; on ordinary units, for small matrices."""
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def reciprocal(x):
    """``1 / x``, correctly rounded (Triton's own float32 division is off by up to two units)."""
    if x.dtype == tl.float64:
        return 1.0 / x
    else:
        return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), x)


@triton.jit
def inverse_norm(square):
    """``1 / max(sqrt(square), 1e-12)``, and whether the norm is above 1e-12 (else it is linear)."""
    norm = tl.sqrt(square) if square.dtype == tl.float64 else tl.sqrt_rn(square)
    return reciprocal(tl.maximum(norm, 1e-12)), norm > 1e-12


@triton.jit
def softmax_rows(z):
    """Softmax of every row; an entry of minus infinity gets none."""
    e = tl.exp(z - tl.max(z, 1)[:, None])
    return e * reciprocal(tl.sum(e, 1))[:, None]


@triton.jit
def store_rows(ptr, tile, row, rows, first, end, stride):
    """The reverse of :func:`load_rows`, in the type of the matrix."""
    i, j = row + tl.arange(0, tile.shape[0]), first + tl.arange(0, tile.shape[1])
    mask = (i < rows)[:, None] & (j < end)[None, :]
    places = ptr + i[:, None] * stride + j[None, :]
    tl.store(places, cast(tile, ptr.dtype.element_ty), mask=mask)
