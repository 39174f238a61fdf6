"""Block sizes of the two reading ops: one small table, chosen by shape and type alone.

What bounds a block are registers: rows of pixels x slots (about four of them in forward, a dozen
in second order) beside a tile of channels. Operands of float32 dots are three of bfloat16, hence
the smaller tiles. ``python -m benchmarks --compile-report`` prints what becomes of each.
"""

from __future__ import annotations

from typing import Any

from pinmem.kernels.maps import accumulator, padded, runs_of
from torch import Tensor

# bytes an element -> pass -> for at most 32, 64, 128 and 256 slots:
# pixels, channels, outputs of the projection, warps, stages of the pipelined loops, and where it
# needs one the limit of registers a thread (see :func:`pinmem.kernels.launch.launch`).
_TABLE: dict[int, dict[str, tuple[tuple[int, ...], ...]]] = {
    2: {
        "forward": (
            (64, 256, 0, 8, 1), (64, 64, 0, 4, 3), (64, 64, 0, 8, 1), (32, 64, 0, 8, 1),
        ),
        "backward": (
            (16, 128, 0, 4, 2), (64, 32, 0, 8, 1, 255),
            (32, 32, 0, 8, 1, 255), (16, 16, 0, 8, 1, 255),
        ),
        "second": (
            (32, 32, 0, 8, 3, 255), (32, 32, 0, 8, 1, 255),
            (16, 32, 0, 4, 1, 255), (16, 32, 0, 8, 1),
        ),
        "project": (
            (64, 64, 256, 8, 3), (64, 64, 256, 8, 1), (32, 64, 128, 8, 1), (16, 64, 64, 8, 1),
        ),
        "project backward": (
            (64, 32, 32, 8, 3), (64, 32, 64, 8, 1), (32, 64, 32, 8, 1), (32, 16, 16, 8, 1),
        ),
        "project second": (
            (64, 32, 16, 8, 3), (32, 16, 16, 8, 1), (32, 16, 16, 8, 1), (16, 32, 16, 8, 1),
        ),
    },
    4: {
        "forward": (
            (32, 32, 0, 4, 1), (64, 16, 0, 8, 1), (16, 32, 0, 8, 1, 255), (16, 32, 0, 8, 1),
        ),
        "backward": (
            (16, 16, 0, 4, 1, 255), (16, 16, 0, 8, 1),
            (16, 16, 0, 8, 1, 255), (16, 16, 0, 8, 1, 255),
        ),
        "second": (
            (16, 32, 0, 8, 1, 255), (16, 16, 0, 8, 1), (16, 16, 0, 8, 1), (16, 16, 0, 8, 1),
        ),
        "project": (
            (64, 16, 128, 8, 1), (16, 16, 32, 4, 1), (16, 16, 32, 8, 1), (16, 16, 32, 8, 1),
        ),
        "project backward": (
            (16, 32, 32, 8, 1), (32, 16, 16, 8, 1), (16, 16, 16, 8, 1), (16, 16, 16, 8, 1),
        ),
        "project second": (
            (16, 32, 32, 8, 1), (16, 16, 16, 8, 1), (16, 16, 16, 8, 1), (16, 16, 16, 8, 1),
        ),
    },
    8: {
        "forward": (
            (32, 16, 0, 4, 1), (16, 16, 0, 4, 1, 255),
            (16, 16, 0, 8, 1, 255), (16, 16, 0, 8, 1, 255),
        ),
        "backward": (
            (32, 16, 0, 4, 1), (16, 16, 0, 4, 1, 255),
            (16, 16, 0, 8, 1, 255), (8, 16, 0, 8, 1, 255),
        ),
        "second": (
            (16, 16, 0, 8, 1), (16, 16, 0, 4, 1), (16, 16, 0, 8, 1), (8, 8, 0, 8, 1),
        ),
        "project": (
            (32, 16, 32, 4, 1), (16, 16, 16, 4, 1), (16, 16, 32, 8, 1), (16, 16, 32, 8, 1),
        ),
        "project backward": (
            (32, 64, 64, 8, 1), (16, 16, 16, 4, 1, 255), (16, 16, 16, 8, 1), (8, 16, 16, 8, 1),
        ),
        "project second": (
            (16, 8, 16, 8, 1), (16, 8, 16, 8, 1, 255), (16, 16, 16, 8, 1), (8, 8, 8, 8, 1),
        ),
    },
}  # fmt: skip


def roles_of(kind: str, query: Tensor, memory: Tensor) -> int:
    """How many programs share the work on the same pixels, where one has no room for all of it."""
    slots, wide = memory.shape[0], query.element_size() > 2
    if kind == "project second":
        return 4 if wide or slots > 128 else 3 if slots > 32 else 2
    return {"second": 3, "project backward": 2}[kind] if wide or slots > 32 else 1


def launches_of(kind: str, query: Tensor, memory: Tensor) -> list[tuple[int, dict[str, Any]]]:
    """The launches of a second-order pass: programs on the same pixels, and their constants."""
    roles = roles_of(kind, query, memory)
    if query.element_size() == 4 and memory.shape[0] > 128:
        # In one kernel what they have in common would take registers that each of them needs.
        return [(1, {"ROLES": roles, "ROLE": role}) for role in range(roles)]
    return [(roles, {"ROLES": roles, "ROLE": None})]


def config_of(
    kind: str, query: Tensor, memory: Tensor, weight: Tensor | None = None
) -> dict[str, Any]:
    """Compile-time arguments of a pass; ``weight`` for those of the projection."""
    slots, channels = memory.shape
    block_k = padded(slots)
    column = max(block_k.bit_length() - 6, 0)
    row = _TABLE[query.element_size()][kind]
    block_n, block_c, block_o, num_warps, num_stages, *limit = row[min(column, len(row) - 1)]
    config = {
        "C": channels,
        "K": slots,
        "CHANNELS_LAST": runs_of(query).channels_last,
        "ACC": accumulator(query.dtype),
        "BLOCK_N": block_n,
        "BLOCK_C": min(padded(channels), block_c),
        "BLOCK_K": block_k,
        "num_warps": num_warps,
        "num_stages": num_stages,
    }
    if limit:
        config["maxnreg"] = limit[0]
    if weight is not None:
        outputs = weight.shape[0]
        config |= {"OUT": outputs, "BLOCK_O": min(padded(outputs), block_o)}
    return config
