"""The second-order pass of memory_read_project, from passes that exist.

The op is ``readout W^T``, bilinear in readout and weight. Along a tangent of the weight it is
therefore the first-order passes with that tangent in the weight's place; along tangents of
query and memory it is memory_read's second order between two products with the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pinmem.kernels.maps import layout_of
from pinmem.kernels.memory_read import memory_read_double_backward
from pinmem.kernels.memory_read_project.backward import (
    memory_read_project_backward,
    pointwise,
    weight_gradient,
)
from pinmem.kernels.memory_read_project.forward import memory_read_project
from pinmem.reference import own_types


@own_types
def memory_read_project_double_backward(
    query_tangent: Tensor | None,
    memory_tangent: Tensor | None,
    weight_tangent: Tensor | None,
    grad_projected: Tensor | None,
    grad_scores: Tensor | None,
    query: Tensor,
    memory: Tensor,
    weight: Tensor,
    gumbel: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Second-order pass along the tangents: of projected, scores and the three gradients."""
    layout = layout_of(query)
    grad_readout = None if grad_projected is None else pointwise(grad_projected, weight.T, layout)
    readout_dot, scores_dot, grad_query_dot, grad_memory_dot = memory_read_double_backward(
        query_tangent, memory_tangent, grad_readout, grad_scores, query, memory, gumbel
    )
    projected_dot = pointwise(readout_dot, weight, layout)
    if grad_projected is None:
        grad_weight_dot = torch.zeros_like(weight)
    else:
        grad_weight_dot = weight_gradient(grad_projected, readout_dot).to(weight.dtype)
    if weight_tangent is not None:
        projected_dot += memory_read_project(query, memory, weight_tangent, gumbel)[0]
        if grad_projected is not None:
            more_query, more_memory, _ = memory_read_project_backward(
                grad_projected, None, query, memory, weight_tangent, gumbel, True, True, False
            )
            grad_query_dot += more_query
            grad_memory_dot += more_memory
    return projected_dot, scores_dot, grad_query_dot, grad_memory_dot, grad_weight_dot
