"""Compiling the Triton kernels for a GPU that is not there, and reading what became of them.

What this reports without a GPU: registers, spills, shared memory, how many programs fit on a
multiprocessor, and from the disassembly the widths of global loads and the matrix instructions.
"""

from __future__ import annotations

import collections
import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from pinmem.kernels.launch import Launch, attempts, for_amd, recording

OPS = ("memory_read", "memory_read_project")


class Target(NamedTuple):
    """A GPU to compile for, with what one of its multiprocessors holds."""

    gpu: GPUTarget
    threads: int  # resident threads at most
    shared: int  # bytes of shared memory, per multiprocessor
    shared_limit: int  # bytes of shared memory one program may have
    registers: int = 65536  # 32-bit registers, per multiprocessor
    reserved: int = 1024  # bytes of shared memory the system takes for every program


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 2048, 164 << 10, 163 << 10),
    "sm_86": Target(GPUTarget("cuda", 86, 32), 1536, 100 << 10, 99 << 10),
    "sm_89": Target(GPUTarget("cuda", 89, 32), 1536, 100 << 10, 99 << 10),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 2048, 228 << 10, 227 << 10),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 2048, 228 << 10, 227 << 10),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 2048, 64 << 10, 64 << 10, 131072, 0),
}


class Report(NamedTuple):
    """What a kernel needs on a target. Registers are per thread, spills and shared in bytes."""

    registers: int
    spills: int
    shared: int
    programs: int  # resident on a multiprocessor
    bound: str  # by what: registers, threads or shared memory
    warps: int  # of a program
    loads: dict[int, int]  # global loads in the disassembly: bits -> how many (NVIDIA only)
    matrix: int  # matrix instructions in the disassembly


class Configuration(NamedTuple):
    """Types, format and sizes that ``auto`` can meet."""

    dtype: torch.dtype
    channels_last: bool
    slots: int
    channels: int
    size: tuple[int, int, int]  # batch, height, width
    tf32: bool = False

    def __str__(self) -> str:
        dtype = "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")
        kind = "nhwc" if self.channels_last else "nchw"
        size = "x".join(map(str, self.size))
        return f"{dtype} {kind} K={self.slots} C={self.channels} {size}"


_LARGE = (8, 128, 256)
# What training meets comes first; the others differ from it in what changes a kernel. Float16 is
# compiled as bfloat16 is, and the number of channels is not compiled in.
CONFIGURATIONS = (
    Configuration(torch.bfloat16, True, 19, 256, _LARGE),
    Configuration(torch.bfloat16, False, 19, 256, _LARGE),
    Configuration(torch.float16, True, 64, 256, _LARGE),
    Configuration(torch.bfloat16, True, 2, 5, (3, 7, 9)),
    Configuration(torch.float32, True, 19, 256, _LARGE),
    Configuration(torch.float32, False, 64, 256, _LARGE),
    Configuration(torch.float32, True, 19, 256, _LARGE, tf32=True),
    Configuration(torch.float32, False, 64, 256, _LARGE, tf32=True),
)


class CompileCase(NamedTuple):
    """One kernel in one configuration, as its launch would specialise it.

    ``signature`` maps every argument to a Triton type (``"*bf16"``, ``"i32"``, ``"constexpr"``),
    ``constexprs`` holds the values of the latter, ``aligned`` names what 16 divides, ``small`` are
    the places of tensors of at most 2 GiB.
    """

    label: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    aligned: tuple[str, ...]
    small: tuple[int, ...]
    options: dict[str, int]

    @property
    def name(self) -> str:
        """The label and the kernel's own name."""
        return f"{self.label} {self.kernel.__name__}"

    @property
    def identity(self) -> tuple[Any, ...]:
        """The same for launches that compile to the same kernel."""
        kernel = (self.kernel.__module__, self.kernel.__name__)
        parts = (self.signature, self.constexprs, self.options)
        return (*kernel, *(tuple(map(str, part.items())) for part in parts), self.aligned)


_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


def case_of(label: str, launch: Launch) -> CompileCase:
    """What a launch would compile."""
    plan, tensors = launch
    kernel = plan.kernel
    if not isinstance(kernel, JITFunction):
        raise RuntimeError("kernels compile only where TRITON_INTERPRET is not set")
    signature, constants, aligned = {}, {}, []
    arguments = (*tensors, *plan.sizes, *plan.constants.values())
    for name, value in zip(kernel.arg_names, arguments, strict=True):
        seen = name not in kernel.do_not_specialize
        if isinstance(value, Tensor):
            signature[name] = _TYPES[value.dtype]
            aligned.append(name)
        elif name in plan.constants or value is None or (value == 1 and seen):
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0 and seen:
                aligned.append(name)
    small = [i for i, t in enumerate(tensors) if t is not None and t.nbytes <= 2**31]
    return CompileCase(
        label, kernel, signature, constants, tuple(aligned), tuple(small), plan.options
    )


