"""Reading the memory: every pixel attends to all slots (paper, section 3.2; docs/math.md 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from pinmem import reference
from pinmem.backends import select
from pinmem.ops._chain import Derivatives
from pinmem.ops._check import check_map, check_slots
from pinmem.ops._declare import Pass, declare
from pinmem.ops._maps import empty_map


def memory_read(
    query: Tensor, memory: Tensor, *, gumbel: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read a class memory at every pixel.

    With ``q = query / max(|query|, 1e-12)`` over channels: ``scores = q . memory``,
    ``attention = softmax(scores + gumbel)`` over slots, ``context = attention . memory``.

    Args:
        query: features [B,C,h,w], float64, float32, bfloat16 or float16, either memory format.
        memory: slots [K,C], of the query's dtype or float32.
        gumbel: optional noise [B,K,h,w] added to the scores inside the softmax; no gradient.

    Returns:
        ``readout`` [B,2C,h,w], the normalised query and the context concatenated, and
        ``scores`` [B,K,h,w] without noise; both in the query's dtype and memory format.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    check_read(query, memory, gumbel)
    backend = select("memory_read", query, memory.shape[0])
    if backend == "reference":
        return reference.memory_read(query, memory, gumbel=gumbel)
    readout, scores = _CALL[backend](query, memory, gumbel)
    return readout, scores


def check_read(query: Tensor, memory: Tensor, gumbel: Tensor | None) -> None:
    """The arguments that ``memory_read`` and ``memory_read_project`` share."""
    check_map("query", query)
    check_slots("memory", memory, query.shape[1], query)
    if gumbel is not None:
        check_map("gumbel", gumbel, memory.shape[0], like=query)
        if gumbel.requires_grad:
            raise ValueError("gumbel: got a tensor that requires grad, expected noise without")


def _forward_fake(query: Tensor, memory: Tensor, gumbel: Tensor | None) -> tuple[Tensor, Tensor]:
    return empty_map(query, 2 * query.shape[1]), empty_map(query, memory.shape[0])


def _backward_fake(
    grad_readout: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    gumbel: Tensor | None,
    need_query: bool,
    need_memory: bool,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(query) if need_query else query.new_empty(0),
        torch.empty_like(memory) if need_memory else memory.new_empty(0),
    )


def _double_backward_fake(
    query_tangent: Tensor | None,
    memory_tangent: Tensor | None,
    grad_readout: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    gumbel: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        *_forward_fake(query, memory, gumbel),
        torch.empty_like(query),
        torch.empty_like(memory),
    )


_CALL = declare(
    "memory_read",
    Derivatives(inputs=2, outputs=2, needs=True, pixelwise=True),
    memory_read=Pass(
        "(Tensor query, Tensor memory, Tensor? gumbel) -> (Tensor readout, Tensor scores)",
        _forward_fake,
    ),
    memory_read_backward=Pass(
        "(Tensor? grad_readout, Tensor? grad_scores, Tensor query, Tensor memory, Tensor? gumbel,"
        " bool need_query, bool need_memory) -> (Tensor grad_query, Tensor grad_memory)",
        _backward_fake,
    ),
    memory_read_double_backward=Pass(
        "(Tensor? query_tangent, Tensor? memory_tangent, Tensor? grad_readout, Tensor? grad_scores,"
        " Tensor query, Tensor memory, Tensor? gumbel)"
        " -> (Tensor readout_dot, Tensor scores_dot, Tensor grad_query, Tensor grad_memory)",
        _double_backward_fake,
    ),
)
