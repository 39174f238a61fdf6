"""What the tests of an op share: inputs of every shape, outputs and both orders of gradients."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import pinmem
from pinmem import backends, ops

# The floor of the comparison, of the largest value: roundings that plain PyTorch may happen to
# escape in a small case, one of a half or eight of float32 (torch.testing allows eleven). Plain
# float64 is its own oracle, to 1e-11. Scalars and vectors are sums over hundreds of terms of order
# one that may cancel: a few roundings of such a term.
FLOOR = {
    torch.float64: 1e-11,
    torch.float32: 2**-20,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}
SUM_FLOOR = dict.fromkeys(FLOOR, 2**-21) | {torch.float64: 1e-14}
# Where Triton's kernels run: without a GPU in the interpreter.
TRITON_ON = [pytest.param("cuda", marks=pytest.mark.gpu) if torch.cuda.is_available() else "cpu"]
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@dataclass(frozen=True)
class Shape:
    """Sizes of one case, and what is special about its labels and arguments."""

    batch: int = 2
    height: int = 5
    width: int = 7
    full_height: int = 17
    full_width: int = 26
    classes: int = 19
    channels: int = 32
    labels: str = "mixed"
    label_dtype: torch.dtype = torch.uint8
    extras: bool = True
    outputs: int = 0  # of the projection; 0: half as many as channels

    def __str__(self) -> str:
        sizes = f"b{self.batch}-{self.height}x{self.width}-{self.full_height}x{self.full_width}"
        kind = "" if self.label_dtype == torch.uint8 else "-int64"
        plain = "" if self.extras else "-plain"
        outputs = f"-o{self.outputs}" if self.outputs else ""
        return f"{sizes}-k{self.classes}-c{self.channels}{outputs}-{self.labels}{kind}{plain}"


BASE = Shape()
SIZES = [
    BASE,
    replace(BASE, extras=False, label_dtype=torch.int64),
    replace(BASE, batch=1, height=1, width=1, full_height=9, full_width=4),
    replace(BASE, height=4, width=6, full_height=4, full_width=6),
    replace(BASE, batch=1, height=9, width=8, full_height=5, full_width=3),
    replace(BASE, height=6, width=1, full_height=11, full_width=8),
    replace(BASE, height=3, width=5, full_height=1, full_width=1),
    replace(BASE, height=3, width=40, full_height=12, full_width=157),
    replace(BASE, batch=0),
    replace(BASE, classes=1),
    replace(BASE, labels="absent"),
    replace(BASE, labels="ignored"),
    replace(BASE, labels="clean"),
]
WIDTHS = [
    replace(BASE, classes=k, channels=c, height=3, full_height=9)
    for k in (2, 19, 65, 150)
    for c in (32, 256, 768)
] + [replace(BASE, classes=256, channels=2048, height=3, full_height=9)]
# Triton's interpreter takes a second where a kernel takes a microsecond.
SMALL = [
    replace(BASE, batch=1, height=3, width=4, full_height=8, full_width=9, classes=5, channels=6),
    replace(BASE, batch=2, height=1, width=1, full_height=5, full_width=3, classes=3, channels=5),
    replace(BASE, batch=1, height=3, width=2, full_height=2, full_width=3, classes=2, channels=33),
    replace(
        BASE, batch=1, height=2, width=3, full_height=7, full_width=7, classes=19, channels=32,
        labels="ignored", label_dtype=torch.int64, extras=False,
    ),
]  # fmt: skip
# Several tiles of channels, the last of them part empty, and as many slots as a tile has.
_PIXELS = replace(BASE, batch=1, height=1, width=3, full_height=3, full_width=6)
TILED = [
    replace(_PIXELS, classes=64, channels=40),
    replace(_PIXELS, classes=19, channels=300),
    # One output lies alike in both memory formats.
    replace(_PIXELS, height=2, classes=3, channels=6, outputs=1),
    replace(_PIXELS, height=2, classes=3, channels=300, outputs=1),
]


SMOOTH = [op for op in ops.__all__ if op != "upsampled_confusion"]
LABELLED = {
    "upsampled_cross_entropy": "target",
    "class_sums": "labels",
    "upsampled_confusion": "target",
}


def implementations(
    names: Iterable[str] = ops.__all__, *only: str, reference: bool = False
) -> list[Any]:
    """Op, backend and device: all that run here, and those that need a GPU.

    Which backend an op has on a GPU is asked of the table that the library itself uses, with no
    default; test_ops_backends.py holds the table against the files.

    Args:
        names: of the ops.
        only: of the backends; all without it.
        reference: plain PyTorch too, on the CPU.
    """
    cases = []
    for op in names:
        own = backends.ON_GPU[op]
        found = [("cpu", "cpu", "cpu")]
        if reference:
            found.append(("reference", "cpu", "reference"))
        if not torch.cuda.is_available():
            kind = {"triton": "interpreter", "cuda": "emulation"}[own]
            found.append((own, "cpu", f"{own}-{kind}"))
        found.append((own, "cuda", f"{own}-gpu"))
        cases += [
            pytest.param(
                op, backend, device,
                id=f"{op}-{name}",
                marks=[pytest.mark.gpu] if device == "cuda" else [],
            )
            for backend, device, name in found
            if not only or backend in only
        ]  # fmt: skip
    assert cases, f"no implementation of {list(names)}"
    return cases


@dataclass
class Case:
    """An op on concrete inputs, float64 on the CPU until ``to``."""

    op: str
    inputs: list[Tensor]
    constants: dict[str, Any]

    @property
    def arguments(self) -> list[str]:
        """The names of the inputs."""
        return list(inspect.signature(getattr(ops, self.op)).parameters)[: len(self.inputs)]

    def outputs(self) -> list[str]:
        """The names of the results, as the schema has them."""
        schema = getattr(torch.ops.pinmem_cpu, self.op).default._schema
        return [output.name for output in schema.returns]

    def to(self, dtype: torch.dtype, device: str, memory_format: torch.memory_format) -> Case:
        """The same numbers, rounded once, in another type, place and memory format."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            moved = value.to(device, dtype if value.is_floating_point() else None)
            return moved.contiguous(memory_format=memory_format) if moved.ndim == 4 else moved

        constants = {name: move(value) for name, value in self.constants.items()}
        return Case(self.op, [move(tensor) for tensor in self.inputs], constants)

    def leaves(self) -> list[Tensor]:
        """The inputs as fresh leaves that require gradients."""
        return [tensor.detach().requires_grad_() for tensor in self.inputs]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = getattr(ops, self.op)(*inputs, **self.constants)
        return found if isinstance(found, tuple) else (found,)


