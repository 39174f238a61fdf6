"""The build: what is in the libraries, what happens where something is missing, what is installed.

Building in fresh environments takes minutes and a network: that is tests/packaging_check.sh.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pinmem

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "build/objects/cpu"
LIBRARY = ROOT / "pinmem/_cpu.so"
LEVELS = ["baseline", "avx2", "avx512"]
X86 = platform.machine() == "x86_64"

needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="_cpu.so is not built here")
needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")


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


def symbols(*arguments: object) -> list[str]:
    """What nm prints, one line a symbol, or a skip."""
    if not shutil.which("nm"):
        pytest.skip("there is no nm")
    status, output = run("nm", "-C", *arguments)
    assert status == 0, output
    return output.splitlines()


# --- What is in the libraries ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_cpu.so", "_cuda.so"])
def test_a_library_uses_the_stable_abi_alone(name: str) -> None:
    library = ROOT / "pinmem" / name
    if not library.exists():
        pytest.skip(f"{name} is not built here")
    undefined = symbols("-D", "--undefined-only", library)
    assert any("aoti_torch_" in line for line in undefined)
    foreign = ("at::", "c10::", "torch::", " Py", " _Py")
    assert not [line for line in undefined if any(mark in line for mark in foreign)]


@pytest.mark.skipif(not OBJECTS.is_dir(), reason="the objects of the build are not here")
@pytest.mark.parametrize("level", LEVELS)
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
@pytest.mark.skipif(not OBJECTS.is_dir(), reason="the objects of the build are not here")
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
    if not all(path.exists() for path in objects):
        pytest.skip(f"not every kernel is built for {level} here")
    return objects


# --- The choice of instruction set ----------------------------------------------------------------

USE = """
import sys, torch
torch.library.define(
    "pinmem_cpu::find_bad_label", "(Tensor labels, int num_classes, int ignore_index) -> int")
