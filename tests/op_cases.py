"""What the tests of an op share: inputs of every shape, outputs and both orders of gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pinmem
from pinmem import ops

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


@dataclass
class Case:
    """An op on concrete inputs, float64 on the CPU until ``to``."""

    call: Callable[..., tuple[Tensor, ...]]
    inputs: list[Tensor]
    constants: dict[str, Any]

    def to(self, dtype: torch.dtype, device: str, memory_format: torch.memory_format) -> Case:
        """The same numbers, rounded once, in another type, place and memory format."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            moved = value.to(device, dtype if value.is_floating_point() else None)
            return moved.contiguous(memory_format=memory_format) if moved.ndim == 4 else moved

        constants = {name: move(value) for name, value in self.constants.items()}
        return Case(self.call, [move(tensor) for tensor in self.inputs], constants)

    def leaves(self) -> list[Tensor]:
        """The inputs as fresh leaves that require gradients."""
        return [tensor.detach().requires_grad_() for tensor in self.inputs]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.call(*inputs, **self.constants)


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
        return Case(getattr(ops, op), inputs, {"gumbel": gumbel})
    if op == "upsampled_cross_entropy":
        weight = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.5
        options = {"temperature": 0.7, "class_weight": weight} if extras else {}
        return Case(_tuple(ops.upsampled_cross_entropy), [logits], {"target": labels, **options})
    if op == "class_sums":
        return Case(ops.class_sums, [features], {"labels": labels, "num_classes": classes})
    if op == "upsampled_confusion":
        return Case(_tuple(ops.upsampled_confusion), [logits], {"target": labels})
    assert op == "memory_update"
    mass = 5 * torch.rand(classes, generator=generator, dtype=torch.float64) + 0.5
    if shape.labels != "clean":
        mass[1::3] = 0
    sums = normal(classes, channels) * mass[:, None]
    inputs = [memory, sums, mass, normal(classes, channels), normal(classes)]
    return Case(ops.memory_update, inputs, {"momentum": 0.8})


def _tuple(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor]]:
    return lambda *inputs, **constants: (function(*inputs, **constants),)


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
    results = {f"output {i}": output for i, output in enumerate(outputs)}
    smooth = [output for output in outputs if output.requires_grad]
    if not smooth:
        return results
    cotangents = [random_like(output).requires_grad_() for output in smooth]
    first = torch.autograd.grad(smooth, leaves, cotangents, create_graph=True)
    results |= {f"gradient {i}": grad for i, grad in enumerate(first)}
    moving = [grad for grad in first if grad.requires_grad]
    directions = [random_like(grad) for grad in moving]
    second = torch.autograd.grad(
        moving, [*leaves, *cotangents], directions, materialize_grads=True, allow_unused=True
    )
    return results | {f"second-order gradient {i}": grad for i, grad in enumerate(second)}


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
        assert ours[name].shape == expected.shape, name
        assert ours[name].dtype == plain[name].dtype, name
        if not expected.numel():
            continue
        got = ours[name].detach().cpu().double()
        assert got.isfinite().all(), f"{name}: not finite"
        expected = expected.detach()
        error = float((got - expected).abs().max())
        theirs = float((plain[name].detach().cpu().double() - expected).abs().max())
        bound = 2 * theirs + FLOOR[dtype] * float(expected.abs().max())
        bound += SUM_FLOOR[dtype] if expected.ndim < 2 else 1e-30
        assert error <= bound, f"{name}: off by {error:.3g}, plain PyTorch by {theirs:.3g}"


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside, uninitialised memory is NaN (or the largest integer)."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
