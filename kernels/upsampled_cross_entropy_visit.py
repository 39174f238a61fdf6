"""The visit to the pixels behind :mod:`pinmem.kernels.upsampled_cross_entropy`, and its finish.

A program owns a tile of at most 32x32 output pixels, a lane a column. Walking down, it holds the
two rows of corners around its pixels, already interpolated to its columns, and the gradient to
both: every pixel is visited once, for value and gradient. A finished row of gradients is folded
onto the corners by moving columns between lanes. Corners whose pixels all lie in one tile go
straight to the result; the others leave a share in ``edges`` [tiles, window, K, window] (or classes
last), and the finish adds the shares of a corner in the order of its tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pinmem.kernels.bilinear import (
    as_index,
    cell_of,
    columns_of,
    complete_corners,
    corner_steps,
    fold,
    fold_plan,
    load_corners,
    load_labels,
    multiply_add,
    start_of,
    tiles_of,
    weight_of,
)
from pinmem.kernels.loss_mass import over_mass, scale_of, total_mass, weight_of_label
from pinmem.kernels.maps import cast


@triton.jit
def _store_corners(
    folded,
    scale,
    out,
    edges,
    y,
    first_x,
    complete,
    corner_y,
    window_x,
    step_k,
    step_x,
    h,
    w,
    K: tl.constexpr,
    UPSAMPLES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Put a row of the window's gradients [classes, corners] where they go."""
    from_y, to_y, from_x, to_x = complete
    k = tl.arange(0, folded.shape[0])[:, None]
    slot = tl.arange(0, folded.shape[1])
    x = first_x + slot
    row = y + tl.zeros_like(x)
    here = (slot < window_x) & (x < w) & (row < h)
    direct = UPSAMPLES & (x >= from_x) & (x <= to_x) & (row >= from_y) & (row <= to_y)
    place = out + (y.to(tl.int64) * w + x) * step_x
    # Within a tile's share 32 bits do, and offsets of 64 would cost as many registers again.
    corner_y = corner_y.to(tl.int32)
    if CHANNELS_LAST:
        edge = (corner_y * window_x + slot)[None, :] * K + k
    else:
        edge = (corner_y * K * window_x + slot)[None, :] + k * window_x
    value = cast(folded * scale, out.dtype.element_ty)
    places = place[None, :] + k.to(tl.int64) * step_k
    tl.store(places, value, mask=(here & direct)[None, :] & (k < K))
    tl.store(edges + edge, folded, mask=(here & ~direct)[None, :] & (k < K))


