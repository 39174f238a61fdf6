"""Which nvcc a build takes, where it comes from, and the architectures it compiles for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .build_tools import ROOT, toolchain, toolchain_cuda
from .test_toolchain import nvcc


def test_nvcc_is_found_among_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before /usr/local/cuda, and also where CUDA_HOME says to look nowhere else."""
    packages = tmp_path / "nvidia/cu99"
    packages.mkdir(parents=True)
    nvcc(packages, "exit 0")
    monkeypatch.setattr(toolchain_cuda, "package_folders", lambda: [tmp_path])
    for home in ("", "/nonexistent"):
        monkeypatch.setenv("CUDA_HOME", home)
        assert toolchain_cuda.find_nvcc("99.1") == str(packages / "bin/nvcc")
        assert toolchain_cuda.missing_nvcc("99.1") == []


def test_a_missing_nvcc_is_brought_by_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain_cuda, "package_folders", list)
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    release = toolchain_cuda.PACKAGED_CUDA
    with pytest.raises(toolchain.NotBuilt, match=r"; pip install -e '\.\[cuda\]' brings it$"):
        toolchain_cuda.find_nvcc(release)
    extra = re.search(r'^cuda = \["(.+);', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert toolchain_cuda.missing_nvcc(release) == [extra[1]]
    # Packages of CUDA 12 have no nvcc.
    for other in ("12.8", None):
        assert toolchain_cuda.missing_nvcc(other) == []
        with pytest.raises(toolchain.NotBuilt, match=r"^[^;]+$"):
            toolchain_cuda.find_nvcc(other)


@pytest.mark.parametrize("gpu", ["8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0"])
def test_every_gpu_from_ampere_on_has_code(monkeypatch: pytest.MonkeyPatch, gpu: str) -> None:
    """Its own or that of a lower minor version, or else PTX of a lower version."""
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    flags = " ".join(toolchain_cuda.architectures(["compute_80", "compute_90", "compute_100"]))
    number = int(gpu.replace(".", ""))
    binaries = [int(name) for name in re.findall(r"[\[,]sm_(\d+)", flags)]
    ptx = [int(name) for name in re.findall(r"[\[,]compute_(\d+)", flags)]
    assert any(name // 10 == number // 10 and name <= number for name in binaries) or any(
        name <= number for name in ptx
    )


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
        # Without it those that the toolkit knows, the last one for later GPUs too.
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
