"""Declaring an op: schemas, fake kernels and derivatives, once per backend."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from pinmem.backends import KERNEL_BACKENDS
from pinmem.ops._transforms import Chain, Derivatives, functions, transformed


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
    for name, one in passes.items():
        qualified = f"{library}::{name}"
        torch.library.define(qualified, one.schema)
        torch.library.register_fake(qualified, one.fake)
        if backend == "triton":
            # Imported at the first call: Triton takes half a second to import.
            torch.library.impl(qualified, ("cpu", "cuda"), partial(_run_triton, op, name))
        setattr(registered, name, getattr(getattr(torch.ops, library), name).default)
    chain = Chain(op, rules or Derivatives(inputs=0, outputs=0), registered)
    if rules is None:
        return chain.run_forward
    for name, formula, save in (
        (op, chain.forward_backward, chain.save_forward),
        (f"{op}_backward", chain.backward_backward, chain.save_backward),
        (f"{op}_double_backward", chain.no_third_order, None),
    ):
        torch.library.register_autograd(
            f"{library}::{name}", formula, setup_context=_setup(save) if save else None
        )
    # A registered op costs 10 us less per call than a function, and is what torch.compile takes;
    # under a transform it would raise, or have no tangent.
    transforming = functions(op, rules, registered)
    chain.backward = _either(transforming.backward, chain.run_backward)
    chain.double = _either(transforming.double, chain.run_double)
    return _either(transforming.forward, chain.run_forward)


def _either(function: Callable[..., Any], registered: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> tuple[Any, ...]:
        return function(*arguments) if transformed() else registered(*arguments)

    return call


def _setup(save: Callable[..., Any]) -> Callable[..., None]:
    """``save`` under the names of arguments that torch.library asks for."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, inputs, output)

    return setup_context


def _run_triton(op: str, name: str, *args: Any) -> Any:
    return _triton_pass(op, name)(*args)


@functools.cache
def _triton_pass(op: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"pinmem.kernels.{op}"), name)
