"""The gradient of a projection's weight, a product over all pixels, beside the pixels' own work.

The query's half of it, ``sum_n D^T q`` [O,C] (docs/math.md 1), fits no program's registers. So it
is cut into tiles, and as many programs as there are tiles share a chunk of the pixels: in a turn
each does the pixels' work for one block, and adds all the turn's blocks to its tile. Their work is
equal, so they stay together, and what one of them fetches the others find in the L2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pinmem.kernels.maps import (
    cast,
    dot,
    inverse_norm,
    load_channels,
    padded,
    run_offsets,
)
from pinmem.kernels.partials import MOST_SHARES, add_share, share_out
from torch import Tensor

from pinmem.ops._maps import accumulator


@triton.jit
def add_blocks(
    weight_shares,
    grad_projected,
    query,
    gg_query,
    chunk,
    part,
    turn,
    steps,
    pixels,
    blocks,
    total,
    C: tl.constexpr,
    OUT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    TILE_O: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """Add a turn's ``PARTS`` blocks of ``D^T q`` to the chunk's share [O,C], in this part's tile.

    Along ``gg_query`` of ``D^T q_1``, with q's derivative.
    """
    TILES_C: tl.constexpr = (C + TILE_C - 1) // TILE_C
    T: tl.constexpr = query.dtype.element_ty
    o, c = part // TILES_C * TILE_O, part % TILES_C * TILE_C
    dw = tl.zeros([TILE_O, TILE_C], ACC)
    # Few pixels at a time: all channels of them are in registers at once.
    PIECE: tl.constexpr = min(16, BLOCK_N)
    PIECES: tl.constexpr = BLOCK_N // PIECE
    for other in tl.range(PARTS * PIECES, disable_licm=True):
        index = (chunk * steps + turn) * PARTS + other // PIECES
        first = (index % blocks).to(tl.int64) * BLOCK_N + other % PIECES * PIECE
        inside = first + tl.arange(0, PIECE) < tl.where(index < total, pixels, 0)
        at, step = run_offsets(index // blocks, first, C, pixels, CHANNELS_LAST, PIECE)
        at_o, step_o = run_offsets(index // blocks, first, OUT, pixels, CHANNELS_LAST, PIECE)
        d = load_channels(grad_projected, at_o, step_o, inside, o, OUT, TILE_O)
        x = load_channels(query, at, step, inside, c, C, TILE_C).to(ACC)
        x_x = tl.sum(x * x, 1)
        if gg_query is not None:
            v = load_channels(gg_query, at, step, inside, c, C, TILE_C).to(ACC)
            x_v = tl.sum(x * v, 1)
        for next_tile in range(1, TILES_C):
            at_c = (c + next_tile * TILE_C) % (TILES_C * TILE_C)
            y = load_channels(query, at, step, inside, at_c, C, TILE_C).to(ACC)
            x_x += tl.sum(y * y, 1)
            if gg_query is not None:
                u = load_channels(gg_query, at, step, inside, at_c, C, TILE_C).to(ACC)
                x_v += tl.sum(y * u, 1)
        r, curved = inverse_norm(x_x)
        q = x * r[:, None]
        if gg_query is not None:
            q = (v - q * tl.where(curved, x_v * r, 0.0)[:, None]) * r[:, None]
        dw = dot(tl.trans(d), cast(q, T), dw)
    share = weight_shares + chunk.to(tl.int64) * (OUT * C)
    add_share(share, dw, o, c, OUT, C, turn)


def tile_config(query: Tensor, weight: Tensor | None = None) -> dict[str, int]:
    """Compile-time arguments: the tiles of dW, and how many programs share a chunk."""
    if weight is None:
        return {"PARTS": 1, "TILE_O": 16, "TILE_C": 16}
    outputs, channels = weight.shape[0], query.shape[1]
    most_c = 32 if query.element_size() == 8 else 256
    most_o = 16 if channels > 1024 else 32  # the sums over all their tiles take registers too
    tile_o, tile_c = min(padded(outputs), most_o), min(padded(channels), most_c)
    parts = triton.cdiv(outputs, tile_o) * triton.cdiv(channels, tile_c)
    return {"PARTS": parts, "TILE_O": tile_o, "TILE_C": tile_c}


def chunked_shares(
    blocks: int, numel: int, tile: dict[str, int], like: Tensor, weight: Tensor | None
) -> tuple[int, int, Tensor, Tensor | None]:
    """How pixels are shared out, and room for the sums: ``numel`` a program, half of dW a chunk.

    Returns the turns of a program, the programs, and both kinds of shares; without ``weight`` only
    the first.
    """
    parts, half = tile["PARTS"], 0 if weight is None else weight.numel() // 2
    turns = triton.cdiv(blocks, parts)
    kind = accumulator(like.dtype)
    size = (parts * numel + half) * kind.itemsize
    steps, chunks = share_out(turns, size, max(1, MOST_SHARES // parts))
    shares = like.new_empty((chunks * parts, numel), dtype=kind)
    return (
        steps,
        chunks * parts,
        shares,
        like.new_empty((chunks, half), dtype=kind) if half else None,
    )
