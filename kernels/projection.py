"""The small matrices of :func:`pinmem.ops.memory_read_project`, and its gradient of the weight.

With ``W = [W_q, W_c]``, the context's half of the projection acts on the slots: ``P = M W_c^T``
[K,O]. Its gradients come back through ``dP``: ``dM = dP W_c + ...`` and ``dW_c = dP^T M``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from pinmem.kernels.launch import launch
from pinmem.kernels.maps import accumulator, cast, dot, load_rows, padded, rolled, store_rows
from pinmem.kernels.partials import add_shares
from torch import Tensor

from pinmem.ops._maps import accumulator as accumulation_type


@triton.jit
def _project_slots(
    memory,
    weight,
    gg_memory,
    gg_weight,
    slots,
    gg_slots,
    C: tl.constexpr,
    K: tl.constexpr,
    OUT: tl.constexpr,
    T: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``P = M W_c^T``, and its derivative ``V W_c^T + M Y_c^T`` where ``gg_slots`` is given."""
    TILES: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    k = tl.program_id(0) // ((OUT + BLOCK_O - 1) // BLOCK_O) * BLOCK_K
    o = tl.program_id(0) % ((OUT + BLOCK_O - 1) // BLOCK_O) * BLOCK_O
    p = tl.zeros([BLOCK_K, BLOCK_O], ACC)
    p_1 = tl.zeros([BLOCK_K, BLOCK_O], ACC)
    for tile in range(TILES):
        c = tile * BLOCK_C
        m = cast(load_rows(memory, k, K, c, C, C, BLOCK_K, BLOCK_C), T)
        w = cast(load_rows(weight, o, OUT, C + c, 2 * C, 2 * C, BLOCK_O, BLOCK_C), T)
        p = dot(m, tl.trans(w), p)
        if gg_slots is not None:
            if gg_memory is not None:
                vm = cast(load_rows(gg_memory, k, K, c, C, C, BLOCK_K, BLOCK_C), T)
                p_1 = dot(vm, tl.trans(w), p_1)
            if gg_weight is not None:
                y = cast(load_rows(gg_weight, o, OUT, C + c, 2 * C, 2 * C, BLOCK_O, BLOCK_C), T)
                p_1 = dot(m, tl.trans(y), p_1)
    store_rows(slots, p, k, K, o, OUT, OUT)
    if gg_slots is not None:
        store_rows(gg_slots, p_1, k, K, o, OUT, OUT)


def project_slots(
    query: Tensor,
    memory: Tensor,
    weight: Tensor,
    gg_memory: Tensor | None = None,
    gg_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``P`` [K,O] in the accumulation type, and its derivative where a direction is given."""
    rows, channels, outputs = *memory.shape, weight.shape[0]
    kind = accumulation_type(query.dtype)
    slots = query.new_empty((rows, outputs), dtype=kind)
    directed = gg_memory is not None or gg_weight is not None
    gg_slots = torch.empty_like(slots) if directed else None
    block = 32 if query.element_size() == 2 else 16
    widest = max(query.element_size(), memory.element_size())
    launch(
        _project_slots,
        triton.cdiv(rows, block) * triton.cdiv(outputs, block),
        memory,
        weight,
        gg_memory,
        gg_weight,
        slots,
        gg_slots,
        C=channels,
        K=rows,
        OUT=outputs,
        T=element(query),
        ACC=accumulator(query.dtype),
        BLOCK_K=block,
        BLOCK_O=block,
        BLOCK_C=min(padded(channels), 64 if widest == 2 else 32),
        num_stages=2,
        maxnreg=255,
    )
    return slots, gg_slots


def element(query: Tensor) -> Any:
    """Triton's type of the query's elements, in which the large dots are done."""
    return {
        torch.float64: tl.float64,
        torch.float32: tl.float32,
        torch.bfloat16: tl.bfloat16,
        torch.float16: tl.float16,
    }[query.dtype]


@triton.jit
def _pull_back(
    sums,
    memory,
    weight,
    gg_memory,
    gg_weight,
    grad_memory,
    grad_weight,
    C: tl.constexpr,
    K: tl.constexpr,
    OUT: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """From the sums over all pixels (dM, dP and its derivative, in a row) to the gradients.

    First order: ``dM += dP W_c``, ``dW_c = dP^T M``. With directions: ``dM += dP' W_c + dP Y_c``,
    ``dW_c = dP'^T M + dP^T V``.
    """
    TILES_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    TILES_K: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    TILES_O: tl.constexpr = (OUT + BLOCK_O - 1) // BLOCK_O
    row, c = tl.program_id(0) // TILES_C, tl.program_id(0) % TILES_C * BLOCK_C
    changed = sums + K * C
    plain = changed + K * OUT
    # A block of dM's rows is a program's, or one of dW_c's.
    if row < TILES_K:
        if grad_memory is not None:
            k = row * BLOCK_K
            dm = load_rows(sums, k, K, c, C, C, BLOCK_K, BLOCK_C)
            for tile in tl.range(rolled(TILES_O, tl.float64 == ACC), disable_licm=True):
                o = tile * BLOCK_O
                dp = load_rows(changed, k, K, o, OUT, OUT, BLOCK_K, BLOCK_O)
                w = load_rows(weight, o, OUT, C + c, 2 * C, 2 * C, BLOCK_O, BLOCK_C).to(ACC)
                dm = dot(dp, w, dm)
                if gg_weight is not None:
                    dp = load_rows(plain, k, K, o, OUT, OUT, BLOCK_K, BLOCK_O)
                    y = load_rows(gg_weight, o, OUT, C + c, 2 * C, 2 * C, BLOCK_O, BLOCK_C)
                    dm = dot(dp, y.to(ACC), dm)
            store_rows(grad_memory, dm, k, K, c, C, C)
    elif grad_weight is not None:
        o = (row - TILES_K) * BLOCK_O
        dw = tl.zeros([BLOCK_O, BLOCK_C], ACC)
        for tile in tl.range(rolled(TILES_K, tl.float64 == ACC), disable_licm=True):
            k = tile * BLOCK_K
            dp = load_rows(changed, k, K, o, OUT, OUT, BLOCK_K, BLOCK_O)
            m = load_rows(memory, k, K, c, C, C, BLOCK_K, BLOCK_C).to(ACC)
            dw = dot(tl.trans(dp), m, dw)
            if gg_memory is not None:
                dp = load_rows(plain, k, K, o, OUT, OUT, BLOCK_K, BLOCK_O)
                vm = load_rows(gg_memory, k, K, c, C, C, BLOCK_K, BLOCK_C).to(ACC)
                dw = dot(tl.trans(dp), vm, dw)
        store_rows(grad_weight, dw, o, OUT, C + c, 2 * C, 2 * C)


def pull_back(
    sums: Tensor,
    memory: Tensor,
    weight: Tensor,
    gg_memory: Tensor | None,
    gg_weight: Tensor | None,
    grad_memory: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    """Fill ``grad_memory`` and the context's half of ``grad_weight`` from the pixels' sums.

    ``sums`` holds dM [K,C], then dP [K,O]; with directions the derivative of dP, then dP.
    """
    (rows, channels), outputs = memory.shape, weight.shape[0]
    block_k, block_o, block_c = min(padded(rows), 32), 32, 16
    blocks = triton.cdiv(rows, block_k) + triton.cdiv(outputs, block_o)
    launch(
        _pull_back,
        blocks * triton.cdiv(channels, block_c),
        sums,
        memory,
        weight,
        gg_memory,
        gg_weight,
        grad_memory,
        grad_weight,
        C=channels,
        K=rows,
        OUT=outputs,
        ACC=accumulator(sums.dtype),
        BLOCK_K=block_k,
        BLOCK_O=block_o,
        BLOCK_C=block_c,
        maxnreg=255,
    )


def finish_gradients(
    shares: Tensor,
    weight_share: Tensor | None,
    memory: Tensor,
    weight: Tensor,
    grad_memory: Tensor | None,
    grad_weight: Tensor | None,
    gg_memory: Tensor | None = None,
    gg_weight: Tensor | None = None,
) -> None:
    """Add up the shares and fill the gradients asked for; two launches.

    ``shares`` are the pixels' (see :func:`pull_back`), ``weight_share`` those of dW's half of the
    query (:mod:`pinmem.kernels.weight_shares`); without them that half stays as it is.
    """
    sums = shares.new_empty(shares.shape[1])
    half = None if weight_share is None else grad_weight[:, : memory.shape[1]]
    add_shares(shares, sums, weight_share, half)
    pull_back(sums, memory, weight, gg_memory, gg_weight, grad_memory, grad_weight)
