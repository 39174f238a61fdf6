"""Reading the memory and projecting the readout in one op (docs/math.md 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from pinmem import reference
from pinmem.backends import select
from pinmem.ops._chain import Derivatives
from pinmem.ops._check import check_shape
from pinmem.ops._declare import Pass, declare
from pinmem.ops._maps import empty_map
from pinmem.ops.memory_read import check_read


def memory_read_project(
    query: Tensor, memory: Tensor, weight: Tensor, *, gumbel: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read a class memory at every pixel and project the readout, without ever storing it.

    The same as a bias-free 1x1 convolution of :func:`pinmem.ops.memory_read`'s readout:
    ``projected = q . W_q^T + attention . (memory . W_c^T)`` with ``weight = [W_q, W_c]``.

    Args:
        query: features [B,C,h,w], float64, float32, bfloat16 or float16, either memory format.
        memory: slots [K,C], of the query's dtype or float32.
        weight: projection [O,2C], of the query's dtype or float32.
        gumbel: optional noise [B,K,h,w] added to the scores inside the softmax; no gradient.

    Returns:
        ``projected`` [B,O,h,w] and ``scores`` [B,K,h,w] without noise; both in the query's dtype
        and memory format.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    check_read(query, memory, gumbel)
    if weight.ndim != 2 or weight.shape[0] == 0:
        raise ValueError(
            f"weight: got shape {list(weight.shape)}, expected [O >= 1, {2 * query.shape[1]}]"
        )
    check_shape("weight", weight, (weight.shape[0], 2 * query.shape[1]), query)
    backend = select("memory_read_project", query, memory.shape[0])
    if backend == "reference":
        return reference.memory_read_project(query, memory, weight, gumbel=gumbel)
    projected, scores = _CALL[backend](query, memory, weight, gumbel)
    return projected, scores


def _forward_fake(
    query: Tensor, memory: Tensor, weight: Tensor, gumbel: Tensor | None
) -> tuple[Tensor, Tensor]:
    return empty_map(query, weight.shape[0]), empty_map(query, memory.shape[0])


def _backward_fake(
    grad_projected: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    weight: Tensor,
    gumbel: Tensor | None,
    need_query: bool,
    need_memory: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(query) if need_query else query.new_empty(0),
        torch.empty_like(memory) if need_memory else memory.new_empty(0),
        torch.empty_like(weight) if need_weight else weight.new_empty(0),
    )


def _double_backward_fake(
    query_tangent: Tensor | None,
    memory_tangent: Tensor | None,
    weight_tangent: Tensor | None,
    grad_projected: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    weight: Tensor,
    gumbel: Tensor | None,
) -> tuple[Tensor, ...]:
    grads = (torch.empty_like(tensor) for tensor in (query, memory, weight))
    return (*_forward_fake(query, memory, weight, gumbel), *grads)


_CALL = declare(
    "memory_read_project",
    Derivatives(inputs=3, outputs=2, needs=True, pixelwise=True),
    memory_read_project=Pass(
        "(Tensor query, Tensor memory, Tensor weight, Tensor? gumbel)"
        " -> (Tensor projected, Tensor scores)",
        _forward_fake,
    ),
    memory_read_project_backward=Pass(
        "(Tensor? grad_projected, Tensor? grad_scores, Tensor query, Tensor memory,"
        " Tensor weight, Tensor? gumbel, bool need_query, bool need_memory, bool need_weight)"
        " -> (Tensor grad_query, Tensor grad_memory, Tensor grad_weight)",
        _backward_fake,
    ),
    memory_read_project_double_backward=Pass(
        "(Tensor? query_tangent, Tensor? memory_tangent, Tensor? weight_tangent,"
        " Tensor? grad_projected, Tensor? grad_scores,"
        " Tensor query, Tensor memory, Tensor weight, Tensor? gumbel)"
        " -> (Tensor projected_dot, Tensor scores_dot, Tensor grad_query, Tensor grad_memory,"
        " Tensor grad_weight)",
        _double_backward_fake,
    ),
)
