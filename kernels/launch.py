"""Launching a kernel, or writing down how it would be launched (for compiling without a GPU)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from triton.runtime.jit import JITFunction

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


class CompileCase(NamedTuple):
    """One kernel in one configuration, as its launch would specialise it.

    ``signature`` maps every argument to a Triton type (``"*bf16"``, ``"i32"``, ``"constexpr"``),
    ``constexprs`` holds the values of the latter, ``aligned`` the arguments divisible by 16.
    ``typical`` marks the configuration that training meets: what a quick check compiles. ``grid``
    and ``arguments`` are the launch itself: what it moves can be counted from them.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    typical: bool = False
    grid: int = 0
    arguments: dict[str, Any] = {}  # noqa: RUF012

    @property
    def identity(self) -> tuple[Any, ...]:
        """The same for launches that compile to the same kernel."""
        constants = tuple((name, str(value)) for name, value in self.constexprs.items())
        signature = tuple(self.signature.items())
        kernel = (self.kernel.__module__, self.kernel.__name__)
        options = (self.num_warps, self.num_stages, self.maxnreg)
        return (*kernel, signature, constants, self.aligned, *options)


class _Recording:
    """The cases being written down, or None when kernels really run."""

    cases: list[CompileCase] | None = None
    label = ""
    typical = False


@contextlib.contextmanager
def recording(label: str, typical: bool = False) -> Iterator[list[CompileCase]]:
    """Inside the block launches run nothing (meta tensors do); they end up in the list."""
    cases: list[CompileCase] = []
    _Recording.cases, _Recording.label, _Recording.typical = cases, label, typical
    try:
        yield cases
    finally:
        _Recording.cases = None


def launch(
    kernel: Any,
    grid: int,
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 1,
    maxnreg: int | None = None,
    **constexprs: Any,
) -> None:
    """Run ``kernel`` with ``grid`` programs on the device of its first tensor; none for grid 0.

    ``args`` come in the order of the kernel's arguments: tensors, integers, or None for an absent
    tensor. Everything known at compile time comes by name. ``maxnreg`` is the most registers a
    thread may have: NVIDIA's assembler then no longer spills a few for one more resident program.
    """
    if _Recording.cases is not None:
        case = _case(kernel, grid, args, constexprs, num_warps, num_stages, maxnreg)
        _Recording.cases.append(case)
        return
    if grid == 0:
        return
    tensor = next(arg for arg in args if isinstance(arg, torch.Tensor))
    device = tensor.device
    # Triton launches on the current device, wherever the tensors are.
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    options = compiler_options(num_warps, num_stages, maxnreg, torch.version.hip is not None)
    with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
        kernel[(grid,)](*args, **options, **constexprs)


def compiler_options(
    num_warps: int, num_stages: int, maxnreg: int | None, hip: bool
) -> dict[str, Any]:
    """Triton's options as a maker's GPUs take them; what comes in is for NVIDIA's.

    AMD's warps have 64 lanes instead of 32: where there are many, half of them are as many threads.
    A pipeline of loads costs registers there, and shared memory that is a third of NVIDIA's.
    """
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    if hip:
        options |= {"num_warps": num_warps // 2 if num_warps > 4 else num_warps, "num_stages": 1}
    elif maxnreg is not None:
        options["maxnreg"] = maxnreg
    return options


def _case(
    kernel: Any,
    grid: int,
    args: tuple[Any, ...],
    constexprs: dict[str, Any],
    num_warps: int,
    num_stages: int,
    maxnreg: int | None,
) -> CompileCase:
    if not isinstance(kernel, JITFunction):
        raise RuntimeError("kernels compile only where TRITON_INTERPRET is not set")
    values = dict(zip(kernel.arg_names, args, strict=False)) | constexprs
    if set(values) != set(kernel.arg_names):
        wrong = sorted(set(values) ^ set(kernel.arg_names))
        raise TypeError(f"{kernel.__name__}: arguments {wrong} are missing or unknown")
    signature, constants, aligned = {}, {}, []
    for name in kernel.arg_names:
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
            aligned.append(name)
        elif name in constexprs or value is None or value == 1:
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(name)
    name = f"{_Recording.label} {kernel.__name__}".strip()
    return CompileCase(
        name,
        kernel,
        signature,
        constants,
        tuple(aligned),
        num_warps,
        num_stages,
        maxnreg,
        _Recording.typical,
        grid,
        values,
    )
