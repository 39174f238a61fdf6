"""Triton kernels for :func:`pinmem.ops.class_sums` (docs/math.md 3).

A program owns blocks of feature pixels. A pixel reads four labels; its soft one-hot vector times
its normalised features is a small matrix product, summed over the program's blocks into its share
of the sums, and a second launch adds the shares in order. Cotangents of the sums are gathered by
label, four rows a pixel, so that backward costs the same for any number of classes: one launch.
Second order is two, as forward. Features are read once where all channels fit a tile, else twice,
the second time from a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from pinmem.kernels.launch import CompileCase, launch, recording
from pinmem.kernels.maps import (
    accumulator,
    inverse_norm,
    load_channels,
    padded,
    pixel_block,
    run_offsets,
    runs_of,
    store_channels,
)
from pinmem.kernels.partials import add_share, add_shares, new_shares
from pinmem.kernels.soft_labels import gather_rows, one_hot, soft_labels
from torch import Tensor

from pinmem.backends import triton_interpreted


@triton.jit
def _sum(
    features,
    tangent,
    grad_sums,
    labels,
    grad_features,
    shares,
    mass_shares,
    pixels,
    blocks,
    total_blocks,
    steps,
    h,
    w,
    high,
    wide,
    ignore_index,
    C: tl.constexpr,
    K: tl.constexpr,
    ORDER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Order 0: sums and mass. Order 1: the gradient. Order 2: the change of sums and gradient."""
    TILES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    SUMS: tl.constexpr = ORDER != 1
    if SUMS:
        shares += tl.program_id(0).to(tl.int64) * (K * C)
        sums = tl.zeros([BLOCK_K, BLOCK_C], ACC)
        mass = tl.zeros([BLOCK_K], ACC)
    for turn in range(steps):
        index = tl.program_id(0) * steps + turn
        image, first, inside = pixel_block(index, blocks, total_blocks, pixels, BLOCK_N)
        pixel = first + tl.arange(0, BLOCK_N)
        at, step = run_offsets(image, first, C, pixels, CHANNELS_LAST, BLOCK_N)
        label, weight = soft_labels(
            labels, image, pixel, inside, h, w, high, wide, ignore_index, K, CHANNELS_LAST, INDEX,
            ACC,
        )  # fmt: skip
        # For an A100 order 2 spills where this comes later, order 0 where it comes here.
        if ORDER == 2:
            soft = one_hot(label, weight, ACC, BLOCK_K)

        x = load_channels(features, at, step, inside, 0, C, BLOCK_C).to(ACC)
        square = tl.sum(x * x, 1)
        if ORDER > 0:
            e = gather_rows(grad_sums, label, weight, 0, C, BLOCK_C)
            x_e = tl.sum(x * e, 1)
        if ORDER > 1:
            v = load_channels(tangent, at, step, inside, 0, C, BLOCK_C).to(ACC)
            x_v, v_e = tl.sum(x * v, 1), tl.sum(v * e, 1)
        for tile in range(1, TILES):
            x = load_channels(features, at, step, inside, tile * BLOCK_C, C, BLOCK_C).to(ACC)
            square += tl.sum(x * x, 1)
            if ORDER > 0:
                e = gather_rows(grad_sums, label, weight, tile * BLOCK_C, C, BLOCK_C)
                x_e += tl.sum(x * e, 1)
            if ORDER > 1:
                v = load_channels(tangent, at, step, inside, tile * BLOCK_C, C, BLOCK_C).to(ACC)
                x_v += tl.sum(x * v, 1)
                v_e += tl.sum(v * e, 1)
        r, curved = inverse_norm(square)
        if ORDER > 0:
            q_e = tl.where(curved, x_e * r, 0.0)
        if ORDER > 1:
            q_v = tl.where(curved, x_v * r, 0.0)
            along_q = 3.0 * q_v * q_e - tl.where(curved, v_e, 0.0)
        if ORDER == 0:
            soft = one_hot(label, weight, ACC, BLOCK_K)
            mass += tl.sum(soft, 1)

        for tile in range(TILES):
            start = tile * BLOCK_C
            if TILES > 1:
                x = load_channels(features, at, step, inside, start, C, BLOCK_C).to(ACC)
                if ORDER > 0:
                    e = gather_rows(grad_sums, label, weight, start, C, BLOCK_C)
                if ORDER > 1:
                    v = load_channels(tangent, at, step, inside, start, C, BLOCK_C).to(ACC)
            q = x * r[:, None]
            if ORDER == 1:
                change = r[:, None] * (e - q * q_e[:, None])
            if ORDER == 2:
                change = q * along_q[:, None] - e * q_v[:, None] - v * q_e[:, None]
                change *= (r * r)[:, None]
                q = r[:, None] * (v - q * q_v[:, None])
            if ORDER > 0:
                store_channels(grad_features, at, step, inside, start, C, change)
            if SUMS and TILES == 1:
                sums = tl.dot(soft, q, sums, input_precision=PRECISION, out_dtype=ACC)
            if SUMS and TILES > 1:
                sums = tl.dot(
                    soft, q, tl.zeros_like(sums), input_precision=PRECISION, out_dtype=ACC
                )
                add_share(shares, sums, 0, start, K, C, turn)
    if SUMS and TILES == 1:
        add_share(shares, sums, 0, 0, K, C, 0)
    if mass_shares is not None:
        k = tl.arange(0, BLOCK_K)
        tl.store(mass_shares + tl.program_id(0).to(tl.int64) * K + k, mass, mask=k < K)


