"""Reading the memory and projecting the readout in one op (docs/math.md 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pinmem import reference
from pinmem.backends import select
from pinmem.ops._check import check_shape
from pinmem.ops._declare import Pass, declare
from pinmem.ops._maps import dense, dense_like, empty_map
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
    query = dense(query)
    return _PASSES[backend].memory_read_project(
        query, memory.contiguous(), weight.contiguous(), dense_like(gumbel, query)
    )


def _forward_fake(
    query: Tensor, memory: Tensor, weight: Tensor, gumbel: Tensor | None
) -> tuple[Tensor, Tensor]:
    return empty_map(query, weight.shape[0]), empty_map(query, memory.shape[0])


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _forward_backward(
    passes: Any, ctx: Any, grad_projected: Tensor | None, grad_scores: Tensor | None
) -> tuple[Tensor | None, ...]:
    query, memory, weight, gumbel = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    grads = passes.memory_read_project_backward(
        dense_like(grad_projected, query),
        dense_like(grad_scores, query),
        query,
        memory,
        weight,
        gumbel,
        *needs,
    )
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), None)


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


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.needs = inputs[6:]
    ctx.save_for_backward(*inputs[:6])


def _backward_backward(passes: Any, ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
    grad_projected, grad_scores, query, memory, weight, gumbel = ctx.saved_tensors
    query_tangent, memory_tangent, weight_tangent = (
        cotangent if need else None for cotangent, need in zip(cotangents, ctx.needs, strict=True)
    )
    if query_tangent is None and memory_tangent is None and weight_tangent is None:
        return (None,) * 9
    out_projected, out_scores, *grads = passes.memory_read_project_double_backward(
        dense_like(query_tangent, query),
        None if memory_tangent is None else memory_tangent.contiguous(),
        None if weight_tangent is None else weight_tangent.contiguous(),
        grad_projected,
        grad_scores,
        query,
        memory,
        weight,
        gumbel,
    )
    return (
        out_projected if grad_projected is not None else None,
        out_scores if grad_scores is not None else None,
        *grads,
        None,
        None,
        None,
        None,
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


_PASSES = declare(
    "memory_read_project",
    memory_read_project=Pass(
        "(Tensor query, Tensor memory, Tensor weight, Tensor? gumbel)"
        " -> (Tensor projected, Tensor scores)",
        _forward_fake,
        _forward_setup,
        _forward_backward,
    ),
    memory_read_project_backward=Pass(
        "(Tensor? grad_projected, Tensor? grad_scores, Tensor query, Tensor memory,"
        " Tensor weight, Tensor? gumbel, bool need_query, bool need_memory, bool need_weight)"
        " -> (Tensor grad_query, Tensor grad_memory, Tensor grad_weight)",
        _backward_fake,
        _backward_setup,
        _backward_backward,
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
