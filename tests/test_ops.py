"""The contract of an op, for every op, backend, dtype, memory format and shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import pinmem
from pinmem import backends, ops

from .op_cases import (
    BASE,
    FORMATS,
    SIZES,
    SMALL,
    SMOOTH,
    TILED,
    WIDTHS,
    Shape,
    assert_bitwise,
    assert_near,
    build,
    everything,
    implementations,
    judge,
)

# More than one tile, strip or warp, and none: the emulation is faster than Triton's interpreter.
STRIPS = [
    replace(BASE, height=3, width=40, full_height=12, full_width=157),
    replace(BASE, classes=65, channels=256, height=3, full_height=9),
    replace(BASE, batch=0),
]
TINY = Shape(1, 2, 3, 5, 7, classes=3, channels=4)
# An op without maps has no memory format.
MAPS = [op for op in ops.__all__ if any(tensor.ndim == 4 for tensor in build(op, TINY).inputs)]
LAYOUTS = [(op, f) for op in ops.__all__ for f in FORMATS if op in MAPS or f == "nchw"]


def slow(backend: str, device: str) -> bool:
    """Whether a GPU's kernels run on a CPU here: a second where a GPU takes a microsecond."""
    return device == "cpu" and backend in ("triton", "cuda")


def shapes_for(backend: str, device: str) -> list[Shape]:
    if slow(backend, device):
        return [*SMALL, *(TILED if backend == "triton" else STRIPS)]
    most = backends.MOST_CLASSES.get(backend, 256)
    return [shape for shape in (*SIZES, *WIDTHS, *TILED) if shape.classes <= most]


def first_asked(
    op: str, layout: str, backend: str, device: str, shape: Shape, dtype: torch.dtype
) -> bool:
    """Whether a GPU is asked it before all else: sizes that share what takes seconds to compile."""
    usual = op not in MAPS or layout == ("nhwc" if dtype == torch.bfloat16 else "nchw")
    shared = shape in SIZES and shape.classes == BASE.classes
    return device == "cuda" and shared and (usual or backend == "cuda")


def value_cases() -> list:
    """Every op in every memory format and every type that a backend takes, at every shape."""

    cases = []
    for op, layout in LAYOUTS:
        for implementation in implementations([op]):
            _, backend, device = implementation.values
            target = implementation.id.removeprefix(f"{op}-")
            for shape, dtype in itertools.product(
                shapes_for(backend, device), backends.DTYPES[backend]
            ):
                marks = list(implementation.marks)
                values = (op, layout, backend, device, shape, dtype)
                if first_asked(*values):
                    marks.append(pytest.mark.gpu_quick)
                name = f"{op}-{layout}-{target}-{shape}-{str(dtype).removeprefix('torch.')}"
                cases.append(pytest.param(*values, id=name, marks=marks))
    return cases


@pytest.mark.parametrize("op, layout, backend, device, shape, dtype", value_cases())
def test_values(op, layout, backend, device, shape, dtype) -> None:
    """Outputs, first and second order, against float64."""
    judge(op, shape, dtype, layout, backend, device)


@pytest.mark.parametrize("op, backend, device", implementations(["upsampled_cross_entropy"]))
def test_a_peaked_softmax(op: str, backend: str, device: str) -> None:
    """Where one class has nearly all, the second order is the small rest of terms of order one."""
    shape = replace(BASE, height=3, width=5, full_height=1, full_width=1)
    for seed in range(20):
        judge(op, shape, torch.float32, "nchw", backend, device, seed)


def finest(backend: str) -> torch.dtype:
    """The type with the most digits that a backend takes."""
    return backends.DTYPES[backend][0]


@pytest.mark.gpu
@pytest.mark.parametrize("layout", FORMATS)
def test_tf32(layout: str) -> None:
    """Where PyTorch's convolutions are in TF32, as by default, so is the projection."""
    case = build("memory_read_project", BASE).to(torch.float32, "cuda", FORMATS[layout])
    found = []
    for precision in ("ieee", "tf32"):
        torch.backends.cudnn.conv.fp32_precision = precision
        judge("memory_read_project", BASE, torch.float32, layout, "triton", "cuda")
        with pinmem.backend("triton"):
            found.append(case(*case.leaves())[0])
    assert not torch.equal(*found)


