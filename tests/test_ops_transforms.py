"""Every op under every transform of torch.func and in forward mode, against plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import pinmem
from pinmem import ops

from .op_cases import SMALL, SMOOTH, Case, assert_near, build, implementations
from .test_ops import finest

SHAPE = replace(SMALL[0], channels=7)
Scalar = Callable[..., Tensor]


def scalar_of(case: Case) -> Scalar:
    """A function of the inputs that no output enters linearly."""

    def function(*inputs: Tensor) -> Tensor:
        return sum((output.square() + output.sin()).sum() for output in case(*inputs))

    return function


def directions(inputs: list[Tensor], seed: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in inputs
    )


def several(inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Three of each input, all different."""
    return tuple(torch.stack([t, 0.5 * t + 0.1, 1.5 * t]) for t in inputs)


def every(inputs: list[Tensor]) -> tuple[int, ...]:
    return tuple(range(len(inputs)))


def _grad(f: Scalar, inputs: list[Tensor]) -> object:
    return grad(f, every(inputs))(*inputs)


def _grad_of_grad(f: Scalar, inputs: list[Tensor]) -> object:
    def inner(*inputs: Tensor) -> Tensor:
        steps = grad(f, every(list(inputs)))(*inputs)
        return sum(step.square().sum() for step in steps)

    return grad(inner, every(inputs))(*inputs)


def _vjp(f: Scalar, inputs: list[Tensor]) -> object:
    value, pull = vjp(f, *inputs)
    return value, pull(torch.ones_like(value))


def _jvp(f: Scalar, inputs: list[Tensor]) -> object:
    return jvp(f, tuple(inputs), directions(inputs))


def _dual_numbers(f: Scalar, inputs: list[Tensor]) -> object:
    with forward_ad.dual_level():
        dual = map(forward_ad.make_dual, inputs, directions(inputs))
        value, tangent = forward_ad.unpack_dual(f(*dual))
    assert tangent is not None
    return value, tangent


def _dual_numbers_over_reverse(f: Scalar, inputs: list[Tensor]) -> object:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with forward_ad.dual_level():
        dual = [
            forward_ad.make_dual(leaf, v)
            for leaf, v in zip(leaves, directions(inputs), strict=True)
        ]
        grads = torch.autograd.grad(f(*dual), dual, create_graph=True)
        return [forward_ad.unpack_dual(each).tangent for each in grads]


def _reverse_over_forward(f: Scalar, inputs: list[Tensor]) -> object:
    def along(*inputs: Tensor) -> Tensor:
        return jvp(f, tuple(inputs), directions(list(inputs)))[1]

    return grad(along, every(inputs))(*inputs)


def _forward_over_reverse(f: Scalar, inputs: list[Tensor]) -> object:
    return jvp(grad(f, every(inputs)), tuple(inputs), directions(inputs))


def _jacrev(f: Scalar, inputs: list[Tensor]) -> object:
    return jacrev(f, every(inputs))(*inputs)


def _jacfwd(f: Scalar, inputs: list[Tensor]) -> object:
    return jacfwd(f, every(inputs))(*inputs)


def _hessian(f: Scalar, inputs: list[Tensor]) -> object:
    return hessian(f)(*inputs)


def _vmap(f: Scalar, inputs: list[Tensor]) -> object:
    return vmap(f)(*several(inputs))


def _vmap_of_one(f: Scalar, inputs: list[Tensor]) -> object:
    """The first input alone is mapped over, at its last axis."""
    first = several(inputs)[0].movedim(0, -1)
    return vmap(f, in_dims=(-1, *[None] * (len(inputs) - 1)))(first, *inputs[1:])


def _vmap_of_grad(f: Scalar, inputs: list[Tensor]) -> object:
    return vmap(grad(f, every(inputs)))(*several(inputs))


def _vmap_of_jvp(f: Scalar, inputs: list[Tensor]) -> object:
    def along(*inputs: Tensor) -> object:
        return jvp(f, tuple(inputs), tuple(inputs))

    return vmap(along)(*several(inputs))


def _vmap_of_grad_of_grad(f: Scalar, inputs: list[Tensor]) -> object:
    def second(*inputs: Tensor) -> object:
        return _grad_of_grad(f, list(inputs))

    return vmap(second)(*several(inputs))


def _functional_call(f: Scalar, inputs: list[Tensor]) -> object:
    """A MAML step in the usual form: the inputs are a module's parameters."""

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, tensor in enumerate(inputs):
                self.register_parameter(f"p{i}", torch.nn.Parameter(tensor))

        def forward(self) -> Tensor:
            return f(*self.parameters())

    module = Module()
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(module, parameters, ())

    def outer(parameters: dict[str, Tensor]) -> Tensor:
        steps = grad(loss)(parameters)
        return loss({name: p - 0.1 * steps[name] for name, p in parameters.items()})

    return list(grad(outer)(parameters).values())


TRANSFORMS = [
    _grad, _grad_of_grad, _vjp, _jvp, _dual_numbers, _dual_numbers_over_reverse,
    _reverse_over_forward, _forward_over_reverse, _jacrev, _jacfwd, _hessian, _vmap, _vmap_of_one,
    _vmap_of_grad, _vmap_of_jvp, _vmap_of_grad_of_grad, _functional_call,
]  # fmt: skip