@triton.jit
def visit(
    logits,
    tangent,
    labels,
    class_weight,
    masses,
    grad_loss,
    out,
    edges,
    values,
    h,
    w,
    high,
    wide,
    tiles_y,
    tiles_x,
    window_y,
    window_x,
    mass_count,
    ignore_index,
    K: tl.constexpr,
    ORDER: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    UPSAMPLES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    STEPS: tl.constexpr,
    LANES_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_MASSES: tl.constexpr,
):
    """Order 0: the loss. Order 1: and its gradient. Order 2: the change of both along a tangent."""
    h, w = as_index(h, INDEX), as_index(w, INDEX)
    high, wide = as_index(high, INDEX), as_index(wide, INDEX)
    program = tl.program_id(0)
    first_column = as_index(program % tiles_x * TILE_X, INDEX)
    first_row = as_index(program // tiles_x % tiles_y * TILE_Y, INDEX)
    end_row = tl.minimum(first_row + TILE_Y, high)
    image = (program // tiles_x // tiles_y).to(tl.int64)
    logits += image * K * h * w
    labels += image * high * wide

    k = tl.arange(0, BLOCK_K)[:, None]
    step_k, step_x = corner_steps(h, w, K, CHANNELS_LAST)
    columns = columns_of(first_column, w, wide, TEMPERATURE, ACC, TILE_X, LANES_X)
    inside, first_x, _, _, _ = columns
    column = first_column + tl.arange(0, LANES_X)
    first_y, last_y = cell_of(first_row, h, high), cell_of(end_row - 1, h, high)

    # Labels are read a row ahead: they come from memory, all else from caches.
    ahead = load_labels(labels, first_row.to(tl.int64) * wide + column, inside, ignore_index, K)
    top = load_corners(logits, first_y, columns, step_k, step_x, w, window_x, K, BLOCK_K)
    value = tl.zeros([LANES_X], ACC)
    if ORDER > 0:
        grad_top = tl.zeros([BLOCK_K, LANES_X], ACC)
        out += image * K * h * w
        edges += program.to(tl.int64) * window_y * window_x * K
        folding = fold_plan(first_column, columns, w, wide, TILE_X)
        end_column = tl.minimum(first_column + TILE_X, wide)
        from_y, to_y = complete_corners(first_row, end_row, h, high)
        from_x, to_x = complete_corners(first_column, end_column, w, wide)
        complete = (from_y, to_y, from_x, to_x)
        scale = scale_of(grad_loss, masses, mass_count, ACC, BLOCK_MASSES)
    if ORDER > 1:
        tangent += image * K * h * w
        u_top = load_corners(tangent, first_y, columns, step_k, step_x, w, window_x, K, BLOCK_K)

    first_of_cell = first_row
    for turn_y in range(last_y - first_y + 1):
        y = first_y + turn_y
        below = tl.minimum(y + 1, h - 1)
        bottom = load_corners(logits, below, columns, step_k, step_x, w, window_x, K, BLOCK_K)
        step = bottom - top
        if ORDER > 0:
            grad_bottom = tl.zeros([BLOCK_K, LANES_X], ACC)
        if ORDER > 1:
            u_step = (
                load_corners(tangent, below, columns, step_k, step_x, w, window_x, K, BLOCK_K)
                - u_top
            )
        next_cell = tl.minimum(start_of(y + 1, h, high), end_row)
        for turn in range(next_cell - first_of_cell):
            row = first_of_cell + turn
            label = ahead
            place = tl.minimum(row + 1, end_row - 1).to(tl.int64) * wide + column
            ahead = load_labels(labels, place, inside, ignore_index, K)
            hit = (k == label[None, :]) & (k < K)
            weight = weight_of_label(class_weight, label, ACC)
            down = tl.full([LANES_X], 0.0, ACC) + weight_of(row, y, h, high, ACC)

            z = tl.where(k < K, multiply_add(step, down, top), float("-inf"))
            shift = tl.max(z, 0)
            # Powers of two are what GPUs have a unit for; the shift rides along for free.
            bits = tl.full([LANES_X], 1.4426950408889634, ACC)
            e = tl.exp2(multiply_add(z, bits, (shift * -1.4426950408889634)[None, :]))
            total = tl.sum(e, 0)
            if ORDER < 2:
                chosen = tl.sum(tl.where(hit, z, 0.0), 0)
                loss = 0.6931471805599453 * tl.log2(total) + (shift - chosen)
                value += tl.where(label >= 0, weight * loss, 0.0)
            if ORDER == 1:
                change = tl.where(hit, e - total[None, :], e)
            if ORDER == 2:
                u = multiply_add(u_step, down, u_top)
                mean = tl.sum(e * u, 0) / total
                chosen = tl.sum(tl.where(hit, u, 0.0), 0)
                value += tl.where(label >= 0, weight * (mean - chosen), 0.0)
                change = e * (u - mean[None, :])
            if ORDER > 0:
                lower = weight / total * down
                upper = weight / total - lower
                # Zero from class K on, and known to be: the compiler drops those registers.
                grad_top = tl.where(k < K, multiply_add(change, upper, grad_top), 0.0)
                grad_bottom = tl.where(k < K, multiply_add(change, lower, grad_bottom), 0.0)
        first_of_cell = next_cell
        if ORDER > 0:
            _store_corners(
                fold(grad_top, columns, folding, STEPS), scale, out, edges, y, first_x, complete,
                y - first_y, window_x, step_k, step_x, h, w, K, UPSAMPLES, CHANNELS_LAST,
            )  # fmt: skip
            grad_top = grad_bottom
        top += step
        if ORDER > 1:
            u_top += u_step
    if ORDER > 0:
        _store_corners(
            fold(grad_top, columns, folding, STEPS), scale, out, edges, last_y + 1, first_x,
            complete, last_y + 1 - first_y, window_x, step_k, step_x, h, w, K, UPSAMPLES,
            CHANNELS_LAST,
        )  # fmt: skip
    tl.store(values + program, tl.sum(value, 0))


@triton.jit
def finish(
    edges,
    masses,
    values,
    grad_loss,
    result,
    out,
    h,
    w,
    high,
    wide,
    tiles_y,
    tiles_x,
    window_y,
    window_x,
    span_x,
    mass_count,
    value_count,
    K: tl.constexpr,
    ORDER: tl.constexpr,
    UPSAMPLES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
    BLOCK_MASSES: tl.constexpr,
):
    """Program 0 adds up the value; every other one some corners that several tiles share."""
    h, w = as_index(h, INDEX), as_index(w, INDEX)
    high, wide = as_index(high, INDEX), as_index(wide, INDEX)
    program = tl.program_id(0)
    if program == 0:
        value = tl.zeros([BLOCK_VALUES], tl.float64)
        for first in range(0, value_count, BLOCK_VALUES):
            at = first + tl.arange(0, BLOCK_VALUES)
            value += tl.load(values + at, mask=at < value_count, other=0.0).to(tl.float64)
        mass = total_mass(masses, mass_count, BLOCK_MASSES)
        tl.store(result, cast(over_mass(tl.sum(value, 0), mass), result.dtype.element_ty))
    elif ORDER > 0:
        blocks_k: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
        blocks_x = (w + BLOCK_X - 1) // BLOCK_X
        block = program - 1
        k = (block % blocks_k) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
        x = (block // blocks_k % blocks_x * BLOCK_X).to(INDEX) + tl.arange(0, BLOCK_X)
        y = (block // blocks_k // blocks_x % h).to(INDEX)
        image = (block // blocks_k // blocks_x // h).to(tl.int64)
        first_x, last_x = tiles_of(x, w, wide, TILE_X)
        first_y, last_y = tiles_of(y, h, high, TILE_Y)
        several = (last_x - first_x) + (last_y - first_y) > 0
        shared = (x < w) & (several | (not UPSAMPLES))
        added = tl.zeros([BLOCK_K, BLOCK_X], ACC)
        for tile_y in range(first_y, last_y + 1):
            corner_y = y - cell_of(tile_y * TILE_Y, h, high) + tl.zeros_like(x)
            for turn in range(span_x):
                tile_x = first_x + turn
                corner_x = x - cell_of(tile_x * TILE_X, w, wide)
                met = shared & (tile_x <= last_x) & (corner_x >= 0) & (corner_x < window_x)
                met &= (corner_y >= 0) & (corner_y < window_y)
                tile = ((image * tiles_y + tile_y) * tiles_x + tile_x) * window_y + corner_y
                if CHANNELS_LAST:
                    place = (tile * window_x + corner_x)[None, :] * K + k
                else:
                    place = (tile[None, :] * K + k) * window_x + corner_x[None, :]
                added += tl.load(edges + place, mask=met[None, :] & (k < K), other=0.0)
        if CHANNELS_LAST:
            place = ((image * h + y) * w + x)[None, :] * K + k
        else:
            place = ((image * K + k) * h + y) * w + x[None, :]
        added *= scale_of(grad_loss, masses, mass_count, ACC, BLOCK_MASSES)
        scaled = cast(added, out.dtype.element_ty)
        tl.store(out + place, scaled, mask=shared[None, :] & (k < K))
