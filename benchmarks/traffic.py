"""Bytes that the Triton kernels move, counted from their launches.

An op's pass runs on tensors without data, and every launch is written down with its grid, its block
sizes and its tensors. A launch reads or writes each of its tensors once out of HBM, unless a loop
asks again for what left the chip's caches meanwhile; how often loops ask at all, caches included,
is counted too. Three things are said of a pass:

- ``memory``: bytes between HBM and L2. Each tensor of each launch counts, so what two launches read
  counts twice. Scratch that one launch writes and the next reads (shares of sums, mostly) counts
  both times, unless all that the pass touches fits the L2, which then hands it on.
- ``cache``: bytes between L2 and the multiprocessors: every turn of every loop over a map. What
  is gathered from matrices of a few KB, which lie in the L1, counts once.
- ``window``: bytes of maps that all programs together hold between a loop's first look at a block
  and its last. Repeated looks find the L2 only while this is at most half of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

L2 = 50 << 20
MULTIPROCESSORS = 132
# What kernels that look twice have resident at most; the compiler's report has their occupancy.
RESIDENT_WARPS = 24


class Traffic(NamedTuple):
    """What a pass moves, in bytes, and the launches it takes."""

    memory: float
    cache: float
    window: float
    launches: int
    scratch: float


Values = dict[str, Any]


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return tensor.numel() * tensor.element_size()


def count(run: Callable[[], Any], inputs: Iterable[Tensor | None]) -> Traffic:
    """Count what ``run`` launches on ``inputs`` (meta tensors); its results are its outputs."""
    from pinmem.kernels.launch import recording

    with recording("") as cases:
        results = run()
    results = results if isinstance(results, tuple) else (results,)
    outer = {id(tensor) for tensor in (*inputs, *results) if tensor is not None}
    memory = cache = window = scratch = 0.0
    footprint: dict[int, float] = {}
    for case in cases:
        values = case.arguments
        place = (case.kernel.__module__.rpartition(".")[2], case.kernel.__name__)
        looks = _LOOKS.get(place, lambda values: {})(values)
        touched = _TOUCHED.get(place, {})
        again = 0.0
        for name, tensor in values.items():
            if not isinstance(tensor, Tensor):
                continue
            full = touched[name](values) if name in touched else size_of(tensor)
            often = looks.get(name, 1.0)
            cache += often * full
            footprint[id(tensor)] = full
            if id(tensor) in outer:
                memory += full
            else:
                scratch += full
            if often > 1 and tensor.ndim == 4:
                again += tensor.shape[1] * tensor.element_size()
        if again:
            resident = MULTIPROCESSORS * max(1, RESIDENT_WARPS // case.num_warps)
            # Programs side by side on the same pixels hold the same blocks.
            side = 1 if values.get("ROLE") is not None else values.get("ROLES", 1)
            blocks = min(resident, case.grid) // side
            window = max(window, blocks * values["BLOCK_N"] * again)
    if sum(footprint.values()) > L2:
        memory += scratch
    # What the op does without a kernel of its own: zeroing and adding up the copies of counts.
    launches = len(cases) + (2 if any(c.kernel.__name__ == "_count" for c in cases) else 0)
    return Traffic(memory, cache, window, launches, scratch)


def _tiles(values: Values, size: str, block: str) -> int:
    return -(-values[size] // values[block])


# How often a launch looks at each element of a map: its loops, read off the kernel. Matrices that
# every program reads count once a block of pixels, through `_matrices`.
def _matrices(values: Values, *names: str, each: float = 1.0) -> dict[str, float]:
    return dict.fromkeys(names, values["total"] * each)


def _read_forward(values: Values) -> dict[str, float]:
    twice = 2 if _tiles(values, "C", "BLOCK_C") > 1 else 1
    return {"query": twice, **_matrices(values, "memory", each=twice)}


def _read_backward(values: Values) -> dict[str, float]:
    twice = 2 if _tiles(values, "C", "BLOCK_C") > 1 else 1
    looks = {"query": twice, "grad_readout": twice, **_matrices(values, "memory", each=twice)}
    # Shares stay in registers where all channels are one tile; else each turn reads and writes.
    return looks | {"shares": 1 if twice == 1 else 2 * values["steps"] - 1}


def _read_second(values: Values) -> dict[str, float]:
    # Several roles all form the scores; the gradient's looks at the cotangent too, and that of dM
    # at its second half. The last loop is divided between them.
    apart = values["ROLES"] > 1
    roles, shares = values["ROLES"], 2 * values["steps"] - 1
    looks = {"query": 2 * roles + 1, "gg_query": 2 * roles + 1, "grad_readout": 2.5 if apart else 2}
    looks |= _matrices(values, "memory", each=7 if apart else 3)
    looks |= _matrices(values, "gg_memory", each=7 if apart else 4)
    return looks | {"shares": shares}


def _project_forward(values: Values) -> dict[str, float]:
    tiles = _tiles(values, "OUT", "BLOCK_O")
    matrices = _matrices(values, "memory", each=tiles)
    # Of the weight the query's half.
    return {"query": tiles, **matrices, **_matrices(values, "slots"), "weight": values["total"] / 2}


def _weight_looks(values: Values) -> tuple[float, float]:
    """How often the tiles of dW look at the query and at the cotangent."""
    if values["weight_shares"] is None:
        return 0, 0
    tiles_c = _tiles(values, "C", "TILE_C")
    return values["PARTS"], tiles_c


def _project_backward(values: Values) -> dict[str, float]:
    more_x, more_d = _weight_looks(values)
    tiles = _tiles(values, "C", "BLOCK_C")
    roles, shares = values["ROLES"], 2 * values["steps"] - 1
    looks = {"query": 3 + roles + more_x, "grad_projected": roles + tiles + more_d, "grad_query": 3}
    looks |= _matrices(values, "memory", each=1 + roles) | _matrices(values, "slots", each=roles)
    return looks | {"weight": values["total"] / 2, "shares": shares, "weight_shares": shares}


def _project_second(values: Values) -> dict[str, float]:
    more_x, more_d = _weight_looks(values)
    tiles, tiles_o = _tiles(values, "C", "BLOCK_C"), _tiles(values, "OUT", "BLOCK_O")
    roles, shares = values["ROLES"], 2 * values["steps"] - 1
    x = 3 + roles + tiles_o + more_x
    d = roles - 1 + tiles + more_d
    looks = {"query": x, "gg_query": x, "grad_projected": d, "grad_query": 3}
    looks |= _matrices(values, "memory", "gg_memory", "slots", "slots_1", each=1 + roles)
    looks |= {"weight": values["total"], "gg_weight": values["total"]}
    return looks | {"shares": shares, "weight_shares": shares}


def _sums(values: Values) -> dict[str, float]:
    twice = 2 if _tiles(values, "C", "BLOCK_C") > 1 else 1
    looks = {"features": twice, "tangent": twice, "grad_features": 1}
    return looks | {"shares": 1 if twice == 1 else 2 * values["steps"] - 1}


_LOOKS: dict[tuple[str, str], Callable[[Values], dict[str, float]]] = {
    ("memory_read", "_forward"): _read_forward,
    ("memory_read", "_backward"): _read_backward,
    ("memory_read_double_backward", "_double_backward"): _read_second,
    ("memory_read_project", "_forward"): _project_forward,
    ("memory_read_project_backward", "_backward"): _project_backward,
    ("memory_read_project_double_backward", "_second"): _project_second,
    ("class_sums", "_sum"): _sums,
}


# What a launch touches of a tensor where that is not all of it.
def label_bytes(labels: Tensor, height: int) -> int:
    """Labels that a map of so many rows reads: two rows of them a row, in sectors of 32 bytes."""
    batch, high, wide = labels.shape
    return batch * min(2 * height, high) * wide * labels.element_size()


def _shared_corners(values: Values) -> tuple[float, float]:
    """Corners on the border of a tile, whose gradients several tiles share.

    Returns how many there are, each tile for itself (they go to the edges), and how many of the
    result's corners they are.
    """
    batch, tiles = values["out"].shape[0], values["tiles_y"] * values["tiles_x"]
    met = [
        values[f"TILE_{axis}"] * (values[low] - 1) / max(values[high] - 1, 1) + 2
        for axis, low, high in (("Y", "h", "high"), ("X", "w", "wide"))
    ]
    inside = max(met[0] - 2, 0) * max(met[1] - 2, 0)
    everywhere = batch * tiles * (met[0] * met[1] - inside)
    corners = values["out"].shape[2] * values["out"].shape[3]
    return everywhere, max(batch * (corners - tiles * inside), 0)


def _edges(values: Values) -> float:
    edges = values["edges"]
    return _shared_corners(values)[0] * values["K"] * edges.element_size()


def _finished(values: Values) -> float:
    out = values["out"]
    return _shared_corners(values)[1] * values["K"] * out.element_size()


def _visited(values: Values) -> float:
    return size_of(values["out"]) - _finished(values)


_VISIT, _SUM = "upsampled_cross_entropy_visit", ("class_sums", "_sum")
_TOUCHED: dict[tuple[str, str], dict[str, Callable[[Values], float]]] = {
    _SUM: {"labels": lambda values: label_bytes(values["labels"], values["h"])},
    (_VISIT, "visit"): {"edges": _edges, "out": _visited},
    (_VISIT, "finish"): {"edges": _edges, "out": _finished},
}


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")
