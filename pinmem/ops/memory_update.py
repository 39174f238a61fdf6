"""The momentum update of the memory and its two losses (docs/math.md 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from pinmem import reference
from pinmem.backends import select
from pinmem.ops._chain import Derivatives
from pinmem.ops._check import check_device, check_float
from pinmem.ops._declare import Pass, declare


def memory_update(
    memory: Tensor, sums: Tensor, mass: Tensor, weight: Tensor, bias: Tensor, *, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Move every present class towards its mean, normalise, and rate the result.

    ``u_k = momentum * memory_k + (1 - momentum) * sums_k / mass_k`` where ``mass_k > 0``, else
    ``memory_k``; ``new_k = u_k / max(|u_k|, 1e-12)`` (paper, equation 3).

    Args:
        memory: slots [K,C], float64, float32, bfloat16 or float16.
        sums: class sums [K,C] of :func:`pinmem.ops.class_sums`.
        mass: class masses [K].
        weight: classifier weight [K,C].
        bias: classifier bias [K]. All five share one dtype and device.
        momentum: how much of the old memory stays, in [0,1].

    Returns:
        ``new_memory`` [K,C]; the scalar ``divergence``, the mean over ordered pairs i != j of
        ``max(0, new_i . new_j)``; the scalar ``classification``, the mean cross-entropy of
        ``new_k . weight^T + bias`` against class k. In the dtype of the memory.

    Raises:
        ValueError: a shape, dtype, device or the momentum does not fit.
    """
    _check(memory, sums, mass, weight, bias, momentum)
    backend = select("memory_update", memory, memory.shape[0])
    if backend == "reference":
        return reference.memory_update(memory, sums, mass, weight, bias, momentum=momentum)
    new_memory, divergence, classification = _CALL[backend](
        memory, sums, mass, weight, bias, float(momentum)
    )
    return new_memory, divergence, classification


def _check(
    memory: Tensor, sums: Tensor, mass: Tensor, weight: Tensor, bias: Tensor, momentum: float
) -> None:
    if memory.ndim != 2 or memory.numel() == 0:
        raise ValueError(f"memory: got shape {list(memory.shape)}, expected [K >= 1, C >= 1]")
    check_float("memory", memory)
    slots = memory.shape[:1]
    for name, tensor, shape in (
        ("sums", sums, memory.shape),
        ("mass", mass, slots),
        ("weight", weight, memory.shape),
        ("bias", bias, slots),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {list(shape)}")
        if tensor.dtype != memory.dtype:
            raise ValueError(f"{name}: got {tensor.dtype}, expected {memory.dtype}")
        check_device(name, tensor, memory)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: got {momentum}, expected a number in [0,1]")


def _forward_fake(
    memory: Tensor, sums: Tensor, mass: Tensor, weight: Tensor, bias: Tensor, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(memory), memory.new_empty(()), memory.new_empty(())


def _backward_fake(
    grad_memory: Tensor | None,
    grad_divergence: Tensor | None,
    grad_classification: Tensor | None,
    memory: Tensor,
    sums: Tensor,
    mass: Tensor,
    weight: Tensor,
    bias: Tensor,
    momentum: float,
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in (memory, sums, mass, weight, bias))


def _double_backward_fake(
    memory_tangent: Tensor | None,
    sums_tangent: Tensor | None,
    mass_tangent: Tensor | None,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    grad_memory: Tensor | None,
    grad_divergence: Tensor | None,
    grad_classification: Tensor | None,
    memory: Tensor,
    sums: Tensor,
    mass: Tensor,
    weight: Tensor,
    bias: Tensor,
    momentum: float,
) -> tuple[Tensor, ...]:
    return (
        *_forward_fake(memory, sums, mass, weight, bias, momentum),
        *(torch.empty_like(tensor) for tensor in (memory, sums, mass, weight, bias)),
    )


_INPUTS = "Tensor memory, Tensor sums, Tensor mass, Tensor weight, Tensor bias, float momentum"
_GRADS = "Tensor? grad_memory, Tensor? grad_divergence, Tensor? grad_classification"
_INPUT_GRADS = "Tensor d_memory, Tensor d_sums, Tensor d_mass, Tensor d_weight, Tensor d_bias"

_CALL = declare(
    "memory_update",
    Derivatives(inputs=5, outputs=3),
    memory_update=Pass(
        f"({_INPUTS}) -> (Tensor new_memory, Tensor divergence, Tensor classification)",
        _forward_fake,
    ),
    memory_update_backward=Pass(
        f"({_GRADS}, {_INPUTS}) -> ({_INPUT_GRADS})",
        _backward_fake,
    ),
    memory_update_double_backward=Pass(
        "(Tensor? memory_tangent, Tensor? sums_tangent, Tensor? mass_tangent,"
        f" Tensor? weight_tangent, Tensor? bias_tangent, {_GRADS}, {_INPUTS})"
        " -> (Tensor new_memory_dot, Tensor divergence_dot, Tensor classification_dot,"
        f" {_INPUT_GRADS})",
        _double_backward_fake,
    ),
)
