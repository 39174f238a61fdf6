"""Declaring an op: schemas, fake kernels and derivatives, once per backend."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.autograd import Function

from pinmem.backends import KERNEL_BACKENDS
from pinmem.ops._chain import Chain, Derivatives, below_autograd
from pinmem.ops._transforms import functions, transformed


class Pass(NamedTuple):
    """One of an op's passes: forward, backward or backward-of-backward."""

    schema: str
    fake: Callable[..., Any]


def declare(
    op: str, rules: Derivatives | None = None, **passes: Pass
) -> dict[str, Callable[..., tuple[Any, ...]]]:
    """Register the passes of ``op`` under every kernel backend.

    Returns ``{backend: function}``: the op as a function of its forward pass's arguments, which
    returns a tuple. Without ``rules`` it has no derivatives.
    """
    return {backend: _declare_for(backend, op, rules, passes) for backend in KERNEL_BACKENDS}


def _declare_for(
    backend: str, op: str, rules: Derivatives | None, passes: dict[str, Pass]
) -> Callable[..., tuple[Any, ...]]:
    library = f"pinmem_{backend}"
    registered = SimpleNamespace()
    for name, declared in passes.items():
        qualified = f"{library}::{name}"
        torch.library.define(qualified, declared.schema)
        torch.library.register_fake(qualified, declared.fake)
        if backend == "triton":
            # Imported at the first call: Triton takes half a second to import.
            torch.library.impl(qualified, ("cpu", "cuda"), partial(_run_triton, op, name))
        setattr(registered, name, getattr(getattr(torch.ops, library), name).default)
    chain = Chain(op, rules or Derivatives(inputs=0, outputs=0), registered)
    if rules is None:
        return chain.run_forward
    for name, attribute, formula, save in (
        (op, "forward_pass", chain.forward_backward, chain.save_forward),
        (f"{op}_backward", "backward_pass", chain.backward_backward, chain.save_backward),
        (f"{op}_double_backward", "double_pass", chain.no_third_order, None),
    ):
        plain = getattr(registered, name)
        one = _differentiable(plain, formula, save)
        _fragment(library).impl(name, one, "Autograd")
        setattr(chain, attribute, _either(torch.compiler.is_compiling, plain, one))
    # Under a transform these would raise, or have no tangent.
    transforming = functions(op, rules, registered)
    chain.backward = _either(transformed, transforming.backward, chain.run_backward)
    chain.double = _either(transformed, transforming.double, chain.run_double)
    return _either(transformed, transforming.forward, chain.run_forward)


def _differentiable(
    registered: Callable[..., Any], formula: Callable[..., Any], save: Callable[..., Any] | None
) -> Callable[..., Any]:
    """A registered pass with its formula of reverse mode.

    What torch.library.register_autograd makes, without its 5 us per call for arguments left at
    their defaults, which no pass has.
    """

    class Reverse(Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            outputs = below_autograd(registered, arguments)
            if save is not None:
                save(ctx, arguments, outputs)
            return outputs

        backward = staticmethod(formula)

    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return Reverse.apply(*arguments)
        return below_autograd(registered, arguments)

    return call


@functools.cache
def _fragment(library: str) -> torch.library.Library:
    """Registrations live as long as the object does that made them."""
    return torch.library.Library(library, "FRAGMENT")


def _either(
    asked: Callable[[], bool], one: Callable[..., Any], other: Callable[..., Any]
) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return one(*arguments) if asked() else other(*arguments)

    return call


def _run_triton(op: str, name: str, *args: Any) -> Any:
    return _triton_pass(op, name)(*args)


@functools.cache
def _triton_pass(op: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"pinmem.kernels.{op}"), name)