def cases_of(op: str, configuration: Configuration) -> list[CompileCase]:
    """The launches of an op's three passes in a configuration, written down on meta tensors."""
    dtype, channels_last, slots, channels, (batch, height, width), tf32 = configuration
    order = torch.channels_last if channels_last else torch.contiguous_format
    outputs = min(channels, 256)

    def new_map(depth: int) -> Tensor:
        like = torch.empty((batch, depth, height, width), dtype=dtype, device="meta")
        return like.contiguous(memory_format=order)

    x, noise, ds = new_map(channels), new_map(slots), new_map(slots)
    m = torch.empty((slots, channels), dtype=dtype, device="meta")
    w = torch.empty((outputs, 2 * channels), dtype=dtype, device="meta")
    inputs, grad = ([x, m], new_map(2 * channels))
    if op == "memory_read_project":
        inputs, grad = [x, m, w], new_map(outputs)
    passes = importlib.import_module(f"pinmem.kernels.{op}")
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    wanted = "tf32" if tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = wanted
    torch.backends.cudnn.conv.fp32_precision = wanted
    try:
        with recording() as launches:
            getattr(passes, op)(*inputs, noise)
            needs = [True] * len(inputs)
            getattr(passes, f"{op}_backward")(grad, ds, *inputs, noise, *needs)
            # In training the memory needs no gradient, and neither scores have a cotangent.
            needs[1] = False
            getattr(passes, f"{op}_backward")(grad, None, *inputs, None, *needs)
            getattr(passes, f"{op}_double_backward")(*inputs, grad, ds, *inputs, noise)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before[0]
        torch.backends.cudnn.conv.fp32_precision = before[1]
    return [case_of(f"{op} {configuration}", launch) for launch in launches]


def compile_cases(
    ops: Sequence[str] = OPS, configurations: Sequence[Configuration] = CONFIGURATIONS
) -> Iterator[CompileCase]:
    """Every kernel of some ops in some configurations, each once."""
    seen = set()
    for configuration in configurations:
        for op in ops:
            for case in cases_of(op, configuration):
                if case.identity not in seen:
                    seen.add(case.identity)
                    yield case


def build(case: CompileCase, target: Target) -> Report:
    """Compile one case for one target and read its resources.

    Raises:
        Exception: whatever Triton raises where the kernel does not compile.
    """
    constants, options, nvidia = case.constexprs, case.options, target.gpu.backend == "cuda"
    if not nvidia:
        constants, options = for_amd(constants, options)
    indices = [case.kernel.arg_names.index(name) for name in case.aligned]
    aligned = {(index,): [["tt.divisibility", 16]] for index in indices}
    if not nvidia:
        # As Triton does there for tensors of up to 2 GiB: buffer loads, with 32-bit offsets.
        for index in case.small:
            aligned[(index,)] = [["tt.divisibility", 16], ["tt.pointer_range", 32]]
    source = ASTSource(case.kernel, case.signature, constants, aligned)
    read = _read_nvidia if nvidia else _read_amd
    for tried in attempts(options) if nvidia else (options,):
        compiled = triton.compile(source, target=target.gpu, options=tried)
        found = read(compiled, target, tried["num_warps"])
        if not found.spills:
            break
    return found


def report(case: CompileCase, target: str) -> dict[str, Any]:
    """A row of a table: the case's name and its report, or why it ``failed``."""
    row = {"kernel": case.name, "target": target}
    try:
        return row | build(case, TARGETS[target])._asdict()
    except Exception as error:
        return row | {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def fault(row: dict[str, Any]) -> str:
    """What is wrong with a row of :func:`report`; empty where nothing is."""
    if "failed" in row:
        return row["failed"]
    if row["spills"]:
        return f"{row['spills']} bytes per thread spilled"
    limit = TARGETS[row["target"]].shared_limit
    return f"{row['shared']} bytes of shared memory of {limit}" if row["shared"] > limit else ""


def _read_nvidia(compiled: Any, target: Target, warps: int) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
        assembly = _tool("cuobjdump", "--dump-sass", str(cubin))
    # No kernel has local arrays, so what lies on a thread's stack was spilled.
    registers, spills = _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)
    loads = collections.Counter(map(_bits, re.findall(r"\bLDG(?:STS)?\.([\w.]+)", assembly)))
    matrix = len(re.findall(r"\b(?:HMMA|HGMMA|DMMA|UTC[A-Z]*MMA)\b", assembly))
    return _report(target, registers, spills, compiled, warps, dict(loads), matrix)


def _read_amd(compiled: Any, target: Target, warps: int) -> Report:
    assembly = compiled.asm["amdgcn"]
    registers = _number(r"\.vgpr_count:\s*(\d+)", assembly)
    # Scratch memory a lane: scalar registers spill into lanes of vector ones, not there.
    spills = _number(r"\.private_segment_fixed_size:\s*(\d+)", assembly)
    matrix = len(re.findall(r"\bv_mfma_", assembly))
    return _report(target, registers, spills, compiled, warps, {}, matrix)


def _report(
    target: Target, registers: int, spills: int, compiled: Any, warps: int, loads: dict[int, int],
    matrix: int,
) -> Report:  # fmt: skip
    threads = warps * target.gpu.warp_size
    shared = compiled.metadata.shared
    # A warp gets its registers in steps of eight per thread.
    each = -(-max(registers, 1) // 8) * 8 * threads
    room = {"threads": target.threads // threads, "registers": target.registers // each}
    if shared:
        room["shared memory"] = target.shared // (shared + target.reserved)
    bound = min(room, key=lambda name: room[name])
    return Report(registers, spills, shared, room[bound], bound, warps, loads, matrix)


def _bits(modifiers: str) -> int:
    """The width of a load: ``E.128``, ``E.U16.CONSTANT``, ``E.BYPASS.LTC128B.128``, ``E``."""
    widths = [re.fullmatch(r"[US]?(8|16|64|128)", part) for part in modifiers.split(".")]
    return next((int(width[1]) for width in widths if width), 32)


def _tool(name: str, *args: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *args], capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"{pattern}: not found in the compiler's output")
    return int(found[1])