def labels_of(shape: Shape, generator: torch.Generator) -> Tensor:
    size = (shape.batch, shape.full_height, shape.full_width)
    labels = torch.randint(0, shape.classes, size, generator=generator)
    if shape.labels == "absent":
        labels = labels - labels % 2  # every other class never occurs
    if shape.labels == "ignored":
        labels.fill_(255)
    elif shape.labels != "clean":
        labels[torch.rand(size, generator=generator) < 0.2] = 255
    return labels.to(shape.label_dtype)


def build(op: str, shape: Shape, seed: int = 0) -> Case:
    """The case of an op at a shape."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    classes, channels = shape.classes, shape.channels
    size = (shape.height, shape.width)
    features = normal(shape.batch, channels, *size)
    logits = 3 * normal(shape.batch, classes, *size)
    memory = torch.nn.functional.normalize(normal(classes, channels), dim=1)
    labels = labels_of(shape, generator)
    extras = shape.extras
    if op in ("memory_read", "memory_read_project"):
        uniform = torch.rand(shape.batch, classes, *size, generator=generator, dtype=torch.float64)
        gumbel = -(-(uniform * 0.98 + 0.01).log()).log() if extras else None
        outputs = shape.outputs or max(channels // 2, 1)
        weight = normal(outputs, 2 * channels) / channels**0.5
        inputs = [features, memory] if op == "memory_read" else [features, memory, weight]
        return Case(op, inputs, {"gumbel": gumbel})
    if op == "upsampled_cross_entropy":
        weight = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.5
        options = {"temperature": 0.7, "class_weight": weight} if extras else {}
        return Case(op, [logits], {"target": labels, **options})
    if op == "class_sums":
        return Case(op, [features], {"labels": labels, "num_classes": classes})
    if op == "upsampled_confusion":
        return Case(op, [logits], {"target": labels})
    assert op == "memory_update"
    mass = 5 * torch.rand(classes, generator=generator, dtype=torch.float64) + 0.5
    if shape.labels != "clean":
        mass[1::3] = 0
    sums = normal(classes, channels) * mass[:, None]
    inputs = [memory, sums, mass, normal(classes, channels), normal(classes)]
    return Case(op, inputs, {"momentum": 0.8})


def everything(case: Case, seed: int = 1) -> dict[str, Tensor]:
    """Outputs, first-order gradients for random cotangents, and second-order ones.

    The second order is the gradient of ``<first order, random directions>`` with respect to the
    inputs and the cotangents.
    """
    generator = torch.Generator().manual_seed(seed)

    def random_like(tensor: Tensor) -> Tensor:
        # Numbers that every type holds: the oracle is asked for the same derivative.
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).bfloat16()
        # Any strides: a cotangent comes as it comes.
        return values.to(tensor.device, tensor.dtype)

    leaves = case.leaves()
    outputs = case(*leaves)
    names = case.outputs()
    results = dict(zip(names, outputs, strict=False))
    assert len(results) == len(outputs), f"{case.op}: {names} do not name {len(outputs)} outputs"
    smooth = {name: output for name, output in results.items() if output.requires_grad}
    if not smooth:
        return results
    cotangents = [random_like(output).requires_grad_() for output in smooth.values()]
    first = torch.autograd.grad(list(smooth.values()), leaves, cotangents, create_graph=True)
    arguments = case.arguments
    results |= {f"gradient of {n}": grad for n, grad in zip(arguments, first, strict=True)}
    moving = [grad for grad in first if grad.requires_grad]
    directions = [random_like(grad) for grad in moving]
    second = torch.autograd.grad(
        moving, [*leaves, *cotangents], directions, materialize_grads=True, allow_unused=True
    )
    asked = [*arguments, *(f"the cotangent of {name}" for name in smooth)]
    return results | {
        f"second-order gradient of {n}": grad for n, grad in zip(asked, second, strict=True)
    }


def assert_near(name: str, got: Tensor, expected: Tensor, bound: float, note: str = "") -> None:
    """``|got - expected| <= bound`` everywhere, or a line that names the worst element."""
    assert got.shape == expected.shape, f"{name}: {list(got.shape)}, not {list(expected.shape)}"
    if not expected.numel():
        return
    got, expected = (tensor.detach().cpu().double() for tensor in (got, expected))
    error = (got - expected).abs().nan_to_num(nan=torch.inf)
    error = error.masked_fill(got == expected, 0)
    worst = int(error.argmax())
    if not float(error.flatten()[worst]) <= bound:
        place = [int(i) for i in torch.unravel_index(torch.tensor(worst), expected.shape)]
        one, other, off = (float(t.flatten()[worst]) for t in (got, expected, error))
        raise AssertionError(
            f"{name}{place}: got {one:.9g}, expected {other:.9g}, "
            f"off by {off:.3g} where {bound:.3g} is allowed{note}"
        )


def assert_bitwise(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same results by name, each equal to the last bit."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert_near(name, got[name], value, 0.0)


def judge(
    op: str, shape: Shape, dtype: torch.dtype, layout: str, backend: str, device: str, seed: int = 0
) -> None:
    """Assert |ours - float64| <= 2 |plain PyTorch in the same dtype - float64| + a tiny floor."""
    case = build(op, shape, seed)
    rounded = case.to(dtype, device, FORMATS[layout])
    with pinmem.backend("reference"):
        exact = everything(rounded.to(torch.float64, "cpu", torch.contiguous_format))
        plain = everything(rounded)
    with pinmem.backend(backend), poisoned():
        ours = everything(rounded)
    assert ours.keys() == exact.keys()
    for name, expected in exact.items():
        got, theirs = ours[name], plain[name]
        assert got.dtype == theirs.dtype, f"{op}, {name}: {got.dtype}, not {theirs.dtype}"
        bound, note = 0.0, ""
        if expected.numel():
            theirs = float((theirs.detach().cpu().double() - expected.detach()).abs().max())
            bound = 2 * theirs + FLOOR[dtype] * float(expected.detach().abs().max())
            bound += SUM_FLOOR[dtype] if expected.ndim < 2 else 1e-30
            note = f" (plain PyTorch is off by {theirs:.3g})"
        assert_near(f"{op}, {name}", got, expected, bound, note)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside, uninitialised memory is NaN (or the largest integer)."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
