"""Which implementation of an op runs, and up to which sizes."""

from __future__ import annotations

import functools
import sys

import pytest
import torch

import pinmem
from pinmem import backends, ops, reference

from .build_tools import ROOT
from .op_cases import SMALL, SMOOTH, TRITON_ON, assert_bitwise, build, implementations


def test_backends_are_chosen_and_refused() -> None:
    assert pinmem.get_backend() == "auto"
    with pytest.raises(ValueError, match="backend: got 'cudnn'"):
        pinmem.set_backend("cudnn")
    with pinmem.backend("cpu"):
        assert pinmem.get_backend() == "cpu"
        half = torch.zeros(1, 2, 1, 1, dtype=torch.float16)
        with pytest.raises(pinmem.BackendError, match="memory_read: backend 'cpu' cannot run"):
            ops.memory_read(half, torch.zeros(1, 2))
    assert pinmem.get_backend() == "auto"
    # auto takes what the library does not.
    assert ops.memory_read(half, torch.zeros(1, 2))[0].shape == (1, 4, 1, 1)
    if not torch.cuda.is_available():
        with pytest.raises(pinmem.BackendError, match="no CUDA device"):
            pinmem.set_backend("cuda")


@pytest.mark.parametrize("op", ops.__all__)
def test_how_many_classes_a_gpus_kernels_take(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "unavailable", lambda name: "")
    monkeypatch.setattr(backends, "_implements", lambda name, op: True)
    own = backends.ON_GPU[op]
    most = backends.MOST_CLASSES[own]
    choose = functools.partial(backends.unsupported.__wrapped__, own, op, "cuda", torch.float32)
    assert choose(most) == ""
    assert f"at most {most} slots or classes" in choose(most + 1)


@pytest.mark.parametrize("device", TRITON_ON)
def test_more_classes_than_a_gpus_kernels_take(device: str) -> None:
    query, memory = torch.randn(1, 4, 2, 2, device=device), torch.randn(65, 4, device=device)
    with pinmem.backend("triton"), pytest.raises(pinmem.BackendError, match="at most 64 slots"):
        ops.memory_read(query, memory)
    _, scores = ops.memory_read(query, memory)
    expected = torch.einsum("bchw,kc->bkhw", torch.nn.functional.normalize(query, dim=1), memory)
    torch.testing.assert_close(scores, expected)


def test_more_channels_than_a_block_of_a_gpu_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto takes plain PyTorch for them."""
    monkeypatch.setattr(sys.modules["pinmem.ops.class_sums"], "select", lambda *_: "cuda")
    features, labels = torch.randn(1, 2401, 2, 3), torch.zeros(1, 4, 5, dtype=torch.uint8)
    sums, _ = ops.class_sums(features, labels, 2)
    wanted, _ = reference.class_sums(features, labels, 2)
    assert torch.equal(sums, wanted)


def test_an_op_that_a_backend_does_not_have() -> None:
    logits, target = torch.zeros(1, 2, 1, 1), torch.zeros((1, 2, 2), dtype=torch.uint8)
    with pinmem.backend("triton"), pytest.raises(pinmem.BackendError, match="has no upsampled_con"):
        ops.upsampled_confusion(logits, target)


@pytest.mark.parametrize(
    "op, backend, device",
    [
        case
        for case in implementations(["memory_read", "memory_read_project", "class_sums"])
        if case.values[1] != "cpu"
    ],
)
def test_far_pixels(op: str, backend: str, device: str) -> None:
    """The last rows of a map of more than 2^31 elements are what they are alone."""
    side = 2900 if device == "cuda" else 9
    channels = 256
    features = torch.randn(1, channels, side, side, dtype=torch.bfloat16, device=device)
    features.requires_grad_()
    parameters = {"dtype": torch.bfloat16, "device": device}
    memory = torch.randn(19, channels, **parameters)
    weight = torch.randn(32, 2 * channels, **parameters)
    labels = torch.randint(0, 19, (1, side, side), dtype=torch.uint8, device=device)
    cotangent = torch.randn(19, channels, device=device)

    def last_rows(first: int) -> tuple[torch.Tensor, ...]:
        rows = features[:, :, first:].contiguous()
        with pinmem.backend(backend):
            if op == "class_sums":
                outputs = ops.class_sums(rows, labels[:, first:].contiguous(), num_classes=19)[:1]
                cotangents = (cotangent,)
            else:
                arguments = (rows, memory) if op == "memory_read" else (rows, memory, weight)
                outputs = getattr(ops, op)(*arguments)
                cotangents = tuple(output.detach() for output in outputs)
            (gradient,) = torch.autograd.grad(outputs, rows, cotangents)
        maps = [output for output in outputs if output.ndim == 4]
        return tuple(each[:, :, -2:].detach().clone() for each in (gradient, *maps))

    for whole, alone in zip(last_rows(0), last_rows(side - 2), strict=True):
        torch.testing.assert_close(whole, alone, msg=lambda message: f"{op}: {message}")


def test_auto_takes_the_library_on_a_cpu() -> None:
    for op in ops.__all__:
        assert backends.candidates(op, "cpu", torch.float32)[0] == "cpu"
        assert backends.candidates(op, "cpu", torch.float16) == ("reference",)


@pytest.mark.parametrize("op", SMOOTH)
def test_plain_pytorch_keeps_its_types_under_autocast(op: str) -> None:
    """Outputs, and the gradients that are taken outside of it, as a step does."""
    case = build(op, SMALL[0]).to(torch.float32, "cpu", torch.contiguous_format)
    found = []
    for enabled in (False, True):
        leaves = case.leaves()
        with pinmem.backend("reference"), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = dict(zip(case.outputs(), case(*leaves), strict=False))
        total = sum(output.square().sum() for output in outputs.values())
        grads = torch.autograd.grad(total, leaves)
        found.append(outputs | dict(zip(case.arguments, grads, strict=True)))
    assert_bitwise(found[1], found[0])


def on_gpu(backend: str) -> set[str]:
    return {op for op, own in backends.ON_GPU.items() if own == backend}


def test_every_op_has_its_files() -> None:
    """One name everywhere, and on a GPU the backend whose kernels are there."""
    names = set(ops.__all__)
    assert backends.ON_GPU.keys() == names
    triton = {path.parent.name for path in (ROOT / "kernels").glob("*/__init__.py")}
    assert triton == on_gpu("triton")
    kernels = {path.stem for path in (ROOT / "csrc/cuda").glob("*.cu")}
    assert kernels == on_gpu("cuda") | {"release"}
    glue = {path.stem for path in (ROOT / "csrc/cpu").glob("*.cpp")}
    assert glue == names | {"library", "find_bad_label", "conv3x3"}
    assert {path.stem for path in (ROOT / "pinmem/ops").glob("[!_]*.py")} == names


@pytest.mark.parametrize("op, backend, device", implementations())
def test_every_pass_has_a_kernel(op: str, backend: str, device: str) -> None:
    """A pass without one would only be missed by those who differentiate."""
    passes = [op] if op not in SMOOTH else [op, f"{op}_backward", f"{op}_double_backward"]
    with pinmem.backend(backend):
        for name in passes:
            qualified = f"pinmem_{backend}::{name}"
            assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, device.upper()), name