def _config(order: int, features: Tensor, labels: Tensor, num_classes: int) -> dict[str, Any]:
    """Compile-time arguments: tiles of at most 16 features and 64 sums a thread, 32 in order 2."""
    channels, block_k = features.shape[1], padded(num_classes)
    (h, w), (high, wide) = features.shape[2:], labels.shape[1:]
    sums = 1 if order == 1 else block_k
    room = 16384 if order == 0 else 8192
    if features.dtype == torch.float32 and sums > 32:
        room = 4096  # an operand of its products is three of bfloat16
    crowded = order == 2 and sums > 128 and features.element_size() == 2
    if crowded:
        room = 4096
    widest = min(256, room // sums)
    channels_last = runs_of(features).channels_last
    if channels > widest and not channels_last:
        # Pointers to channels far apart fill registers, as does a tile of sums on its way out.
        widest = min(widest, 128)
    if features.dtype == torch.float64:
        widest = max(8, widest // (8 if order == 2 else 4))
    block_c = min(padded(channels), widest)
    index = tl.int32 if max((h + 1) * high, (w + 1) * wide) < 2**31 else tl.int64
    return {
        "C": channels,
        "K": num_classes,
        "ORDER": order,
        "CHANNELS_LAST": channels_last,
        "INDEX": index,
        "ACC": accumulator(features.dtype),
        "PRECISION": _precision(features.dtype),
        "BLOCK_N": 16,
        "BLOCK_C": block_c,
        "BLOCK_K": block_k,
        "num_warps": 8 if block_c > 64 or sums * block_c >= 2048 else 4,
        # Where features are read once they are fetched two blocks ahead; 64-bit coordinates
        # leave fewer registers for it.
        "num_stages": (3 if index == tl.int32 else 2) if order == 0 and channels <= block_c else 1,
        "maxnreg": 255 if crowded or index == tl.int64 else None,
    }


def _precision(dtype: torch.dtype) -> str:
    """How a float32 product is made of bfloat16 ones, which every matrix unit has.

    Features of at most 11 bits are worth three products, 2**-16; others six, all of float32.
    """
    # The interpreter multiplies float32 as it is.
    if dtype == torch.float64 or triton_interpreted():
        return "ieee"
    return "bf16x6" if dtype == torch.float32 else "bf16x3"


def _run(
    order: int,
    features: Tensor,
    tangent: Tensor | None,
    grad_sums: Tensor | None,
    labels: Tensor,
    num_classes: int,
    ignore_index: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``sums`` and ``mass`` (orders 0 and 2), and the gradient of the features (1 and 2)."""
    channels, (h, w) = features.shape[1], features.shape[2:]
    config = _config(order, features, labels, num_classes)
    pixels, per_run, blocks = runs_of(features).split(config["BLOCK_N"])
    gradient = torch.empty_like(features) if order else None
    steps, programs, shares, mass_shares = 1, blocks, None, None
    if order != 1:
        numel = num_classes * channels
        steps, programs, shares = new_shares(blocks, numel, features)
    if order == 0:
        mass_shares = shares.new_empty((programs, num_classes))
    inputs, outputs = (features, tangent, grad_sums, labels), (gradient, shares, mass_shares)
    sizes = (pixels, per_run, blocks, steps, h, w, *labels.shape[1:])
    launch(_sum, programs, *inputs, *outputs, *sizes, ignore_index, **config)
    if shares is None:
        return None, None, gradient
    sums = shares.new_empty((num_classes, channels))
    if mass_shares is None:
        add_shares(shares, sums)
        return sums, None, gradient
    mass = shares.new_empty((num_classes,))
    add_shares(shares, sums, mass_shares, mass[:, None])
    return sums, mass, gradient


def class_sums(
    features: Tensor, labels: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Forward, two launches."""
    sums, mass, _ = _run(0, features, None, None, labels, num_classes, ignore_index)
    assert sums is not None and mass is not None
    return sums, mass


def class_sums_backward(
    grad_sums: Tensor, features: Tensor, labels: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    """Backward, one launch."""
    _, _, gradient = _run(1, features, None, grad_sums, labels, num_classes, ignore_index)
    assert gradient is not None
    return gradient


def class_sums_double_backward(
    gg_features: Tensor,
    grad_sums: Tensor,
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """The changes of sums and gradient along ``gg_features``, two launches."""
    gg_sums, _, gradient = _run(
        2, features, gg_features, grad_sums, labels, num_classes, ignore_index
    )
    assert gg_sums is not None and gradient is not None
    return gg_sums, gradient


def compile_cases() -> Iterator[CompileCase]:
    """Every kernel in every configuration that ``auto`` can choose."""
    shapes = [(dtype, 19, 256, 48) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
    # Every block of classes at its fullest and part empty; channels in several tiles; coordinates
    # of 64 bits.
    floats, full = (torch.float32, torch.float64), (32, 64, 128, 256)
    shapes += [(dtype, k, 256, 48) for dtype in floats for k in full]
    shapes += [(torch.bfloat16, 256, 256, 48), (torch.float16, 19, 2048, 48)]
    shapes += [(dtype, k, 768, 48) for dtype in (torch.bfloat16, torch.float32) for k in (65, 150)]
    shapes += [(torch.float32, 2, 5, 48), (torch.float32, 19, 256, 1 << 16)]
    for dtype, num_classes, channels, size in shapes:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            last = memory_format == torch.channels_last
            if last and num_classes in full:
                continue
            features = torch.empty((2, channels, size, size), dtype=dtype, device="meta")
            features = features.contiguous(memory_format=memory_format)
            kind = torch.int64 if dtype == torch.float64 else torch.uint8
            labels = torch.empty((2, 16 * size, 16 * size), dtype=kind, device="meta")
            name = f"{str(dtype).removeprefix('torch.')} K={num_classes} C={channels}"
            label = f"{name} channels_last" if last else name
            typical = (dtype, num_classes, size) == (torch.bfloat16, 19, 48)
            with recording(label, typical) as cases:
                sums, _ = class_sums(features, labels, num_classes, 255)
                class_sums_backward(sums, features, labels, num_classes, 255)
                class_sums_double_backward(features, sums, features, labels, num_classes, 255)
            yield from cases
