"""The build: what is compiled again, and what happens where something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .build_tools import ROOT, toolchain

FALL_BACK = {
    "_cpu.so": "; CPUs fall back to plain PyTorch",
    "_cuda.so": "; GPUs fall back to Triton and plain PyTorch",
}
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
    reason = "_cpu.so: no C++ compiler was found (CXX=/nonexistent)" + FALL_BACK["_cpu.so"]
    assert said == [f"pinmem: not built: {reason}"]
    package = built_package(tree)
    assert (package / "_build.txt").read_text() == reason + "\n"
    assert not (package / "_cpu.so").exists()
    assert (package / "ops/memory_read.py").exists()
    assert python_files(package / "kernels") == python_files(tree / "kernels")
    assert (package / "py.typed").exists()


@pytest.fixture
def torch_99(tree: Path, tmp_path: Path) -> str:
    """A folder with this environment's torch as one of CUDA 99, of which no machine has an nvcc.

    And one kernel for it in the tree.
    """
    installed = toolchain.find_torch()
    torch = tmp_path / "packages/torch"
    torch.mkdir(parents=True)
    for name in ("include", "lib"):
        (torch / name).symlink_to(installed.root / name)
    (torch / "__init__.py").touch()
    version = ".".join(map(str, installed.version))
    (torch / "version.py").write_text(f"__version__ = '{version}.0'\ncuda = '99.0'\n")
    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/kernel.cu").touch()
    return str(torch.parent)


def nvcc(folder: Path, compiles: str, release: str = "99.0") -> str:
    """A CUDA_HOME with a shell script for nvcc, of which ``compiles`` is what a file comes to."""
    path = folder / "bin/nvcc"
    path.parent.mkdir()
    path.write_text(
        f"""#!/bin/sh
        case "$*" in
        --version) echo 'Cuda compilation tools, release {release}, V{release}.1' ;;
        --list-gpu-arch) echo compute_80 ;;
        *kernel.cu*) {compiles} ;;
        *) echo 'ld: kernel.o: undefined reference to `lost()' >&2; exit 1 ;;
        esac
        """
    )
    path.chmod(0o755)
    return str(folder)


def test_no_nvcc_leaves_the_cuda_library_out_and_names_what_brings_it(
    tree: Path, torch_99: str, tmp_path: Path
) -> None:
    given = {"CXX": "/nonexistent", "CUDA_HOME": str(tmp_path), "PYTHONPATH": torch_99}
    status, said = build(tree, **given)
    assert status == 0, said
    assert [line.split(": ")[2] for line in said] == ["_cpu.so", "_cuda.so"]
    assert f"no nvcc of CUDA 99, torch's, was found (CUDA_HOME={tmp_path}, this env" in said[1]
    packages = "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==99.0.*"
    assert f"; pip install '{packages}' brings it; GPUs fall back to Triton" in said[1]
    info = [sys.executable, "-m", "pinmem.info"]
    printed = subprocess.run(info, cwd=built_package(tree).parent, capture_output=True, text=True)
    assert f"not built: {said[1].removeprefix('pinmem: not built: ')}" in printed.stdout

    status, said = build(tree, **given, PINMEM_REQUIRE_CUDA="1")
    assert status != 0
    assert said[0] == "pinmem: _cuda.so does not build:"

    status, said = build(tree, **given, PINMEM_REQUIRE_CUDA="0")
    assert status == 0
    assert said[1].startswith("pinmem: not built: _cuda.so: PINMEM_REQUIRE_CUDA is 0; ")


def test_a_toolkit_of_another_release_is_passed_over(
    tree: Path, torch_99: str, tmp_path: Path
) -> None:
    home = nvcc(tmp_path, "exit 0", release="9.2")
    status, said = build(tree, CXX="/nonexistent", CUDA_HOME=home, PYTHONPATH=torch_99)
    assert status == 0, said
    assert f"{home}/bin/nvcc is of CUDA 9.2" in said[1]


@needs_compiler
@pytest.mark.parametrize("asked", [".", ".[cuda]", ".[test, cuda]", ".[test]"])
def test_nvcc_is_required_where_the_extra_is_asked_for(
    tree: Path, torch_99: str, tmp_path: Path, asked: str
) -> None:
    """As pip asks: in a process of its own."""
    ask = "from setuptools import build_meta; print(build_meta.get_requires_for_build_editable())"
    front_end = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ask!r}], check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", front_end, "install", "-e", asked],
        cwd=tree,
        env={**os.environ, "CUDA_HOME": str(tmp_path), "PYTHONPATH": torch_99},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer = done.stdout.splitlines()[-1]
    packages = ["cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==99.0.*"]
    assert answer == str(packages if "cuda" in asked else [])


@needs_compiler
@pytest.mark.parametrize(
    ("compiles", "reason"),
    [
        ('echo "kernel.cu(1): error: no" >&2; exit 1', "kernel.cu(1): error: no"),
        (
            'until [ "$1" = -o ]; do shift; done; touch "$2"',
            "ld: kernel.o: undefined reference to `lost()",
        ),
    ],
    ids=["nvcc", "linker"],
)
def test_a_cuda_library_that_fails_is_not_built(
    tree: Path, torch_99: str, tmp_path: Path, compiles: str, reason: str
) -> None:
    given = {"CUDA_HOME": nvcc(tmp_path, compiles), "PYTHONPATH": torch_99}
    status, said = build(tree, **given)
    assert status == 0, said
    line = f"_cuda.so: {reason} (PINMEM_REQUIRE_CUDA=1 shows all)" + FALL_BACK["_cuda.so"]
    assert said == [f"pinmem: not built: {line}"]
    package = built_package(tree)
    assert (package / "_build.txt").read_text() == line + "\n"
    assert (package / "_cpu.so").exists()
    assert (package / "kernels/__init__.py").exists()

    status, said = build(tree, **given, PINMEM_REQUIRE_CUDA="1")
    assert status != 0
    assert said[0] == "pinmem: _cuda.so does not build:"


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


def python_files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*.py")}


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
    monkeypatch.setattr(toolchain, "package_folders", lambda: [tmp_path])
    version.write_text("__version__ = '2.9.1+cpu'\ncuda = None\n")
    assert toolchain.find_torch() is None
    with pytest.raises(toolchain.NotBuilt, match=r"torch >= 2\.10"):
        toolchain.need_torch()
    version.write_text("__version__ = '2.10.0+cpu'\ncuda: Optional[str] = None\n")
    assert toolchain.find_torch().version == (2, 10)
    assert toolchain.find_torch().cuda is None
