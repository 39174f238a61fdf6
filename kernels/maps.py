"""What the kernels share: how a map lies in memory, loads, dots and small formulas.

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

from pinmem.kernels.launch import Plan

# Triton's interpreter multiplies the bit patterns of bfloat16, so there a dot is done in float32.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")

# Of these sizes nothing is compiled in; of the others, whether they are 1 or 16 divides them.
jit = triton.jit(do_not_specialize=["blocks", "total", "steps", "count"])


class Layout(NamedTuple):
    """What a plan depends on: a map [B,C,h,w] as runs of pixels, cut into blocks within a run."""

    shape: torch.Size
    dtype: torch.dtype
    channels_last: bool

    @property
    def runs(self) -> tuple[int, int]:
        """How many runs, and pixels per run."""
        batch, _, height, width = self.shape
        return (1, batch * height * width) if self.channels_last else (batch, height * width)

    def sizes(self, block: int) -> tuple[int, int, int]:
        """Pixels per run, blocks of ``block`` pixels per run, and blocks of the whole map."""
        images, pixels = self.runs
        blocks = -(-pixels // block)
        return pixels, max(blocks, 1), images * blocks

    def new_map(self, channels: int, like: Tensor) -> Tensor:
        """An uninitialised map that lies as this one does."""
        batch, _, height, width = self.shape
        if not self.channels_last:
            return like.new_empty((batch, channels, height, width))
        strides = (height * width * channels, 1, width * channels, channels)
        return like.new_empty_strided((batch, channels, height, width), strides)

    def of(
        self, table: dict[int, list[tuple[int, ...]]], slots: int, wide: str = ""
    ) -> tuple[int, ...]:
        """Block sizes out of a table by bytes per element: for up to 32 slots, and for more.

        Products of six with the weight (``wide``) take as many registers as more slots do.
        """
        rows = table[self.dtype.itemsize]
        return rows[0] if slots <= 32 and wide != "bf16x6" else rows[-1]


def plan_of(
    kernel: Any, layout: Layout, slots: int, programs: int, sizes: tuple[int, ...],
    block_n: int, warps: int, stages: int, products: str, **more: Any,
) -> Plan:  # fmt: skip
    """A plan of a kernel whose constants begin with those that all have in common."""
    return Plan(
        kernel, programs, sizes, warps, stages,
        K=slots, CHANNELS_LAST=layout.channels_last, BLOCK_N=block_n, BLOCK_K=padded(slots),
        PRECISION=products, **more,
    )  # fmt: skip


def layout_of(query: Tensor) -> Layout:
    """The layout of a dense map; every map of one call lies as the first does."""
    shape = query.shape
    # A 1x1 map lies alike in both formats; as one long run it fills blocks.
    single = shape[2] * shape[3] == 1
    return Layout(shape, query.dtype, single or not query.is_contiguous())


def as_type(matrix: Tensor, query: Tensor) -> Tensor:
    """A small matrix in the maps' type; a copy only where it is of another."""
    return matrix if matrix.dtype == query.dtype else matrix.to(query.dtype)


def padded(size: int, least: int = 16) -> int:
    """The power of two that holds ``size``; at least 16, which every matrix unit takes."""
    return max(least, 1 << (size - 1).bit_length())


def products_of(query: Tensor, convolution: bool = False) -> str:
    """The input precision of dots of the maps: TF32 for float32 where PyTorch's own would be.

    Otherwise a float32 product is made of six of bfloat16, which every matrix unit has.
    """
    if query.dtype != torch.float32:
        return "ieee"
    settings = torch.backends.cudnn.conv if convolution else torch.backends.cuda.matmul
    return "tf32" if settings.fp32_precision == "tf32" else "bf16x6"


def both_products(query: Tensor) -> tuple[str, str]:
    """As :func:`products_of`: for the reading, and for its projection, which is a convolution."""
    return products_of(query), products_of(query, convolution=True)


