"""An op's passes as functions that every transform of PyTorch goes through.

An op has three passes: forward, backward, and the derivative of both along a tangent of the inputs
(docs/math.md). Reverse mode chains the three. Forward mode needs no further formula: the third pass
without cotangents is the forward's derivative along a tangent, and with them the backward's. So
grad of grad, forward over reverse and reverse over forward are made of the same three passes; what
would take a third derivative, and forward over forward, raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from pinmem.ops._maps import format_of


@dataclass(frozen=True)
class Derivatives:
    """How the arguments of an op's passes follow from each other.

    forward:  tensors, constants -> outputs
    backward: cotangents, kept, tensors, constants, needs -> gradients of the inputs
    double:   tangents, cotangents, kept, tensors, constants -> derivatives of outputs and gradients

    Attributes:
        inputs: how many tensors are differentiated for; they come first.
        outputs: how many outputs have a gradient; they come first.
        keeps: the forward's last output goes to the other passes (and its last constant does not).
        needs: the backward pass takes a flag per input.
        zeros: cotangents of zero, from the forward's arguments, where they cannot be left out.
    """

    inputs: int
    outputs: int
    keeps: bool = False
    needs: bool = False
    zeros: Callable[..., Tensor] | None = None


def settle(arguments: Sequence[Any], first: int, count: int, kept: int = -1) -> list[Any]:
    """Arguments as kernels take them: maps dense, in the type and memory format of the first input.

    It is the argument ``first``; the leading ``count`` are tensors or None. What the forward pass
    ``kept``, by its place, stays in its own type.
    """
    settled = list(arguments)
    like = settled[first]
    maps = like.ndim == 4
    lies = format_of(like) if maps else torch.contiguous_format
    for place in range(count):
        argument = settled[place]
        if argument is None:
            continue
        if not maps or argument.ndim != 4:
            settled[place] = argument.contiguous()
        elif argument.dtype == like.dtype or place == kept:
            settled[place] = argument.contiguous(memory_format=lies)
        else:
            settled[place] = argument.to(like.dtype).contiguous(memory_format=lies)
    return settled


def differentiated(tensor: Tensor) -> bool:
    """Whether something may be differentiated with respect to a tensor, in any mode."""
    return (torch.is_grad_enabled() and tensor.requires_grad) or transformed()


def transformed() -> bool:
    """Whether a transform of torch.func, or forward mode, is at work outside torch.compile."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def tuple_of(outputs: Any) -> tuple[Any, ...]:
    """Outputs as a tuple, also where there is one."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


class Chain:
    """The formulas of reverse mode, for registered passes and for functions alike.

    Args:
        op: its name, for errors.
        rules: how the passes' arguments follow from each other.
        passes: the registered passes of a backend, by name.
    """

    def __init__(self, op: str, rules: Derivatives, passes: SimpleNamespace) -> None:
        self.op, self.rules, self.kept = op, rules, int(rules.keeps)
        self.forward_pass: Any = getattr(passes, op)
        self.backward_pass: Any = getattr(passes, f"{op}_backward", None)
        self.double_pass: Any = getattr(passes, f"{op}_double_backward", None)
        kinds = [str(argument.type) for argument in self.forward_pass._schema.arguments]
        given = len(kinds)
        # Arguments that are tensors, or None: they come before all others.
        self.tensors = sum(kind in ("Tensor", "Optional[Tensor]") for kind in kinds)
        self.constants = slice(self.tensors, given - self.kept)
        # Gradients of what is not differentiated for.
        self.rest = (None,) * (given - rules.inputs)
        # How the two other passes are reached: replaced where they are functions.
        self.backward: Callable[..., Any] = self.run_backward
        self.double: Callable[..., Any] = self.run_double

    def run_forward(self, *arguments: Any) -> tuple[Any, ...]:
        """The forward pass on any strides."""
        return tuple_of(self.forward_pass(*settle(arguments, 0, self.tensors)))

    def run_backward(self, *arguments: Any) -> tuple[Any, ...]:
        """The backward pass, cotangents of any strides and type."""
        first = self.rules.outputs + self.kept
        settled = settle(arguments, first, first + self.tensors, first - self.kept)
        return tuple_of(self.backward_pass(*settled))

    def run_double(self, *arguments: Any) -> tuple[Any, ...]:
        """The double backward pass, tangents and cotangents of any strides and type."""
        first = self.rules.inputs + self.rules.outputs + self.kept
        settled = settle(arguments, first, first + self.tensors, first - self.kept)
        return tuple_of(self.double_pass(*settled))

    def save_forward(self, ctx: Any, arguments: tuple[Any, ...], outputs: Any) -> tuple[Any, ...]:
        """Keep, and return, what the backward pass needs: ``kept``, then the tensors."""
        rules = self.rules
        ctx.set_materialize_grads(False)
        if len(outputs) > rules.outputs:
            ctx.mark_non_differentiable(*outputs[rules.outputs :])
        ctx.constants = arguments[self.constants]
        saved = arguments[: self.tensors]
        saved = (outputs[-1], *saved) if rules.keeps else saved
        ctx.save_for_backward(*saved)
        return saved

    def forward_backward(self, ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        """Gradients of the forward pass's arguments."""
        rules = self.rules
        cotangents = cotangents[: rules.outputs]
        needs = ctx.needs_input_grad[: rules.inputs]
        if True not in needs or all(cotangent is None for cotangent in cotangents):
            return (*[None] * rules.inputs, *self.rest)
        flags = needs if rules.needs else ()
        grads = self.backward(*cotangents, *ctx.saved_tensors, *ctx.constants, *flags)
        if False in needs:
            grads = tuple(g if need else None for g, need in zip(grads, needs, strict=True))
        return grads + self.rest

    def save_backward(self, ctx: Any, arguments: tuple[Any, ...], outputs: Any) -> tuple[Any, ...]:
        """Keep, and return, what the double backward pass needs: all tensors."""
        rules = self.rules
        tensors = rules.outputs + self.kept + self.tensors
        end = len(arguments) - (rules.inputs if rules.needs else 0)
        ctx.set_materialize_grads(False)
        ctx.constants, ctx.given = arguments[tensors:end], len(arguments)
        ctx.needs = arguments[end:] or (True,) * rules.inputs
        absent = [o for o, need in zip(tuple_of(outputs), ctx.needs, strict=True) if not need]
        ctx.mark_non_differentiable(*absent)
        ctx.save_for_backward(*arguments[:tensors])
        return arguments[:tensors]

    def backward_backward(self, ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        """Gradients of the backward pass's arguments: its cotangents and the inputs."""
        rules, m = self.rules, self.rules.outputs
        tangents = tuple(t if need else None for t, need in zip(tangents, ctx.needs, strict=True))
        if all(tangent is None for tangent in tangents):
            return (None,) * ctx.given
        found = self.double(*tangents, *ctx.saved_tensors, *ctx.constants)
        given = ctx.saved_tensors[:m]
        dots = (None if c is None else dot for c, dot in zip(given, found[:m], strict=True))
        rest = ctx.given - m - self.kept - rules.inputs
        return (*dots, *[None] * self.kept, *found[m:], *[None] * rest)

    def no_third_order(self, ctx: Any, *grads: Any) -> Any:
        """Raise."""
        raise NotImplementedError(
            f"{self.op}: third derivatives are not implemented; "
            'the plain PyTorch version has them: pinmem.backend("reference")'
        )


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
            return looped(Backward, info, in_dims, arguments)

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
            dots = Tangent.apply(*tangents[:n], *ctx.saved_tensors, *ctx.constants)
            return (*dots, *[None] * (ctx.results - m))

        @staticmethod
        def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
            return looped(Forward, info, in_dims, arguments)

    chain.backward, chain.double = Backward.apply, Double.apply
    return SimpleNamespace(forward=Forward.apply, backward=Backward.apply, double=Double.apply)


def below_autograd(run: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A pass inside a function: the registered formulas are not entered a second time."""
    with torch._C._AutoDispatchBelowAutograd():
        return run(*arguments)


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
