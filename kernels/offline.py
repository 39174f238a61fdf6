"""Compiling kernels for a GPU that is not there, and reading what became of them.

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

import triton
from pinmem.kernels.launch import CompileCase, compiler_options
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

OPS = (
    "memory_read",
    "memory_read_project",
    "upsampled_cross_entropy",
    "class_sums",
    "memory_update",
    "upsampled_confusion",
)


class Target(NamedTuple):
    """A GPU to compile for, with what one of its multiprocessors holds."""

    gpu: GPUTarget
    registers: int  # 32-bit registers, per multiprocessor
    register_step: int  # a warp's registers are handed out in steps of this many a thread
    threads: int  # resident threads at most
    shared: int  # bytes of shared memory, per multiprocessor
    shared_limit: int  # bytes of shared memory one program may have
    reserved: int = 1024  # bytes of it the system takes for every program


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 65536, 8, 2048, 164 * 1024, 163 * 1024),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 65536, 8, 2048, 228 * 1024, 227 * 1024),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 65536, 8, 2048, 228 * 1024, 227 * 1024),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 131072, 8, 2048, 64 * 1024, 64 * 1024, 0),
}


class Report(NamedTuple):
    """What a kernel needs on a target. Registers are per thread, spills and shared in bytes."""

    registers: int
    spills: int
    shared: int
    occupancy: float  # resident threads over the most possible, bound by the three above
    loads: dict[int, int]  # global loads in the disassembly: bits -> how many (NVIDIA only)
    matrix: int  # matrix instructions in the disassembly


def compile_cases(ops: Sequence[str] = OPS, typical: bool = False) -> Iterator[CompileCase]:
    """Every kernel of some ops in every configuration that ``auto`` can choose, each once.

    With ``typical`` only the configuration that training meets.
    """
    seen = set()
    for op in ops:
        for case in importlib.import_module(f"pinmem.kernels.{op}").compile_cases():
            if case.identity not in seen and (case.typical or not typical):
                seen.add(case.identity)
                yield case._replace(name=f"{op} {case.name}")


def build(case: CompileCase, target: Target) -> Report:
    """Compile one case for one target and read its resources.

    Raises:
        Exception: whatever Triton raises where the kernel does not compile.
    """
    indices = [case.kernel.arg_names.index(name) for name in case.aligned]
    aligned = {(index,): [["tt.divisibility", 16]] for index in indices}
    source = ASTSource(case.kernel, case.signature, case.constexprs, aligned)
    hip = target.gpu.backend == "hip"
    options = compiler_options(case.num_warps, case.num_stages, case.maxnreg, hip)
    compiled = triton.compile(source, target=target.gpu, options=options)
    threads = options["num_warps"] * target.gpu.warp_size
    if target.gpu.backend == "cuda":
        return _read_nvidia(compiled, target, threads)
    return _read_amd(compiled, target, threads)


def report(case: CompileCase, target: str) -> dict[str, Any]:
    """A row of a table: the case's name and its report, or why it ``failed``."""
    hip = TARGETS[target].gpu.backend == "hip"
    warps = compiler_options(case.num_warps, case.num_stages, case.maxnreg, hip)["num_warps"]
    row = {"kernel": case.name, "target": target, "warps": warps, "typical": case.typical}
    try:
        return row | build(case, TARGETS[target])._asdict()
    except Exception as error:
        return row | {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def faults(row: dict[str, Any]) -> str:
    """What is wrong with a row of :func:`report`; empty where nothing is."""
    if "failed" in row:
        return row["failed"]
    if row["spills"]:
        return f"{row['spills']} bytes a thread spilled"
    limit = TARGETS[row["target"]].shared_limit
    return f"{row['shared']} bytes of shared memory" if row["shared"] > limit else ""


def _read_nvidia(compiled: Any, target: Target, threads: int) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
        assembly = _tool("cuobjdump", "--dump-sass", str(cubin))
    # No kernel has local arrays, so what lies on a thread's stack was spilled.
    registers, spills = _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)
    loads = collections.Counter(map(_bits, re.findall(r"\bLDG(?:STS)?\.([\w.]+)", assembly)))
    matrix = len(re.findall(r"\b(?:HMMA|HGMMA|DMMA|UTC[A-Z]*MMA)\b", assembly))
    shared = compiled.metadata.shared
    occupancy = _occupancy(target, threads, registers, shared)
    return Report(registers, spills, shared, occupancy, dict(loads), matrix)


def _read_amd(compiled: Any, target: Target, threads: int) -> Report:
    assembly = compiled.asm["amdgcn"]
    registers = _number(r"\.vgpr_count:\s*(\d+)", assembly)
    # Scratch memory a lane: scalar registers spill into lanes of vector ones, not there.
    spills = _number(r"\.private_segment_fixed_size:\s*(\d+)", assembly)
    matrix = len(re.findall(r"\bv_mfma_", assembly))
    shared = compiled.metadata.shared
    occupancy = _occupancy(target, threads, registers, shared)
    return Report(registers, spills, shared, occupancy, {}, matrix)


def _occupancy(target: Target, threads: int, registers: int, shared: int) -> float:
    step = target.register_step
    each = -(-max(registers, 1) // step) * step * threads
    programs = min(target.threads // threads, target.registers // each, 32)
    if shared:
        programs = min(programs, target.shared // (shared + target.reserved))
    return programs * threads / target.threads


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
