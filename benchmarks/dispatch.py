"""What it costs the host to call an op at all, beside PyTorch's own dispatch.

Inputs are tiny. The kernels of the C++ library run. Those of a GPU do not where there is none, but
everything up to their launch does, on CPU tensors (CUDA's in its emulation). PyTorch's own dispatch
is an op registered as ours are, which takes as many tensors and only allocates as many.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import pinmem
from benchmarks.plan import BACKWARD, FORWARD, Plan
from benchmarks.timing import seconds_on_cpu
from pinmem import backends, ops

# Microseconds: backend -> "PyTorch" and "ours" -> pass.
Found = dict[str, dict[str, dict[str, float]]]


class Tiny(NamedTuple):
    """A function of tensors, the first of which are differentiated for."""

    function: Callable[..., Any]
    tensors: list[Tensor]
    leaves: int

    def forward(self) -> Any:
        with torch.no_grad():
            return self.function(*self.tensors)

    def backward(self) -> Any:
        outputs = self.function(*self.tensors)
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        leaves = self.tensors[: self.leaves]
        return torch.autograd.grad(first, leaves, torch.ones_like(first), allow_unused=True)


def measure(plan: Plan) -> tuple[dict[str, Found], dict[str, str]]:
    """Microseconds of every op on every backend that can be asked here; what cannot, and why."""
    table: dict[str, Found] = {op: {} for op in ops.__all__}
    skipped = {}
    asked = [(plan.device, plan.device), ("triton", "cpu")]
    if plan.device == "cpu":
        asked.append(("cuda", "cpu"))
    for backend, device in asked:
        for op, found in table.items():
            try:
                if not _asked(backend, device, op):
                    continue
                tiny = _tiny(device)[op]
                with _serving(backend, device):
                    ours = _both_passes(plan, device, tiny)
                own = _both_passes(plan, device, _of_pytorch(op, tiny))
                found[backend] = {"PyTorch": own, "ours": ours}
            except Exception as error:
                skipped[f"calling {op}, {backend}"] = f"{type(error).__name__}: {error}"
    return table, skipped


def _asked(backend: str, device: str, op: str) -> bool:
    """Whether a backend has an op; raises where it cannot be asked."""
    if (backend, device) == ("cuda", "cpu"):
        return backends.ON_GPU[op] == "cuda"
    if backend != "triton":
        return not backends.unsupported(backend, op, backend, torch.float32)
    if backends.triton_interpreted():
        raise RuntimeError("TRITON_INTERPRET is set")
    importlib.import_module("triton")
    return find_spec(f"pinmem.kernels.{op}") is not None


@contextlib.contextmanager
def _serving(backend: str, device: str) -> Iterator[None]:
    """A backend; a GPU's takes tensors on the CPU and launches nothing."""
    with contextlib.ExitStack() as stack:
        if backend == "triton":
            launch = importlib.import_module("pinmem.kernels.launch")
            stack.enter_context(launch.without_launching())
            for question in ("unavailable", "unsupported"):
                stack.enter_context(mock.patch.object(backends, question, lambda *_: ""))
        if (backend, device) == ("cuda", "cpu"):
            emulation = importlib.import_module("tests.cuda_emulation")
            stack.enter_context(emulation.emulated())
            nothing = {"PINMEM_EMULATION_ORDER": "none"}
            stack.enter_context(mock.patch.dict(os.environ, nothing))
        stack.enter_context(pinmem.backend(backend))
        yield


def _tiny(device: str) -> dict[str, Tiny]:
    def of(*shape: int) -> Tensor:
        return torch.ones(shape, device=device)

    x, labels = of(1, 4, 1, 1), torch.zeros((1, 1, 1), dtype=torch.uint8, device=device)
    update = functools.partial(ops.memory_update, momentum=0.8)
    matrix, vector = of(2, 4), of(2)
    return {
        "memory_read": Tiny(ops.memory_read, [x, matrix], 2),
        "memory_read_project": Tiny(ops.memory_read_project, [x, matrix, of(3, 8)], 3),
        "upsampled_cross_entropy": Tiny(ops.upsampled_cross_entropy, [x, labels], 1),
        "class_sums": Tiny(lambda x, labels: ops.class_sums(x, labels, 2), [x, labels], 1),
        "memory_update": Tiny(update, [matrix, of(2, 4), vector, of(2, 4), of(2)], 5),
        "upsampled_confusion": Tiny(ops.upsampled_confusion, [x, labels], 0),
    }


def _of_pytorch(op: str, tiny: Tiny) -> Tiny:
    """An op that only allocates what ``op`` returns, and a backward op that does."""
    with pinmem.backend("reference"):
        outputs = tiny.forward()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = tuple((o.shape, o.dtype) for o in outputs)
    gradients = tuple((t.shape, t.dtype) for t in tiny.tensors[: tiny.leaves])
    return tiny._replace(function=_registered(op, len(tiny.tensors), results, gradients))


@functools.cache
def _registered(op: str, inputs: int, results: tuple, gradients: tuple) -> Callable[..., Any]:
    backward = _define(f"{op}_backward", inputs + 1, gradients or results)

    def setup(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)

    def gradient(ctx: Any, grad: Tensor, *others: Tensor | None) -> Any:
        grads = backward(grad, *ctx.saved_tensors)
        grads = grads if isinstance(grads, tuple) else (grads,)
        return (*grads, *[None] * (inputs - len(grads)))

    return _define(op, inputs, results, gradient, setup)


def _no_more(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError


def _define(
    name: str, inputs: int, outputs: tuple, backward: Any = _no_more, setup: Any = None
) -> Callable[..., Any]:
    qualified = f"pinmem_benchmarks::{name}"
    arguments = ", ".join(f"Tensor x{i}" for i in range(inputs))
    torch.library.define(qualified, f"({arguments}) -> ({', '.join(['Tensor'] * len(outputs))})")

    def allocate(first: Tensor, *others: Tensor) -> Any:
        made = tuple(first.new_empty(shape, dtype=dtype) for shape, dtype in outputs)
        return made if len(made) > 1 else made[0]

    torch.library.impl(qualified, ("cpu", "cuda"), allocate)
    torch.library.register_autograd(qualified, backward, setup_context=setup)
    return getattr(torch.ops.pinmem_benchmarks, name).default


def _both_passes(plan: Plan, device: str, tiny: Tiny) -> dict[str, float]:
    for leaf in tiny.tensors[: tiny.leaves]:
        leaf.requires_grad_()
    found = {FORWARD: _microseconds(plan, device, tiny.forward)}
    if tiny.leaves:
        found[BACKWARD] = _microseconds(plan, device, tiny.backward)
    return found


def _microseconds(plan: Plan, device: str, call: Callable[[], Any]) -> float:
    """The median of samples of a hundred calls."""
    number, samples = (2, 3) if plan.smoke else (100, 50)

    def sample() -> float:
        seconds = seconds_on_cpu(call, number)
        if device == "cuda":
            torch.cuda.synchronize()
        return 1e6 * seconds

    sample()
    return median(sample() for _ in range(samples))
