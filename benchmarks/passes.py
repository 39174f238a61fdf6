"""Every pass of every op as the Triton kernels run it, with the arithmetic it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.plan import PROJECTED, Size
from benchmarks.traffic import meta

# Name, call, inputs, and operations: of matrix products, others, exponentials.
Pass = tuple[str, Callable[[], Any], list[Tensor], float, float, float]


def run_quietly(run: Callable[[], Any]) -> tuple[Tensor, ...]:
    """The results of a pass, with nothing launched."""
    from pinmem.kernels.launch import recording

    with recording(""):
        results = run()
    return results if isinstance(results, tuple) else (results,)


def _memory_read(size: Size, dtype: torch.dtype) -> list[Pass]:
    from pinmem.kernels import memory_read as kernels

    k, c, n = size.classes, size.channels, size.pixels(size.output_stride)
    x, m = _map(size, c, dtype), meta(k, c, dtype=dtype)
    dr, ds = _map(size, 2 * c, dtype), _map(size, k, dtype)
    product, maps = 2 * n * k * c, n * c
    return [
        ("forward", lambda: kernels.memory_read(x, m, None), [x, m], 2 * product, 3 * maps, n * k),
        (
            "backward",
            lambda: kernels.memory_read_backward(dr, ds, x, m, None, True, True),
            [dr, ds, x, m], 5 * product, 8 * maps, n * k,
        ),
        (
            "second order",
            lambda: kernels.memory_read_double_backward(x2, m2, dr, ds, x, m, None),
            [x2 := torch.empty_like(x), m2 := torch.empty_like(m), dr, ds, x, m],
            13 * product, 20 * maps, n * k,
        ),
    ]  # fmt: skip


def _memory_read_project(size: Size, dtype: torch.dtype) -> list[Pass]:
    from pinmem.kernels import memory_read_project as kernels

    k, c, o, n = size.classes, size.channels, PROJECTED, size.pixels(size.output_stride)
    x, m, w = _map(size, c, dtype), meta(k, c, dtype=dtype), meta(o, 2 * c, dtype=dtype)
    dp, ds = _map(size, o, dtype), _map(size, k, dtype)
    x2, m2, w2 = map(torch.empty_like, (x, m, w))
    kc, ko, oc, maps = 2 * n * k * c, 2 * n * k * o, 2 * n * o * c, n * c
    return [
        (
            "forward",
            lambda: kernels.memory_read_project(x, m, w, None),
            [x, m, w], kc + ko + oc, 2 * maps, n * k,
        ),
        (
            "backward",
            lambda: kernels.memory_read_project_backward(
                dp, ds, x, m, w, None, True, True, True
            ),
            [dp, ds, x, m, w], 3 * kc + 2 * ko + 2 * oc, 8 * maps, n * k,
        ),
        (
            "second order",
            lambda: kernels.memory_read_project_double_backward(
                x2, m2, w2, dp, ds, x, m, w, None
            ),
            [x2, m2, w2, dp, ds, x, m, w], 8 * kc + 6 * ko + 5 * oc, 20 * maps, n * k,
        ),
    ]  # fmt: skip


def _upsampled_cross_entropy(size: Size, dtype: torch.dtype) -> list[Pass]:
    from pinmem.kernels import upsampled_cross_entropy as kernels

    k, n = size.classes, size.pixels(1)
    logits = meta(size.batch, k, *size.at(4), dtype=dtype)
    target = meta(size.batch, size.height, size.width, dtype=torch.uint8)
    unit, loss = torch.empty_like(logits, dtype=torch.float32), meta(dtype=torch.float32)
    loss_of = kernels.upsampled_cross_entropy
    # A pixel's classes, and the logarithm and reciprocal of their sum.
    units = n * (k + 2)
    return [
        (
            "forward", lambda: loss_of(logits, target, None, 1.0, 255, False),
            [logits, target], 0, 6 * n * k, units,
        ),
        (
            "forward with gradient", lambda: loss_of(logits, target, None, 1.0, 255, True),
            [logits, target], 0, 11 * n * k, units,
        ),
        (
            "backward",
            lambda: kernels.upsampled_cross_entropy_backward(
                loss, unit, logits, target, None, 1.0, 255
            ),
            [loss, unit], 0, logits.numel(), 0,
        ),
        (
            "second order",
            lambda: kernels.upsampled_cross_entropy_double_backward(
                logits2, loss, unit, logits, target, None, 1.0, 255
            ),
            [logits2 := torch.empty_like(logits), loss, logits, target], 0, 17 * n * k, units,
        ),
    ]  # fmt: skip


def _class_sums(size: Size, dtype: torch.dtype) -> list[Pass]:
    from pinmem.kernels import class_sums as kernels

    k, c, n = size.classes, size.channels, size.pixels(size.output_stride)
    x, x2 = _map(size, c, dtype), _map(size, c, dtype)
    labels = meta(size.batch, size.height, size.width, dtype=torch.uint8)
    sums, maps = meta(k, c, dtype=torch.float32), n * c
    return [
        ("forward", lambda: kernels.class_sums(x, labels, k, 255), [x, labels], 0, 5 * maps, 0),
        (
            "backward", lambda: kernels.class_sums_backward(sums, x, labels, k, 255),
            [sums, x, labels], 0, 14 * maps, 0,
        ),
        (
            "second order",
            lambda: kernels.class_sums_double_backward(x2, sums, x, labels, k, 255),
            [x2, sums, x, labels], 0, 30 * maps, 0,
        ),
    ]  # fmt: skip


def _memory_update(size: Size, dtype: torch.dtype) -> list[Pass]:
    from pinmem.kernels import memory_update as kernels

    k, c = size.classes, size.channels
    # It always runs in float32.
    matrices = [meta(k, c, dtype=torch.float32) for _ in range(7)]
    vectors = [meta(k, dtype=torch.float32) for _ in range(4)]
    scalar, scalar2 = meta(dtype=torch.float32), meta(dtype=torch.float32)
    state = [matrices[0], matrices[1], vectors[0], matrices[2], vectors[1]]
    along = [matrices[3], matrices[4], vectors[2], matrices[5], vectors[3]]
    grads = [matrices[6], scalar, scalar2]
    product = 2 * k * k * c
    return [
        (
            "forward", lambda: kernels.memory_update(*state, 0.8),
            state, 2 * product, 8 * k * c, k * k,
        ),
        (
            "backward", lambda: kernels.memory_update_backward(*grads, *state, 0.8),
            [*grads, *state], 5 * product, 16 * k * c, k * k,
        ),
        (
            "second order",
            lambda: kernels.memory_update_double_backward(*along, *grads, *state, 0.8),
            [*along, *grads, *state], 13 * product, 40 * k * c, k * k,
        ),
    ]  # fmt: skip


def _upsampled_confusion(size: Size, dtype: torch.dtype) -> list[Pass]:
    from pinmem.kernels import upsampled_confusion as kernels

    k, n = size.classes, size.pixels(1)
    logits = meta(size.batch, k, *size.at(4), dtype=dtype)
    target = meta(size.batch, size.height, size.width, dtype=torch.uint8)
    run = lambda: kernels.upsampled_confusion(logits, target, 255)  # noqa: E731
    return [("forward", run, [logits, target], 0, 5 * n * k, 0)]


OPS: dict[str, Callable[[Size, torch.dtype], list[Pass]]] = {
    "memory_read": _memory_read,
    "memory_read_project": _memory_read_project,
    "upsampled_cross_entropy": _upsampled_cross_entropy,
    "class_sums": _class_sums,
    "memory_update": _memory_update,
    "upsampled_confusion": _upsampled_confusion,
}


def _map(size: Size, depth: int, dtype: torch.dtype) -> Tensor:
    return meta(size.batch, depth, *size.at(size.output_stride), dtype=dtype)
