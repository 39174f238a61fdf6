"""The formulas of reverse mode, one chain for every op: forward, backward, double backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

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
        pixelwise: a pixel's outputs depend on that pixel of the maps alone.
        zeros: cotangents of zero, from the forward's arguments, where they cannot be omitted.
    """

    inputs: int
    outputs: int
    keeps: bool = False
    needs: bool = False
    pixelwise: bool = False
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


def below_autograd(run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A pass inside a function: the registered formulas are not entered a second time."""
    with torch._C._AutoDispatchBelowAutograd():
        return run(*arguments)
