"""Declaring an op: schemas, fake kernels and the chain of autograd formulas, once per backend."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from pinmem.backends import KERNEL_BACKENDS


class Pass(NamedTuple):
    """One of an op's passes: forward, backward or backward-of-backward.

    ``setup(ctx, inputs, output)`` and ``backward(passes, ctx, *grads)`` are the autograd formula,
    where ``passes.<name>`` is a sibling pass of the same backend.
    """

    schema: str
    fake: Callable[..., Any]
    setup: Callable[..., None] | None = None
    backward: Callable[..., Any] | None = None


def declare(op: str, **passes: Pass) -> dict[str, SimpleNamespace]:
    """Register the passes of ``op`` under every kernel backend.

    Returns ``{backend: namespace}`` whose attributes are the callable passes.
    """
    return {backend: _declare_for(backend, op, passes) for backend in KERNEL_BACKENDS}


def _declare_for(backend: str, op: str, passes: dict[str, Pass]) -> SimpleNamespace:
    library = f"pinmem_{backend}"
    callables = SimpleNamespace()
    for name, one in passes.items():
        qualified = f"{library}::{name}"
        torch.library.define(qualified, one.schema)
        torch.library.register_fake(qualified, one.fake)
        if backend == "triton":
            # Imported at the first call: Triton takes half a second to import.
            torch.library.impl(qualified, ("cpu", "cuda"), partial(_run_triton, op, name))
        if one.backward is not None:
            torch.library.register_autograd(
                qualified, partial(one.backward, callables), setup_context=one.setup
            )
        elif name.endswith("_double_backward"):
            torch.library.register_autograd(qualified, partial(_no_third_order, op))
        setattr(callables, name, getattr(getattr(torch.ops, library), name).default)
    return callables


def _run_triton(op: str, name: str, *args: Any) -> Any:
    return _triton_pass(op, name)(*args)


@functools.cache
def _triton_pass(op: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"pinmem.kernels.{op}"), name)


def _no_third_order(op: str, ctx: Any, *grads: Any) -> Any:
    raise NotImplementedError(
        f"{op}: third derivatives are not implemented; "
        'the plain PyTorch version has them: pinmem.backend("reference")'
    )