@pytest.mark.parametrize("op, backend, device", implementations(SMOOTH, "cpu", "cuda"))
def test_gradcheck(op: str, backend: str, device: str) -> None:
    """Both orders against finite differences, in float64."""
    # Every class present: an absent one is a jump in its mass.
    case = build(op, replace(TINY, labels="clean")).to(
        torch.float64, device, torch.contiguous_format
    )
    with pinmem.backend(backend):
        leaves = case.leaves()

        def smooth_outputs(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(output for output in case(*inputs) if output.requires_grad)

        fast = slow(backend, device)
        assert gradcheck(smooth_outputs, leaves, fast_mode=fast)
        assert gradgradcheck(smooth_outputs, leaves, fast_mode=fast)


@pytest.mark.parametrize("op, backend, device", implementations(SMOOTH))
def test_maml(op: str, backend: str, device: str) -> None:
    """A meta-gradient through an inner step: the reference's, and far from the first-order one."""
    case = build(op, TINY).to(finest(backend), device, torch.contiguous_format)

    def meta_gradient(second_order: bool) -> torch.Tensor:
        leaves = case.leaves()
        inner = _bent(case(*leaves))
        steps = torch.autograd.grad(inner, leaves, create_graph=second_order)
        outer = _bent(case(*(leaf - 0.5 * step for leaf, step in zip(leaves, steps, strict=True))))
        grads = torch.autograd.grad(outer, leaves)
        return torch.cat([grad.flatten() for grad in grads])

    with pinmem.backend("reference"):
        expected = meta_gradient(second_order=True)
    with pinmem.backend(backend):
        got, first_order = meta_gradient(second_order=True), meta_gradient(second_order=False)
    scale = expected.norm()
    bound = 1e-9 if expected.dtype == torch.float64 else 1e-5
    assert (got - expected).norm() <= bound * scale
    assert (first_order - expected).norm() > 1e-2 * scale


def _bent(outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """A scalar that no output enters linearly."""
    return sum((output.square() + output.sin()).sum() for output in outputs)  # type: ignore[return-value]


@pytest.mark.parametrize("op, backend, device", implementations(SMOOTH))
def test_third_order_raises(op: str, backend: str, device: str) -> None:
    case = build(op, TINY).to(finest(backend), device, torch.contiguous_format)
    with pinmem.backend(backend):
        leaf, *rest = case.leaves()
        loss = _bent(case(leaf, *rest))
        for _ in range(2):
            (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
            loss = grad.square().sum()
        with pytest.raises(NotImplementedError, match=f"{op}: third derivatives"):
            torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("op, backend, device", implementations())
def test_opcheck(op: str, backend: str, device: str) -> None:
    """Schema, autograd registration and, outside interpreter and emulation, fake kernels."""
    checks = ["test_schema", "test_autograd_registration"]
    if not slow(backend, device):
        checks += ["test_faketensor", "test_aot_dispatch_dynamic"]
    for layout in FORMATS.values():
        case = build(op, TINY).to(torch.float32, device, layout)
        library = getattr(torch.ops, f"pinmem_{backend}")
        for name, arguments in recorded(case, backend, op):
            packet = getattr(library, name)
            torch.library.opcheck(packet.default, arguments, test_utils=checks)


def recorded(case, backend: str, op: str) -> list[tuple[str, tuple]]:
    """The calls of every pass of an op, as the autograd chain makes them."""
    calls: list[tuple[str, tuple]] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            namespace, name = function._schema.name.split("::")
            if namespace == f"pinmem_{backend}" and name.startswith(op):
                fresh = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]
                calls.append((name, tuple(fresh)))
            return function(*args, **(kwargs or {}))

    with pinmem.backend(backend), Recorder():
        everything(case)
    assert calls[0][0] == op
    assert len(calls) == (1 if op == "upsampled_confusion" else 3)
    return calls


@pytest.mark.parametrize("op, backend, device", implementations())
def test_same_bits_every_time(op: str, backend: str, device: str) -> None:
    """From run to run, and with one thread or two."""
    shape = SMALL[0] if slow(backend, device) else Shape(3, 33, 31, 131, 122)
    case = build(op, shape).to(torch.float32, device, torch.contiguous_format)
    threads = torch.get_num_threads()
    runs = []
    try:
        with pinmem.backend(backend):
            for count in (1, 2, 2):
                torch.set_num_threads(count)
                runs.append(everything(case))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert_bitwise(other, runs[0])


@pytest.mark.parametrize("op, backend, device", implementations())
def test_inputs_are_not_written(op: str, backend: str, device: str) -> None:
    case = build(op, TINY).to(torch.float32, device, torch.channels_last)
    constants = {n: v for n, v in case.constants.items() if isinstance(v, torch.Tensor)}
    given = dict(zip(case.arguments, case.inputs, strict=True)) | constants
    before = {name: tensor.clone() for name, tensor in given.items()}
    with pinmem.backend(backend):
        everything(case)
    assert_bitwise(given, before)


@pytest.mark.parametrize("op, backend, device", implementations())
def test_any_strides(op: str, backend: str, device: str) -> None:
    """Inputs that are dense in neither memory format give what their dense copies give."""
    case = build(op, TINY).to(finest(backend), device, torch.contiguous_format)
    expected = everything(case)

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack([tensor, tensor], dim=-1).flatten(-2)[..., ::2]

    case.inputs = [spread(tensor) for tensor in case.inputs]
    case.constants = {
        n: spread(v) if isinstance(v, torch.Tensor) else v for n, v in case.constants.items()
    }
    assert not case.inputs[0].is_contiguous()
    with pinmem.backend(backend):
        for name, value in everything(case).items():
            torch.testing.assert_close(
                value, expected[name], check_stride=False, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("op, backend, device", implementations(SMOOTH))
def test_asked_in_part(op: str, backend: str, device: str) -> None:
    """One output and one input at a time, in both orders: the rest has no gradient, or is fixed."""
    case = build(op, replace(SMALL[0], channels=7)).to(
        finest(backend), device, torch.contiguous_format
    )

    def parts(i: int, j: int) -> list[torch.Tensor | None]:
        leaves = [tensor.detach().requires_grad_(k == j) for k, tensor in enumerate(case.inputs)]
        output = case(*leaves)[i]
        if not output.requires_grad:
            return []
        (first,) = torch.autograd.grad(output.square().sum(), leaves[j], create_graph=True)
        if not first.requires_grad:
            return [first]
        return [first, *torch.autograd.grad(first.square().sum(), leaves[j], allow_unused=True)]

    outputs = len(case(*case.inputs))
    for i, j in itertools.product(range(outputs), range(len(case.inputs))):
        with pinmem.backend("reference"):
            expected = parts(i, j)
        with pinmem.backend(backend):
            got = parts(i, j)
        for one, other in itertools.zip_longest(got, expected):
            one, other = (torch.zeros(()) if t is None else t.detach() for t in (one, other))
            scale = float(other.abs().max())
            bound = 1e-9 if case.inputs[0].dtype == torch.float64 else 1e-5
            name = f"{case.outputs()[i]} alone for {case.arguments[j]} alone"
            assert_near(name, *torch.broadcast_tensors(one, other), bound * scale + 1e-12)


@pytest.mark.parametrize("op, backend, device", implementations())
def test_autocast_changes_nothing(op: str, backend: str, device: str) -> None:
    """An op computes in the types of its arguments, its passes too."""
    case = build(op, SMALL[0]).to(torch.float32, device, torch.contiguous_format)
    with pinmem.backend(backend):
        expected = everything(case)
        with torch.autocast(device, dtype=torch.bfloat16):
            got = everything(case)
    assert_bitwise(got, expected)


@pytest.mark.parametrize(
    "op, backend, device",
    implementations(["memory_read", "memory_read_project", "upsampled_cross_entropy"]),
)
def test_float32_parameters_with_bfloat16_maps(op: str, backend: str, device: str) -> None:
    """As under autocast; the parameters' gradients stay float32."""
    shape = SMALL[0] if slow(backend, device) else BASE
    case = build(op, shape).to(torch.float32, device, torch.contiguous_format)
    case.inputs[0] = case.inputs[0].bfloat16()
    if case.constants.get("gumbel") is not None:
        case.constants["gumbel"] = case.constants["gumbel"].bfloat16()
    exact_case = case.to(torch.float64, "cpu", torch.contiguous_format)
    with pinmem.backend("reference"):
        exact = everything(exact_case)
    with pinmem.backend(backend):
        ours = everything(case)
    for name, tensor in zip(case.arguments, case.inputs, strict=True):
        assert ours[f"gradient of {name}"].dtype == tensor.dtype, name
    for name, expected in exact.items():
        error = (ours[name].detach().cpu().double() - expected).norm() / expected.norm()
        assert error < 0.02, f"{name}: {error:.3g}"


@pytest.mark.parametrize("op, backend, device", implementations())
def test_compile(op: str, backend: str, device: str) -> None:
    """torch.compile takes forward and backward whole, and gives the same numbers."""
    case = build(op, TINY).to(torch.float32, device, torch.contiguous_format)
    # What is compiled around an interpreted or emulated kernel does not matter.
    compiler = "aot_eager" if slow(backend, device) else "inductor"

    def results(function: Callable[..., tuple[torch.Tensor, ...]]) -> dict[str, torch.Tensor]:
        leaves = case.leaves()
        outputs = dict(zip(case.outputs(), function(*leaves), strict=False))
        if op not in SMOOTH:
            return outputs
        grads = torch.autograd.grad(_bent(tuple(outputs.values())), leaves)
        return outputs | dict(zip(case.arguments, grads, strict=True))

    torch.compiler.reset()
    with pinmem.backend(backend):
        got = results(torch.compile(case.__call__, fullgraph=True, backend=compiler))
        expected = results(case)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=lambda m, n=name: f"{n}: {m}")
