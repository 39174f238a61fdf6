"""The gradient of a projection's weight: a matrix product over all pixels (docs/math.md 1)."""

from __future__ import annotations

import triton
import triton.language as tl
from pinmem.kernels.launch import launch
from pinmem.kernels.maps import (
    accumulator,
    cast,
    dot,
    load_channels,
    padded,
    pixel_block,
    run_offsets,
    runs_of,
    store_rows,
)
from pinmem.kernels.partials import new_shares
from torch import Tensor


@triton.jit
def _weight_shares(
    grad_projected,
    first_map,
    first_scale,
    second_map,
    second_scale,
    shares,
    pixels,
    blocks,
    total,
    steps,
    C: tl.constexpr,
    OUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A program's share of one tile of ``sum_n D^T (scale map [+ scale map])`` [O,C]."""
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    TILES_O: tl.constexpr = (OUT + BLOCK_O - 1) // BLOCK_O
    part = tl.program_id(0) // (TILES_C * TILES_O)
    o = tl.program_id(0) // TILES_C % TILES_O * BLOCK_O
    c = tl.program_id(0) % TILES_C * BLOCK_C
    T: tl.constexpr = grad_projected.dtype.element_ty
    dw = tl.zeros([BLOCK_O, BLOCK_C], ACC)
    for turn in range(steps):
        index = part * steps + turn
        image, first, inside = pixel_block(index, blocks, total, pixels, BLOCK_N)
        at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
        at_o, step_o = run_offsets(image, first, OUT, pixels, CHANNELS_LAST, BLOCK_N)
        at_1, _ = run_offsets(image, first, 1, pixels, CHANNELS_LAST, BLOCK_N)
        d = load_channels(grad_projected, at_o, step_o, inside, o, OUT, BLOCK_O)
        scale = tl.load(first_scale + at_1, mask=inside, other=0.0)
        q = load_channels(first_map, at, step, inside, c, C, BLOCK_C).to(ACC) * scale[:, None]
        if second_map is not None:
            scale = tl.load(second_scale + at_1, mask=inside, other=0.0)
            q += load_channels(second_map, at, step, inside, c, C, BLOCK_C).to(ACC) * scale[:, None]
        dw = dot(tl.trans(d), cast(q, T), dw)
    store_rows(shares + part.to(tl.int64) * (OUT * C), dw, o, OUT, c, C, C)


def weight_shares(
    grad_projected: Tensor,
    first_map: Tensor,
    first_scale: Tensor,
    second_map: Tensor | None = None,
    second_scale: Tensor | None = None,
) -> Tensor:
    """Shares [programs, O*C] of ``sum_n D^T (scale map [+ scale map])``; a scale is [N]."""
    outputs, channels = grad_projected.shape[1], first_map.shape[1]
    size = first_map.element_size()
    most = 128 if size == 2 else 64
    block_n = 64 if size == 2 else 16
    block_o, block_c = min(padded(outputs), most), min(padded(channels), most)
    tiles = triton.cdiv(outputs, block_o) * triton.cdiv(channels, block_c)
    runs = runs_of(first_map)
    pixels, blocks, total = runs.split(block_n)
    # About 256 programs fill a GPU; more would only write more shares.
    steps, programs, shares = new_shares(total, outputs * channels, first_map, max(1, 256 // tiles))
    inputs = (grad_projected, first_map, first_scale, second_map, second_scale)
    launch(
        _weight_shares,
        programs * tiles,
        *inputs,
        shares,
        pixels,
        blocks,
        total,
        steps,
        C=channels,
        OUT=outputs,
        CHANNELS_LAST=runs.channels_last,
        ACC=accumulator(first_map.dtype),
        BLOCK_N=block_n,
        BLOCK_O=block_o,
        BLOCK_C=block_c,
        num_warps=8 if size == 2 else 4,
        num_stages=2,
    )
    return shares
