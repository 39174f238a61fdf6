"""The build: what is compiled again, and what happens where something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .build_tools import ROOT, toolchain, toolchain_cuda

needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what is built, with two C++ files of the CPU library and one kernel."""
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build.txt")
    for folder in ("kernels", "pinmem"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    one_op = ["library.cpp", "find_bad_label.cpp", "simd/find_bad_label.cpp"]
    for path in (
        *(Path(name) for name in ("setup.py", "pyproject.toml", "LICENSE", "csrc/toolchain.py")),
        Path("csrc/toolchain_cuda.py"),
        *(Path("csrc/cpu", name) for name in one_op),
        *(header.relative_to(ROOT) for header in (ROOT / "csrc/cpu").rglob("*.h")),
    ):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy / path)
    return copy


def build(tree: Path, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Exit status of ``setup.py build``, and what it says of pinmem."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", *arguments],
        cwd=tree,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("pinmem: ")]
    return done.returncode, said or [done.stdout]


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


def test_the_torch_of_this_environment_is_found() -> None:
    import torch

    found = toolchain.find_torch()
    assert found.version == tuple(map(int, torch.__version__.split(".")[:2]))
    assert found.cuda == torch.version.cuda
    assert (found.root / "include/torch/csrc/stable/library.h").exists()


def test_an_older_torch_is_not_built_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        # By default those that the toolkit knows, the last one for later GPUs too.
        (
            "",
            [
                "-gencode=arch=compute_80,code=[sm_80]",
                "-gencode=arch=compute_90,code=[sm_90,compute_90]",
            ],
        ),
    ],
)
def test_architectures(monkeypatch: pytest.MonkeyPatch, given: str, expected: list[str]) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    assert toolchain_cuda.architectures(["compute_80", "compute_90"]) == expected


def test_a_wrong_architecture_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;hopper")
    with pytest.raises(toolchain.BuildFailed, match="TORCH_CUDA_ARCH_LIST: got 'hopper'"):
        toolchain_cuda.architectures([])