torch.ops.load_library(sys.argv[1])
level = torch.ops.pinmem_cpu.isa_level()
labels = torch.full((3, 100, 1000), 255, dtype=torch.uint8)
labels[2, 7, 5] = 19
labels[2, 7, 6] = 20
places = [
    torch.ops.pinmem_cpu.find_bad_label(labels.to(dtype), classes, ignored)
    for dtype in (torch.uint8, torch.int64) for classes, ignored in ((19, 255), (20, 255), (19, 19))
]
print(level, *places)
"""


@needs_library
@pytest.mark.parametrize("level", LEVELS if X86 else LEVELS[:1])
def test_every_level_of_instructions_gives_the_result(level: str) -> None:
    status, output = run(sys.executable, "-c", USE, LIBRARY, PINMEM_CPU_ISA=level)
    if "does not have" in output:
        pytest.skip(f"this CPU does not have {level}")
    assert status == 0, output
    place = 2 * 100_000 + 7 * 1000 + 5
    assert output.split() == [str(LEVELS.index(level))] + [str(place), str(place + 1), "0"] * 2


@needs_library
def test_an_unknown_level_is_refused() -> None:
    status, output = run(sys.executable, "-c", USE, LIBRARY, PINMEM_CPU_ISA="mmx")
    assert status != 0
    assert "PINMEM_CPU_ISA: got 'mmx', expected avx512, avx2 or baseline" in output


# --- Building where something is missing ----------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what is built, with two C++ files of the CPU library and one kernel."""
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build.txt", "cpu", "cuda")
    for folder in ("csrc", "kernels", "pinmem"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    sources = ROOT / "csrc/cpu"
    wanted = ["library.cpp", "find_bad_label.cpp", "simd/find_bad_label.cpp"]
    headers = [path.relative_to(sources) for path in sources.rglob("*.h")]
    for name in (*wanted, *headers):
        (copy / "csrc/cpu" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sources / name, copy / "csrc/cpu" / name)
    return copy


def build(tree: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Exit status of ``setup.py build``, and what it says of pinmem."""
    command = (sys.executable, "setup.py", "-q", "build", *arguments)
    status, output = run(*command, cwd=tree, **environment)
    return status, [line for line in output.splitlines() if line.startswith("pinmem: ")] or [output]


def test_no_compiler_leaves_the_library_out_and_says_so_once(tree: Path) -> None:
    status, said = build(tree, CXX="/nonexistent")
    assert status == 0, said
    reason = "_cpu.so: no C++ compiler was found (CXX=/nonexistent); plain PyTorch serves CPUs"
    assert said == [f"pinmem: left out {reason}"]
    package = built_package(tree)
    assert (package / "_build.txt").read_text() == reason + "\n"
    assert not (package / "_cpu.so").exists()
    assert (package / "ops/memory_read.py").exists()
    assert (package / "kernels/__init__.py").exists()
    assert (package / "py.typed").exists()


def test_no_nvcc_leaves_the_cuda_library_out_and_says_so_once(tree: Path, tmp_path: Path) -> None:
    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/nothing.cu").write_text("// never compiled\n")
    status, said = build(tree, CXX="/nonexistent", CUDA_HOME=str(tmp_path))
    assert status == 0, said
    assert [line.split(":")[1] for line in said] == [" left out _cpu.so", " left out _cuda.so"]
    assert "nvcc was not found (in CUDA_HOME); Triton serves GPUs" in said[1]


def test_a_toolkit_of_another_release_is_left_out(tree: Path, tmp_path: Path) -> None:
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 9.2, V9.2.1'\n")
    nvcc.chmod(0o755)
    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/nothing.cu").write_text("// never compiled\n")
    status, said = build(tree, CXX="/nonexistent", CUDA_HOME=str(tmp_path))
    assert status == 0, said
    assert "nvcc is of CUDA 9.2 and torch" in said[1] or "torch is a build without CUDA" in said[1]


@needs_compiler
def test_code_that_does_not_compile_fails_the_build(tree: Path) -> None:
    (tree / "csrc/cpu/simd/find_bad_label.cpp").write_text("int wrong(\n")
    status, said = build(tree)
    assert status != 0
    assert said[0] == "pinmem: _cpu.so does not build:"


@needs_compiler
def test_a_build_compiles_what_changed_and_no_more(tree: Path) -> None:
    status, said = build(tree)
    assert status == 0, said
    objects = tree / "build/objects/cpu"
    first = times(objects)
    assert first.keys() >= {"library.o", "find_bad_label.o", "baseline/find_bad_label.o", "_cpu.so"}
    assert (built_package(tree) / "_cpu.so").exists()

    assert build(tree)[0] == 0
    assert times(objects) == first

    with (tree / "csrc/cpu/parallel.h").open("a") as header:
        header.write("// changed\n")
    assert build(tree)[0] == 0
    second = times(objects)
    changed = {name for name in first if second[name] != first[name]}
    assert changed == {"find_bad_label.o", "_cpu.so"}


def built_package(tree: Path) -> Path:
    return next((tree / "build").glob("lib*")) / "pinmem"


def times(objects: Path) -> dict[str, int]:
    made = [path for path in objects.rglob("*") if path.suffix in (".o", ".so")]
    return {str(path.relative_to(objects)): path.stat().st_mtime_ns for path in made}


# --- The pieces of the toolchain ------------------------------------------------------------------


@pytest.fixture(scope="module")
def toolchain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toolchain", ROOT / "csrc/toolchain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toolchain"] = module
    spec.loader.exec_module(module)
    return module


def test_the_torch_of_this_environment_is_found(toolchain: ModuleType) -> None:
    import torch

    found = toolchain.find_torch()
    assert found.version == tuple(map(int, torch.__version__.split(".")[:2]))
    assert found.cuda == torch.version.cuda
    assert (found.root / "include/torch/csrc/stable/library.h").exists()


def test_an_older_torch_is_not_built_against(
    toolchain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "torch/include/torch/csrc/stable/library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    version = tmp_path / "torch/version.py"
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(toolchain.site, "getusersitepackages", lambda: str(tmp_path))
    version.write_text("__version__ = '2.9.1+cpu'\ncuda = None\n")
    assert toolchain.find_torch() is None
    with pytest.raises(toolchain.LeftOut, match=r"torch >= 2\.10"):
        toolchain.need_torch()
    version.write_text("__version__ = '2.10.0+cpu'\ncuda: Optional[str] = None\n")
    assert toolchain.find_torch().version == (2, 10)
    assert toolchain.find_torch().cuda is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("9.0", ["-gencode=arch=compute_90,code=[sm_90]"]),
        (
            "8.0 9.0a+PTX",
            [
                "-gencode=arch=compute_80,code=[sm_80]",
                "-gencode=arch=compute_90a,code=[sm_90a,compute_90a]",
            ],
        ),
        # By default those that the toolkit knows.
        (
            "",
            ["-gencode=arch=compute_80,code=[sm_80]", "-gencode=arch=compute_90,code=[sm_90]"],
        ),
    ],
)
def test_architectures(
    toolchain: ModuleType, monkeypatch: pytest.MonkeyPatch, given: str, expected: list[str]
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    assert toolchain.architectures(["compute_80", "compute_90"]) == expected


def test_a_wrong_architecture_is_named(
    toolchain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;hopper")
    with pytest.raises(toolchain.BuildFailed, match="TORCH_CUDA_ARCH_LIST: got 'hopper'"):
        toolchain.architectures([])


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
