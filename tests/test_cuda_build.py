"""What the compiler made of csrc/cuda: architectures, symbols, registers and spills."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pinmem import backends

from .build_tools import ROOT, ptxas, toolchain, toolchain_cuda

LIBRARY = ROOT / "pinmem/_cuda.so"
NOTES = ROOT / "pinmem/_build.txt"
KERNELS_OF = {
    "class_sums": "class_sums_",
    "upsampled_cross_entropy": "cross_entropy_",
    "upsampled_confusion": "confusion_",
    "memory_update": "memory_update_",
    "release": "empty_kernel",
}


@pytest.fixture(scope="module")
def nvcc() -> str:
    try:
        return toolchain_cuda.find_nvcc(toolchain.need_torch().cuda)
    except toolchain.NotBuilt as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def library(nvcc: str) -> Path:
    """The library of the ordinary build."""
    notes = NOTES.read_text() if NOTES.exists() else ""
    assert LIBRARY.exists(), f"{nvcc} is there and {LIBRARY.name} is not built: {notes}"
    return LIBRARY


@pytest.fixture(scope="module")
def kernels(library: Path) -> list:
    found = list(ptxas.last_build())
    assert found, f"{ptxas.LOGS}: the build left no logs; make clean build"
    return found


@pytest.fixture(scope="module")
def architectures(nvcc: str) -> set[str]:
    """Those that the build was asked for."""
    known = said(nvcc, "--list-gpu-arch").split()
    return set(re.findall(r"sm_\w+", " ".join(toolchain_cuda.architectures(known))))


@pytest.fixture(scope="module")
def cuobjdump(nvcc: str) -> str:
    """nvcc's, or the copy in Triton's package."""
    places = [Path(nvcc).resolve().parent]
    triton = find_spec("triton")
    for place in (triton.submodule_search_locations or []) if triton else []:
        places.append(Path(place, "backends/nvidia/bin"))
    found = shutil.which("cuobjdump", path=os.pathsep.join(map(str, places)))
    return found or pytest.skip("no cuobjdump on this machine")


def said(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_library_has_code_for_every_architecture(
    library: Path, architectures: set[str], cuobjdump: str
) -> None:
    listed = said(cuobjdump, "--list-elf", library)
    assert set(re.findall(r"\.(sm_\w+)\.cubin", listed)) == architectures
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        assert {"sm_80", "sm_90", "sm_100"} <= architectures
        # Later GPUs compile this at load time.
        assert "sm_100" in said(cuobjdump, "--list-ptx", library)


def test_the_library_needs_no_cpp_symbol_of_torch(library: Path) -> None:
    """The stable ABI is C: so one binary runs under every torch."""
    symbols = said("nm", "-DC", library).splitlines()
    assert len(symbols) > 10
    assert [line for line in symbols if re.search(r"\b(at|c10|caffe2|torch)::", line)] == []
    defined = [line for line in symbols if " T " in line or " W " in line]
    exported = {line.split()[-1] for line in defined if "pinmem" in line}
    assert exported == {"pinmem_built_with_cuda", "pinmem_driver_knows_cuda", "pinmem_runs_on"}


def test_the_library_brings_the_cuda_runtime_along(library: Path) -> None:
    needed = re.findall(r"NEEDED.*\[(.+)\]", said("readelf", "-d", library))
    assert "libtorch_cuda.so" in needed
    assert [name for name in needed if name.startswith(("libcuda", "libpython"))] == []


def test_the_library_says_what_it_needs_of_a_driver(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    assert loaded.pinmem_built_with_cuda() // 1000 == int(str(torch.version.cuda).split(".")[0])
    assert loaded.pinmem_runs_on(0) == torch.cuda.is_available()
    if torch.cuda.is_available():
        assert backends._old_driver(loaded) == ""


@pytest.mark.parametrize(
    "driver, reason",
    [
        (12080, "_cuda.so is built with CUDA 13.0, and the driver knows CUDA up to 12.8"),
        (13000, ""),
        (13020, ""),
        (14000, ""),
    ],
)
def test_an_older_driver_is_the_reason(driver: int, reason: str) -> None:
    library = SimpleNamespace(
        pinmem_built_with_cuda=lambda: 13000, pinmem_driver_knows_cuda=lambda: driver
    )
    assert backends._old_driver(library) == reason


def test_a_gpu_without_code_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_a_gpu(monkeypatch, (7, 5))
    library = SimpleNamespace(pinmem_runs_on=lambda index: index == 0)
    assert backends._no_code(library).startswith(
        "_cuda.so has no code for Some GPU, compute capability 7.5 "
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert backends._no_code(library) == ""


def test_why_triton_cannot_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old GPU, or no C compiler, which Triton needs for its first launch."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pretend_a_gpu(monkeypatch, (7, 5))
    assert "compute capability 8.0 on, got Some GPU" in backends._triton_unavailable()
    pretend_a_gpu(monkeypatch, (9, 0))
    runtime = SimpleNamespace(driver=SimpleNamespace(active=None))
    monkeypatch.setattr(backends.importlib, "import_module", lambda _: runtime)
    assert backends._triton_unavailable() == ""

    class NoCompiler:
        @property
        def active(self) -> None:
            raise RuntimeError("Failed to find C compiler.\n  Please specify via CC")

    runtime.driver = NoCompiler()
    assert backends._triton_unavailable() == (
        "Triton does not start: Failed to find C compiler. Please specify via CC"
    )


def pretend_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    for name, value in {
        "is_available": True, "current_device": 1, "get_device_name": "Some GPU",
        "get_device_capability": capability,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)


def test_the_library_stays_unloaded_without_a_gpu(library: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    program = (
        "from pinmem import info; info.main();"
        "assert '/_cuda.so' not in open('/proc/self/maps').read()"
    )
    assert "not cuda: no CUDA device" in said(sys.executable, "-c", program)


def test_every_op_is_listed() -> None:
    assert KERNELS_OF.keys() == {path.stem for path in (ROOT / "csrc/cuda").glob("*.cu")}


@pytest.mark.parametrize("op", KERNELS_OF)
def test_every_op_has_kernels_for_every_architecture(
    kernels: list, architectures: set[str], op: str
) -> None:
    compiled = {kernel.architecture for kernel in kernels if kernel.name.startswith(KERNELS_OF[op])}
    assert compiled == architectures


def test_nothing_spills(kernels: list) -> None:
    """Registers that do not fit go to memory: never outside float64, where nobody trains."""
    single = [kernel for kernel in kernels if not kernel.double]
    assert len(single) > len(kernels) / 2
    assert [kernel for kernel in single if kernel.spills or kernel.stack > 0] == []


def test_float64_spills_little(kernels: list) -> None:
    assert [kernel for kernel in kernels if kernel.double and kernel.stack > 256] == []


LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6pinmem5blockIfEEvPT_' for 'sm_80'
ptxas info    : Function properties for _ZN6pinmem5blockIfEEvPT_
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for called
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 8 bytes cumulative stack size
ptxas info    : Compile time = 1.0 ms
ptxas info    : Compiling entry function '_ZN6pinmem5blockIdEEvPT_' for 'sm_100'
ptxas info    : Function properties for _ZN6pinmem5blockIdEEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers
"""


@pytest.mark.skipif(not shutil.which("c++filt"), reason="no c++filt on this machine")
def test_a_log_is_read() -> None:
    spilling, double = ptxas.kernels(LOG)
    assert spilling == ptxas.Kernel("block<float>(float*)", "sm_80", 64, 8, 4, 12)
    assert spilling.spills and not spilling.double
    assert double.name == "block<double>(double*)" and double.architecture == "sm_100"
    assert double.double and not double.spills and double.registers == 32
    with pytest.raises(AssertionError, match="spill_stores=4"):
        test_nothing_spills([spilling])
    with pytest.raises(ValueError, match="no line on its stack frame"):
        ptxas.kernels("\n".join(line for line in LOG.splitlines() if "frame" not in line))