@triton.jit
def pixel_block(index, blocks, total, pixels, BLOCK: tl.constexpr):
    """Block ``index`` of ``total``, ``blocks`` per run: its run, first pixel, and who is inside."""
    first = (index % blocks).to(tl.int64) * BLOCK
    end = tl.where(index < total, pixels, 0)
    return index // blocks, first, first + tl.arange(0, BLOCK) < end


@triton.jit
def run_offsets(
    image, first, channels, pixels, CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Where ``BLOCK`` pixels of a run lie, from pixel ``first`` on, in a map of ``channels``.

    Returns the offsets of their channel 0 [BLOCK] and the step from channel to channel.
    """
    base = image.to(tl.int64) * pixels * channels
    pixel = first + tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        return base + pixel * channels, tl.full((), 1, tl.int64)
    else:
        return base + pixel, tl.full((), 1, tl.int64) * pixels


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
def add_rows(ptr, tile, row, rows, first, end, stride, more):
    """Write a tile at (row, first) of a float32 matrix; where ``more``, add to what is there."""
    i, j = row + tl.arange(0, tile.shape[0]), first + tl.arange(0, tile.shape[1])
    mask = (i < rows)[:, None] & (j < end)[None, :]
    places = ptr + i[:, None] * stride + j[None, :]
    before = tl.load(places, mask=mask & more, other=0.0)
    tl.store(places, before + tile, mask=mask)
    # The next time other threads may read what these have written.
    tl.debug_barrier()


@triton.jit
def cast(x, T: tl.constexpr):
    """``x`` in the type ``T``, rounded to nearest (the interpreter would cut bfloat16 off)."""
    if _INTERPRETED and tl.bfloat16 == T:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(T)


@triton.jit
def _to_tf32(x):
    """Float32 rounded to TF32's eleven bits, which the matrix units themselves would cut off to."""
    bits = x.to(tl.uint32, bitcast=True) + 0x1000
    return (bits & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a b`` on the matrix units, summed in float32."""
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    elif PRECISION == "tf32" and a.dtype == tl.float32:
        return tl.dot(_to_tf32(a), _to_tf32(b), acc, input_precision=PRECISION)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def add_products(added, x, y):
    """``added`` and the products of two tiles; their sums over channels where it has one column."""
    products = x.to(tl.float32) * y.to(tl.float32)
    if added.shape[1] == 1:
        return added + tl.sum(products, 1)[:, None]
    else:
        return added + products


@triton.jit
def sum_squares(x):
    """Of every row [N,C], float32."""
    y = x.to(tl.float32)
    if _INTERPRETED:
        return tl.sum(y * y, 1)
    else:
        # With one conversion to float32, Triton would bring all of x into the layout in which the
        # sum is used, where several threads may hold each element; past two it does not move it.
        return -tl.sum(y * (-x).to(tl.float32), 1)


@triton.jit
def inverse_norm(square):
    """``1 / max(sqrt(square), 1e-12)``, and whether the norm is above 1e-12 (else it is linear).

    Correctly rounded: Triton's own square root and division are off by up to two units.
    """
    norm = tl.sqrt_rn(square)
    one = tl.full(square.shape, 1.0, tl.float32)
    return tl.div_rn(one, tl.maximum(norm, 1e-12, tl.PropagateNan.ALL)), norm > 1e-12


@triton.jit
def softmax(scores, gumbel, at, step, inside, K: tl.constexpr):
    """``softmax(scores + gumbel)`` over the first ``K`` columns; the others get none."""
    if gumbel is not None:
        noise = load_channels(gumbel, at, step, inside, 0, K, scores.shape[1])
        scores += noise.to(tl.float32)
    slot = tl.arange(0, scores.shape[1])
    scores = tl.where((slot < K)[None, :], scores, float("-inf"))
    e = tl.exp(scores - tl.max(scores, 1)[:, None])
    total = tl.sum(e, 1)
    return e * tl.div_rn(tl.full(total.shape, 1.0, tl.float32), total)[:, None]
