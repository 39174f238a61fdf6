"""What is in the libraries, which instructions they use, and what is installed.

Installing in fresh environments takes minutes and a network: that is tests/packaging_check.sh.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pinmem

from .build_tools import ROOT, toolchain, toolchain_cuda

OBJECTS = ROOT / "build/objects/cpu"
LIBRARY = ROOT / "pinmem/_cpu.so"
LEVELS = ["baseline", "avx2", "avx512"]
X86 = platform.machine() == "x86_64"


def run(*command: object, cwd: Path | None = None, **environment: str) -> tuple[int, str]:
    """Exit status and all output of a command, in this environment plus ``environment``."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def needs(name: str) -> None:
    """Skip where a library cannot be built, and fail where it can be and is not."""
    try:
        toolchain.need_compiler()
        torch = toolchain.need_torch()
        if name == "_cuda.so":
            toolchain_cuda.find_nvcc(torch.cuda)
    except toolchain.NotBuilt as reason:
        pytest.skip(str(reason))
    assert (ROOT / "pinmem" / name).exists(), f"pinmem/{name} is not built: make build"


@pytest.fixture(scope="module")
def cpu_library() -> None:
    needs("_cpu.so")


def symbols(*arguments: object) -> list[str]:
    """What nm prints, one line per symbol, or a skip."""
    if not shutil.which("nm"):
        pytest.skip("there is no nm")
    status, output = run("nm", "-C", *arguments)
    assert status == 0, output
    return output.splitlines()


# --- What is in the libraries ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_cpu.so", "_cuda.so"])
def test_a_library_uses_the_stable_abi_alone(name: str) -> None:
    needs(name)
    library = ROOT / "pinmem" / name
    undefined = symbols("-D", "--undefined-only", library)
    assert any("aoti_torch_" in line for line in undefined)
    foreign = ("at::", "c10::", "torch::", " Py", " _Py")
    assert not [line for line in undefined if any(mark in line for mark in foreign)]


@pytest.mark.usefixtures("cpu_library")
@pytest.mark.parametrize("level", LEVELS if X86 else LEVELS[:1])
def test_a_kernel_object_shares_no_inline_function(level: str) -> None:
    """Else the linker might take the AVX-512 copy of one for every CPU (csrc/cpu/isa.h)."""
    objects = kernel_objects(level)
    shared = [
        f"{path.name}: {line}"
        for path in objects
        for line in symbols("--defined-only", path)
        if line.split(maxsplit=2)[1] in "WVu" and f"pinmem::{level}::" not in line
    ]
    assert not shared


@pytest.mark.skipif(not X86, reason="one level only on this CPU")
@pytest.mark.usefixtures("cpu_library")
def test_only_the_wide_objects_have_wide_instructions() -> None:
    if not shutil.which("objdump"):
        pytest.skip("there is no objdump")

    def uses(level: str, register: str) -> bool:
        objects = OBJECTS.glob("*.o") if level == "glue" else kernel_objects(level)
        return any(f"%{register}" in run("objdump", "-d", path)[1] for path in objects)

    assert not uses("glue", "ymm")
    assert not uses("baseline", "ymm")
    assert uses("avx2", "ymm")
    assert not uses("avx2", "zmm")
    assert uses("avx512", "zmm")


def kernel_objects(level: str) -> list[Path]:
    """The objects of the kernels there are now; an object of a deleted file may still lie about."""
    names = [path.stem for path in (ROOT / "csrc/cpu/simd").glob("*.cpp")]
    objects = [OBJECTS / level / f"{name}.o" for name in names]
    lost = [f"{path.parent.name}/{path.name}" for path in objects if not path.exists()]
    assert not lost, f"{lost} not in {OBJECTS}: make build"
    return objects


# --- The choice of instruction set ----------------------------------------------------------------

USE = """
import sys, torch
torch.library.define(
    "pinmem_cpu::find_bad_label", "(Tensor labels, int num_classes, int ignore_index) -> int")
torch.ops.load_library(sys.argv[1])
labels = torch.full((3, 100, 1000), 255, dtype=torch.uint8)
labels[2, 7, 5] = 19
labels[2, 7, 6] = 20
places = [
    torch.ops.pinmem_cpu.find_bad_label(labels.to(dtype), classes, ignored)
    for dtype in (torch.uint8, torch.int64) for classes, ignored in ((19, 255), (20, 255), (19, 19))
]
print(torch.ops.pinmem_cpu.isa_level(), *places)
"""


@pytest.mark.usefixtures("cpu_library")
@pytest.mark.parametrize("level", LEVELS if X86 else LEVELS[:1])
def test_every_level_of_instructions_gives_the_result(level: str) -> None:
    status, output = run(sys.executable, "-c", USE, LIBRARY, PINMEM_CPU_ISA=level)
    if "does not have" in output:
        pytest.skip(f"this CPU does not have {level}")
    assert status == 0, output
    place = 2 * 100_000 + 7 * 1000 + 5
    assert output.split() == [str(LEVELS.index(level))] + [str(place), str(place + 1), "0"] * 2


@pytest.mark.usefixtures("cpu_library")
def test_an_unknown_level_is_refused() -> None:
    status, output = run(sys.executable, "-c", USE, LIBRARY, PINMEM_CPU_ISA="mmx")
    assert status != 0
    assert "PINMEM_CPU_ISA: got 'mmx', expected avx512, avx2 or baseline" in output


# --- What is installed ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distribution() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("pinmem")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pinmem runs from its folder and is not installed")


def test_metadata(distribution: importlib.metadata.Distribution) -> None:
    assert distribution.version == pinmem.__version__
    assert distribution.metadata["Requires-Python"] == ">=3.10"
    assert distribution.metadata["License"] == "BSD-3-Clause"
    needed = [name for name in distribution.requires or [] if "extra ==" not in name]
    assert "torch>=2.10" in needed


@pytest.mark.usefixtures("distribution")
@pytest.mark.parametrize("place", ["root", "elsewhere"])
def test_the_triton_kernels_are_a_subpackage(place: str, tmp_path: Path) -> None:
    """From the repository root too, where the folder pinmem shadows the installed package."""
    find = "import importlib.util as u; print(u.find_spec('pinmem.kernels').origin)"
    status, output = run(
        sys.executable, "-c", find, cwd=ROOT if place == "root" else tmp_path, PYTHONPATH=""
    )
    assert status == 0, output
    assert Path(output.strip()).name == "__init__.py"