@pytest.mark.parametrize("op, backend, device", implementations(SMOOTH))
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.__name__[1:])
def test_transform(transform: Callable, op: str, backend: str, device: str) -> None:
    """As on the reference backend, to 1e-8 in float64."""
    case = build(op, SHAPE).to(finest(backend), device, torch.contiguous_format)
    with pinmem.backend("reference"):
        expected, _ = torch.utils._pytree.tree_flatten(transform(scalar_of(case), case.inputs))
    with pinmem.backend(backend):
        got, _ = torch.utils._pytree.tree_flatten(transform(scalar_of(case), case.inputs))
    assert len(got) == len(expected)
    precise = case.inputs[0].dtype == torch.float64
    for i, (one, other) in enumerate(zip(got, expected, strict=True)):
        scale = max(float(other.detach().abs().max()), 1e-3)
        assert_near(f"result {i}", one, other, (1e-8 if precise else 1e-4) * scale)
    assert any(other.detach().abs().max() > 0 for other in expected)


class _Calls(TorchDispatchMode):
    """The passes of an op that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith("pinmem"):
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", ["memory_read", "memory_read_project"])
@pytest.mark.parametrize(("dim", "asked"), [(0, (0,)), (2, (0,)), (0, (0, 1)), (0, (-1,))])
def test_maps_alone_are_folded_into_the_batch(op: str, dim: int, asked: tuple[int, ...]) -> None:
    """Where no gradient is asked that pixels share: that is each element's own."""
    case = build(op, SHAPE).to(finest("cpu"), "cpu", torch.contiguous_format)
    function, (query, *others) = scalar_of(case), case.inputs
    queries = torch.stack([query, 2 * query, query - 1], dim)

    def gradient(query: Tensor) -> tuple[Tensor, ...]:
        return grad(function, asked)(query, *others)

    with pinmem.backend("cpu"):
        each = [gradient(q) for q in queries.unbind(dim)]
        with _Calls() as calls:
            got = vmap(gradient, in_dims=dim)(queries)
    assert calls.names == [op, *[f"{op}_backward"] * (1 if asked == (0,) else 3)]
    expected = tuple(map(torch.stack, zip(*each, strict=True)))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("op, backend, device", implementations(SMOOTH))
def test_forward_over_forward_raises(op: str, backend: str, device: str) -> None:
    case = build(op, SHAPE).to(finest(backend), device, torch.contiguous_format)
    function, inputs = scalar_of(case), tuple(case.inputs)

    def along(*inputs: Tensor) -> Tensor:
        return jvp(function, inputs, directions(list(inputs)))[1]

    with (
        pinmem.backend(backend),
        pytest.raises(NotImplementedError, match=f"{op}: forward mode over forward mode"),
    ):
        jvp(along, inputs, directions(case.inputs))


@pytest.mark.parametrize("op, backend, device", implementations(SMOOTH))
def test_third_order_raises_under_transforms(op: str, backend: str, device: str) -> None:
    case = build(op, SHAPE).to(finest(backend), device, torch.contiguous_format)
    function, inputs = scalar_of(case), case.inputs

    def second(first: Tensor) -> Tensor:
        def slope(first: Tensor) -> Tensor:
            return grad(function)(first, *inputs[1:]).square().sum()

        return grad(slope)(first).square().sum()

    with (
        pinmem.backend(backend),
        pytest.raises(NotImplementedError, match=f"{op}: third derivatives"),
    ):
        grad(second)(inputs[0])


@pytest.mark.parametrize("op, backend, device", implementations(SMOOTH))
def test_transforms_of_a_graph_built_before(op: str, backend: str, device: str) -> None:
    """Batched cotangents, and dual numbers that only the backward pass sees."""
    case = build(op, SHAPE).to(finest(backend), device, torch.contiguous_format)

    def both() -> list[Tensor]:
        leaf, *rest = case.leaves()
        output = case(leaf, *rest)[0]
        cotangents = directions([torch.stack([output.detach()] * 3)])[0]
        (batched,) = torch.autograd.grad(
            output, leaf, cotangents, is_grads_batched=True, retain_graph=True
        )
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(cotangents[0], cotangents[1])
            (grad_of,) = torch.autograd.grad(output, leaf, dual)
            tangent = forward_ad.unpack_dual(grad_of).tangent
        assert tangent is not None
        torch.testing.assert_close(tangent, batched[1])
        return [batched, tangent]

    with pinmem.backend("reference"):
        expected = both()
    with pinmem.backend(backend):
        got = both()
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("op, backend, device", implementations(["class_sums"]))
def test_labels_are_mapped_over_and_checked(op: str, backend: str, device: str) -> None:
    features = torch.randn(3, 1, 4, 2, 2, dtype=torch.float64, device=device)
    labels = torch.randint(0, 5, (3, 1, 4, 4), device=device)

    def sums(features: Tensor, labels: Tensor) -> Tensor:
        return ops.class_sums(features, labels, 5)[0]

    with pinmem.backend(backend):
        got = vmap(sums)(features, labels)
        one_by_one = torch.stack([sums(f, t) for f, t in zip(features, labels, strict=True)])
        assert torch.equal(got, one_by_one)
        if device == "cpu":
            labels[1, 0, 2, 2] = 7
            with pytest.raises(ValueError, match="labels: got label 7"):
                vmap(sums)(features, labels)
