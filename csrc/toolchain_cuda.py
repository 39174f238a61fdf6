"""Compiles csrc/cuda: with nvcc for GPUs, and for tests with the C++ compiler (emulation/)."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from toolchain import (
    ROOT,
    STABLE_ABI,
    BuildFailed,
    Job,
    LeftOut,
    first_error,
    make,
    need_compiler,
    need_torch,
    run,
    sources,
)

CUDA = Path("csrc/cuda")
# Beside every object here lies a log of what ptxas said of its kernels (csrc/ptxas.py).
OBJECTS = ROOT / "build/objects/cuda"

# Ampere, Hopper and Blackwell, as far as nvcc knows them; later ones compile the last at load time.
DEFAULT_ARCHITECTURES = ("8.0", "9.0", "10.0")


def build_cuda(output: Path) -> None:
    """csrc/cuda into one library."""
    nvcc = find_nvcc()
    torch = need_torch()
    if torch.cuda is None:
        raise LeftOut("torch is a build without CUDA")
    release = re.search(r"release ([\d.]+)", run([nvcc, "--version"]).stdout)
    toolkit = release[1] if release else "an unknown release"
    if toolkit.split(".")[0] != torch.cuda.split(".")[0]:
        raise LeftOut(f"nvcc is of CUDA {toolkit} and torch of CUDA {torch.cuda}")
    host = need_compiler()
    command = [nvcc, host[-1], *(["-ccbin", host[0]] if len(host) == 2 else [])]
    code = architectures(run([nvcc, "--list-gpu-arch"]).stdout.split())
    base = [*command, "-c", "-O3", *code, "-DUSE_CUDA", STABLE_ABI, "-Xptxas", "-v"]
    base += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr"]
    jobs = [
        Job(OBJECTS / f"{source.stem}.o", [*base, *torch.headers, str(source)])
        for source in sources(CUDA, "*.cu")
    ]
    if any(job.stale() for job in jobs):
        probe = OBJECTS / "probe.cu"
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("#include <type_traits>\n__global__ void probe() {}\n")
        said = run([*command, *code, "-c", str(probe), "-o", str(probe.with_suffix(".o"))])
        if said.returncode != 0:
            raise LeftOut(f"nvcc does not compile: {first_error(said)}")
    # The runtime goes in whole: it shares the device's primary context with torch's own, and
    # nobody has to have a libcudart of this release.
    link = [*command, "-shared", "-cudart", "static", "--no-device-link"]
    link += ["-Xlinker", "--exclude-libs=ALL"]
    torch_libraries = [f"-L{torch.root}/lib", "-ltorch_cuda", "-ltorch_cpu"]
    make(jobs, link, torch_libraries, OBJECTS / output.name, output)


def build_emulation(output: Path) -> None:
    """csrc/cuda for a CPU, every thread of a block a fiber: for tests where there is no GPU."""
    compiler = need_compiler()
    torch = need_torch()
    objects = ROOT / "build/objects/emulation"
    base = [*compiler, "-x", "c++", "-c", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    # nvcc's own pragmas, and attributes of what is not a function here.
    base += ["-Wno-unknown-pragmas", "-Wno-attributes", "-DPINMEM_HOST_EMULATION", STABLE_ABI]
    jobs = [
        Job(objects / f"{source.stem}.o", [*base, *torch.headers, str(source)])
        for source in sources(CUDA, "*.cu")
    ]
    link = [*compiler, "-shared"]
    make(jobs, link, [f"-L{torch.root}/lib", "-ltorch_cpu"], objects / output.name, output)


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")
    if nvcc is None:
        raise LeftOut(f"nvcc was not found ({'in CUDA_HOME' if home else 'CUDA_HOME, PATH'})")
    return nvcc


def architectures(known: list[str]) -> list[str]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST (8.0;9.0a;10.0+PTX, or with spaces)."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;")
    if not given:
        able = [
            name for name in DEFAULT_ARCHITECTURES if f"compute_{name.replace('.', '')}" in known
        ]
        given = ";".join(able) + ("+PTX" if able else "")
    flags = []
    for name in re.split(r"[;,\s]+", given) if given else []:
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if parts is None:
            raise BuildFailed(
                f"TORCH_CUDA_ARCH_LIST: got '{name}', expected such as 9.0 or 9.0+PTX"
            )
        number = parts[1] + parts[2] + parts[3]
        codes = f"sm_{number},compute_{number}" if parts[4] else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code=[{codes}]")
    return flags
