"""An op's passes as functions that every transform of PyTorch goes through.

An op has three passes: forward, backward, and the derivative of both along a tangent of the inputs
(docs/math.md). Reverse mode chains the three. Forward mode needs no further formula: the third pass
without cotangents is the forward's derivative along a tangent, and with them the backward's. So
grad of grad, forward over reverse and reverse over forward are made of the same three passes; what
would take a third derivative, and forward over forward, raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from pinmem.ops._chain import Chain, Derivatives, below_autograd


def differentiated(tensor: Tensor) -> bool:
    """Whether something may be differentiated with respect to a tensor, in any mode."""
    return (torch.is_grad_enabled() and tensor.requires_grad) or transformed()


def transformed() -> bool:
    """Whether a transform of torch.func, or forward mode, is at work outside torch.compile."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def functions(op: str, rules: Derivatives, passes: SimpleNamespace) -> SimpleNamespace:
    """The passes ``forward``, ``backward`` and ``double`` as functions for every transform."""
    chain = Chain(op, rules, passes)
    n, m = rules.inputs, rules.outputs

    class Double(Function):
        """The double backward pass: nothing is differentiated further."""

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return below_autograd(chain.run_double, arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            pass

        backward = staticmethod(chain.no_third_order)
        jvp = staticmethod(chain.no_third_order)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
            return looped(Double, info, in_dims, arguments)

    class Backward(Function):
        @staticmethod
        def forward(*arguments: Any) -> Any:
            return below_autograd(chain.run_backward, arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.save_for_forward(*chain.save_backward(ctx, inputs, output))

        backward = staticmethod(chain.backward_backward)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            saved, flags = ctx.saved_tensors, ctx.needs if rules.needs else ()
            along_inputs = tangents[m + chain.kept : m + chain.kept + n]
            found: list[Any] = [None] * n
            if any(t is not None for t in along_inputs):
                found = list(Double.apply(*along_inputs, *saved, *ctx.constants)[m:])
            if any(t is not None for t in tangents[:m]):
                # The pass is linear in its cotangents.
                linear = Backward.apply(*tangents[:m], *saved[m:], *ctx.constants, *flags)
                found = [
                    b if a is None or not need else a + b
                    for a, b, need in zip(found, linear, ctx.needs, strict=True)
                ]
            return tuple(f if need else None for f, need in zip(found, ctx.needs, strict=True))

        @staticmethod
        def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
            # Gradients of what all pixels share are sums over an element's pixels.
            shared = any(arguments[-n + 1 :]) if rules.needs else True
            return mapped(Backward, rules.pixelwise and not shared, info, in_dims, arguments)

    class Tangent(Function):
        """The forward pass's derivative along tangents: the double backward pass uncotangented."""

        @staticmethod
        def forward(*arguments: Any) -> Any:
            cotangents: tuple[Any, ...] = (None,) * m
            if rules.zeros is not None:
                cotangents = (rules.zeros(*arguments[n + chain.kept :]),)
            whole = (*arguments[:n], *cotangents, *arguments[n:])
            return below_autograd(chain.run_double, whole)[:m]

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            tensors = n + chain.kept + chain.tensors
            ctx.set_materialize_grads(False)
            ctx.constants, ctx.given = inputs[tensors:], len(inputs)
            ctx.save_for_backward(*inputs[:tensors])

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            if all(cotangent is None for cotangent in cotangents):
                return (None,) * ctx.given
            tangents, saved = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
            flags = (True,) * n if rules.needs else ()
            along = Backward.apply(*cotangents, *saved, *ctx.constants, *flags)
            along = (None if t is None else a for t, a in zip(tangents, along, strict=True))
            found = Double.apply(*tangents, *cotangents, *saved, *ctx.constants)[m:]
            rest = ctx.given - 2 * n - chain.kept
            return (*along, *[None] * chain.kept, *found, *[None] * rest)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise NotImplementedError(
                f"{op}: forward mode over forward mode is not implemented; use forward over "
                'reverse (torch.func.hessian does), or pinmem.backend("reference")'
            )

        @staticmethod
        def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
            return looped(Tangent, info, in_dims, arguments)

    class Forward(Function):
        @staticmethod
        def forward(*arguments: Any) -> Any:
            return below_autograd(chain.run_forward, arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.save_for_forward(*chain.save_forward(ctx, inputs, output))
            ctx.results = len(output)

        backward = staticmethod(chain.forward_backward)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            if any(tangent is not None for tangent in tangents[n:]):
                raise NotImplementedError(f"{op}: only its first {n} arguments have derivatives")
            dots = Tangent.apply(*tangents[:n], *ctx.saved_tensors, *ctx.constants)
            return (*dots, *[None] * (ctx.results - m))

        @staticmethod
        def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
            return mapped(Forward, rules.pixelwise, info, in_dims, arguments)

    chain.backward, chain.double = Backward.apply, Double.apply
    return SimpleNamespace(forward=Forward.apply, backward=Backward.apply, double=Double.apply)


def mapped(
    function: Any, pixelwise: bool, info: Any, in_dims: Sequence[int | None], arguments: Any
) -> tuple[tuple[Any, ...], tuple[int | None, ...]]:
    """``vmap``, folded into the batch where maps alone are mapped over, otherwise by a loop."""
    count = info.batch_size
    pairs = list(zip(arguments, in_dims, strict=True))
    if not pixelwise or any(dim is not None and argument.ndim != 5 for argument, dim in pairs):
        return looped(function, info, in_dims, arguments)
    folded = []
    for argument, dim in pairs:
        if dim is not None:
            argument = argument.movedim(dim, 0).flatten(0, 1)
        elif isinstance(argument, Tensor) and argument.ndim == 4:
            argument = argument.expand(count, *argument.shape).flatten(0, 1)
        folded.append(argument)
    results = function.apply(*folded)
    # What nobody asked for is an empty vector.
    maps = [result.ndim == 4 for result in results]
    found = (r.unflatten(0, (count, -1)) if m else r for r, m in zip(results, maps, strict=True))
    return tuple(found), tuple(0 if m else None for m in maps)


def looped(
    function: Any, info: Any, in_dims: Sequence[int | None], arguments: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """``vmap`` by a loop: the call for each element, and the results stacked in front."""
    calls = []
    for i in range(info.batch_size):
        chosen = (
            argument if dim is None else argument.select(dim, i)
            for argument, dim in zip(arguments, in_dims, strict=True)
        )
        calls.append(function.apply(*chosen))
    stacked = tuple(torch.stack(results) for results in zip(*calls, strict=True))
    return stacked, (0,) * len(stacked)
